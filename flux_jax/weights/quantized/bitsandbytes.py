"""Weights quantised by bitsandbytes: NF4 and FP4 in four bits, LLM.int8() in eight.

Four bits: `NAME` holds two codes per byte, the first one in the upper half. A code is an index into
the table `NAME.quant_map`, and each block of B consecutive numbers is multiplied by its entry of
`NAME.absmax`. The remaining parameters are stored as JSON, in bytes, in
`NAME.quant_state.bitsandbytes__nf4` (or `__fp4`). Double quantisation stores `absmax` in eight
bits, with its own table, scales and offset (`nested_...`).

Eight bits: row o of `LAYER.weight` is multiplied by `LAYER.SCB[o]` / 127.

Axis letters: N numbers of a tensor, P = ceil(N / 2) bytes, K blocks, O outputs, I inputs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int8, UInt8

from flux_jax.system.json_files import parse_json
from flux_jax.weights.quantized.lazy import Lazy

# Suffixes of companion tensors' names, after the tensor's name.
STATES = {
    ".quant_state.bitsandbytes__nf4": "bitsandbytes NF4",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes FP4",
}
TABLES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
INT8 = "bitsandbytes LLM.int8()"
# Types that a state may name: bitsandbytes rounds its float32 results to one of them.
TYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# bitsandbytes multiplies by this instead of dividing by 127.
PER_UNIT = np.float32(1 / 127)


@dataclass(frozen=True)
class State:
    """Parameters of a tensor in four bits.

    Attributes:
        shape: shape of the tensor.
        dtype: type that the tensor is rounded to.
        block: numbers that share a scale.
        nested_block: scales that share a scale; 0 if the scales are float32.
        nested_offset: offset that is added to nested scales.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    block: int
    nested_block: int = 0
    nested_offset: float = 0.0

    @classmethod
    def parse(cls, text: bytes) -> "State":
        """Reads the JSON of a `quant_state` tensor.

        Raises:
            ValueError: it is not such JSON, or its values are invalid.
        """
        try:
            fields = parse_json(text, finite=False)
        except ValueError as error:
            raise ValueError("its quant_state is not JSON") from error
        try:
            state = cls(
                tuple(int(size) for size in fields["shape"]),
                TYPES[fields["dtype"]],
                int(fields["blocksize"]),
                int(fields.get("nested_blocksize", 0)),
                float(fields.get("nested_offset", 0.0)),
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"its quant_state is incomplete or invalid: {str(error)[:80]}"
            ) from error
        sizes = (len(state.shape), *state.shape, state.block)
        if min(sizes) < 1 or state.block % 2 or state.nested_block < 0:
            raise ValueError("its quant_state has invalid sizes")
        return state


