"""GGUF files: llama.cpp's quantised blocks, decoded by the package `gguf`.

FLUX files have Black Forest Labs' names. T5 encoders have llama.cpp's, which are translated to
transformers'.
"""

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flux_jax.errors import InputError
from flux_jax.system.files import open_regular
from flux_jax.weights.quantized.lazy import Lazy

SUFFIX = ".gguf"
# Limits of a file, many times those of any FLUX.1 or T5.
MOST_TENSORS, MOST_KEYS, MOST_ENTRIES = 1 << 15, 1 << 12, 1 << 20
# Types of a key's value: texts, arrays, and the bytes of each number.
TEXT, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# Exceptions of the reader for files that violate the format.
DAMAGE = (
    *(ValueError, IndexError, KeyError, TypeError, OverflowError, OSError, MemoryError),
    *(RecursionError, ZeroDivisionError, AttributeError),
)
# If a tensor was reshaped so that blocks fill its rows, its original shape has this key.
SHAPE_KEY = "comfy.gguf.orig_shape."
# llama.cpp's names of T5's tensors, and transformers' names for them.
T5_TOP = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
}
T5_BLOCK = {
    "attn_q": "0.SelfAttention.q",
    "attn_k": "0.SelfAttention.k",
    "attn_v": "0.SelfAttention.v",
    "attn_o": "0.SelfAttention.o",
    "attn_rel_b": "0.SelfAttention.relative_attention_bias",
    "attn_norm": "0.layer_norm",
    "ffn_gate": "1.DenseReluDense.wi_0",
    "ffn_up": "1.DenseReluDense.wi_1",
    "ffn_down": "1.DenseReluDense.wo",
    "ffn_norm": "1.layer_norm",
}


def read_gguf(path: Path) -> dict[str, Lazy]:
    """Reads all tensors of a GGUF file; they are decoded on access.

    Raises:
        InputError: the package is not installed, the file is missing, damaged or in another byte
            order, or a tensor is in blocks that the package cannot decode.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    gguf = _package(path)
    try:
        _check_counts(path)
        with np.errstate(all="ignore"):
            reader = gguf.GGUFReader(path)
            tensors = {each.name: _lazy(gguf, reader, each) for each in reader.tensors}
    except NotImplementedError as error:
        raise InputError(f"{path}: {error}; take a file in Q8_0 or Q4_K") from error
    except DAMAGE as error:
        raise InputError(
            f"{path}: truncated or not a GGUF file ({type(error).__name__}: {str(error)[:120]}); "
            "copy or download it again"
        ) from error
    if reader.endianess != gguf.GGUFEndian.LITTLE:
        raise InputError(f"{path}: in big-endian byte order; take a little-endian file")
    if not tensors:
        raise InputError(f"{path}: holds no tensors; copy or download it again")
    return plain_names(tensors)


def _check_counts(path: Path) -> None:
    """Checks the numbers of tensors, keys and entries in arrays before the package reads them.

    Raises:
        ValueError: one is over its limit, or the file ends too early.
    """
    with open_regular(path) as file:
        head = file.read(24)
        # The version: a file in another byte order is refused later.
        order = "big" if head[4:7] == b"\0\0\0" else "little"

        def number(size: int) -> int:
            content = file.read(size)
            if len(content) < size:
                raise ValueError("the file ends too early")
            return int.from_bytes(content, order)

        def skip(kind: int) -> None:
            nonlocal entries
            if kind == TEXT:
                file.seek(number(8), os.SEEK_CUR)
            elif kind == ARRAY:
                inner, count = number(4), number(8)
                entries += count
                if inner == ARRAY or entries > MOST_ENTRIES:
                    raise ValueError(
                        f"over {MOST_ENTRIES:,} entries in arrays, or arrays of arrays"
                    )
                for _ in range(count if inner == TEXT else 0):
                    skip(inner)
                file.seek(count * SIZES.get(inner, 0), os.SEEK_CUR)
            else:
                file.seek(SIZES.get(kind, 0), os.SEEK_CUR)

        entries = 0
        tensors, keys = (int.from_bytes(head[at : at + 8], order) for at in (8, 16))
        if tensors > MOST_TENSORS or keys > MOST_KEYS:
            raise ValueError(
                f"{tensors:,} tensors and {keys:,} keys, over the limits of {MOST_TENSORS:,} and "
                f"{MOST_KEYS:,}"
            )
        for _ in range(keys):
            skip(TEXT)
            skip(number(4))


def _package(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"{path}: GGUF files need the package gguf; install it: pip install gguf"
        ) from error
    return gguf


def _lazy(gguf: Any, reader: Any, tensor: Any) -> Lazy:
    """One tensor of a file.

    Raises:
        ValueError: its shapes have different numbers of elements.
        NotImplementedError: its blocks cannot be decoded.
    """
    kind = tensor.tensor_type
    data = np.asarray(tensor.data)
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if field := reader.fields.get(SHAPE_KEY + tensor.name):
        stored, shape = shape, tuple(int(size) for size in field.contents())
        if math.prod(stored) != math.prod(shape):
            raise ValueError(f"{tensor.name} is {list(stored)} in the file and not {list(shape)}")
    if kind == gguf.GGMLQuantizationType.BF16:
        data = data.view(ml_dtypes.bfloat16)
    if data.dtype != np.uint8:
        plain = data.reshape(shape)
        return Lazy(shape, data.dtype, data.nbytes, "GGUF", lambda rows: np.atleast_1d(plain)[rows])
    # Fails now if the format cannot be decoded, not after minutes of reading.
    gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)

    def rows(wanted: slice) -> np.ndarray:
        # Non-finite values are detected by the reader.
        with np.errstate(all="ignore"):
            if len(shape) > 1 and len(data) == shape[0]:
                return gguf.dequantize(data[wanted], kind).reshape(-1, *shape[1:])
            return gguf.dequantize(data, kind).reshape(shape)[wanted]

    return Lazy(shape, np.dtype(np.float32), data.nbytes, "GGUF", rows)


def plain_names(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """Renames T5's tensors as in PyTorch's files; other names are unchanged."""
    if not is_t5(tensors):
        return tensors
    return {t5_name(name): tensor for name, tensor in tensors.items()}


def is_t5(names: Iterable[str]) -> bool:
    """Whether these are llama.cpp's names of a T5 encoder."""
    return any(name.startswith("enc.blk.") for name in names)


def t5_name(name: str) -> str:
    """Transformers' name of a T5 tensor, from llama.cpp's; unknown names are unchanged."""
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)", stem):
        block, part = match.groups()
        return f"encoder.block.{block}.layer.{T5_BLOCK[part]}.{kind}" if part in T5_BLOCK else name
    return f"{T5_TOP[stem]}.{kind}" if stem in T5_TOP else name