def four_bits(name: str, suffix: str, tensors: Mapping[str, Any]) -> Lazy:
    """A tensor in NF4 or FP4.

    Args:
        name: name of the tensor.
        suffix: the key of `STATES` that follows its name.
        tensors: the file's tensors, including its companions.

    Raises:
        ValueError: companions are missing or do not fit; the message says which.
    """
    state = State.parse(np.asarray(tensors[name + suffix]).tobytes())
    parts = {part: tensors[name + part] for part in TABLES if name + part in tensors}
    absent = [part for part in (".absmax", ".quant_map") if part not in parts]
    if state.nested_block:
        absent += [part for part in (".nested_absmax", ".nested_quant_map") if part not in parts]
    if absent:
        raise ValueError(f"its companions {', '.join(absent)} are missing")
    packed, scales = tensors[name], parts[".absmax"]
    count = math.prod(state.shape)
    blocks = -(-count // state.block)
    wanted = {"codes": -(-count // 2), "absmax": blocks, "quant_map": 16}
    sizes = {"codes": packed.nbytes, "absmax": math.prod(scales.shape)}
    sizes["quant_map"] = math.prod(parts[".quant_map"].shape)
    if state.nested_block:
        wanted |= {"nested_absmax": -(-blocks // state.nested_block), "nested_quant_map": 256}
        for part in (".nested_absmax", ".nested_quant_map"):
            sizes[part[1:]] = math.prod(parts[part].shape)
    for part, entries in wanted.items():
        if sizes[part] != entries:
            raise ValueError(f"its {part} has {sizes[part]} entries, expected {entries}")
    if state.nested_block and scales.dtype != np.uint8:
        raise ValueError(f"its absmax is {scales.dtype} and must be uint8 in double quantisation")
    row = count // state.shape[0]

    def rows(wanted: slice) -> np.ndarray:
        first, last = wanted.start * row, wanted.stop * row
        # Extended to whole blocks.
        block, end = first // state.block, -(-last // state.block)
        codes = np.asarray(packed).reshape(-1).view(np.uint8)
        codes = codes[block * state.block // 2 : end * state.block // 2]
        chosen = scale_of_blocks(state, parts, slice(block, end))
        values = decode(codes, np.asarray(parts[".quant_map"]), chosen, state.block)
        start = first - block * state.block
        values = values[start : start + last - first].astype(state.dtype, copy=False)
        return values.reshape(-1, *state.shape[1:])

    nbytes = packed.nbytes + sum(part.nbytes for part in parts.values())
    return Lazy(state.shape, state.dtype, nbytes, STATES[suffix], rows)


def scale_of_blocks(
    state: State, parts: Mapping[str, Any], blocks: slice
) -> Float[np.ndarray, "K"]:
    """Scales of some blocks, in float32.

    Args:
        state: the tensor's parameters.
        parts: its companions, by `TABLES`.
        blocks: consecutive blocks.
    """
    scales = np.asarray(parts[".absmax"]).reshape(-1)[blocks]
    if not state.nested_block:
        return scales.astype(np.float32)
    table = np.asarray(parts[".nested_quant_map"]).reshape(-1).astype(np.float32)
    outer = np.asarray(parts[".nested_absmax"]).reshape(-1).astype(np.float32)
    places = np.arange(blocks.start, blocks.start + len(scales)) // state.nested_block
    return table[scales] * outer[places] + np.float32(state.nested_offset)


def decode(
    codes: UInt8[np.ndarray, "P"],
    table: Float[np.ndarray, "16"],
    scales: Float[np.ndarray, "K"],
    block: int,
) -> Float[np.ndarray, "N"]:
    """Decodes the numbers of consecutive blocks to float32; the last block may be incomplete."""
    table = table.reshape(-1).astype(np.float32)
    # Both numbers of a byte at once.
    pairs = np.stack([np.repeat(table, 16), np.tile(table, 16)], axis=1)
    numbers = pairs[codes].reshape(-1)
    whole = len(numbers) // block
    numbers[: whole * block].reshape(whole, block)[...] *= scales[:whole, None]
    if whole < len(scales):
        numbers[whole * block :] *= scales[whole]
    return numbers


def eight_bits(weight: Any, scales: Any) -> Lazy:
    """A weight [O, I] in LLM.int8().

    Args:
        weight: int8 values.
        scales: SCB, the largest magnitude of each row [O].

    Raises:
        ValueError: the two do not fit each other.
    """
    shape = tuple(weight.shape)
    if weight.dtype != np.int8 or not shape or tuple(scales.shape) != shape[:1]:
        raise ValueError(
            f"it is {weight.dtype} {list(shape)} with SCB {list(scales.shape)}, which must be "
            "int8 with a scale for each row"
        )

    def rows(wanted: slice) -> np.ndarray:
        return scaled_rows(np.asarray(weight[wanted]), np.asarray(scales[wanted]))

    return Lazy(shape, np.dtype(np.float32), weight.nbytes + scales.nbytes, INT8, rows)


def scaled_rows(
    weight: Int8[np.ndarray, "O ..."], scales: Float[np.ndarray, "O"]
) -> Float[np.ndarray, "O ..."]:
    """Multiplies rows by their scales / 127, in float32."""
    scales = scales.astype(np.float32).reshape(-1, *(1,) * (weight.ndim - 1))
    return weight.astype(np.float32) * scales * PER_UNIT
