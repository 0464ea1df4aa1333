"""Weights quantised as by other programs, and the values that they represent."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

Tensors = dict[str, np.ndarray]
FP8 = ml_dtypes.float8_e4m3fn
NF4 = load_file(Path(__file__).with_name("bitsandbytes.safetensors"))["nf4.weight.quant_map"]


def is_large(name: str, tensor: np.ndarray) -> bool:
    """Whether programs quantise a tensor: matrices of blocks whose rows fill GGUF's blocks."""
    return tensor.ndim == 2 and "block" in name and tensor.shape[1] % 256 == 0


def scaled(tensors: Tensors, by: str = "scale_weight", rows: bool = False) -> tuple[Tensors, ...]:
    """Scaled fp8 with a scale per tensor or row, and its values."""
    stored, plain = {"scaled_fp8": np.zeros(2, FP8)}, dict(tensors)
    for name, tensor in tensors.items():
        if not is_large(name, tensor):
            stored[name] = tensor.astype(ml_dtypes.bfloat16)
            plain[name] = stored[name].astype(np.float32)
            continue
        scale = np.abs(tensor).max(axis=1 if rows else None, keepdims=rows) / 448
        stored[name] = (tensor / scale).astype(FP8)
        stored[f"{name.removesuffix('weight')}{by}"] = np.asarray(scale, np.float32)
        plain[name] = stored[name].astype(np.float32) * scale
    return stored, plain


def nf4(tensors: Tensors, block: int = 64) -> tuple[Tensors, ...]:
    """bitsandbytes' NF4 and its values."""
    stored, plain = {}, dict(tensors)
    for name, tensor in tensors.items():
        if not is_large(name, tensor):
            stored[name] = tensor
            continue
        blocks = tensor.reshape(-1, block)
        absmax = np.abs(blocks).max(axis=1)
        between = (NF4[1:] + NF4[:-1]) / 2
        codes = np.searchsorted(between, (blocks / absmax[:, None]).reshape(-1)).astype(np.uint8)
        state = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16"}
        state["shape"] = list(tensor.shape)
        stored |= {
            name: (codes[::2] << 4 | codes[1::2])[:, None],
            f"{name}.absmax": absmax,
            f"{name}.quant_map": NF4,
            f"{name}.quant_state.bitsandbytes__nf4": np.frombuffer(
                json.dumps(state).encode(), np.uint8
            ),
        }
        numbers = (NF4[codes].reshape(-1, block) * absmax[:, None]).reshape(tensor.shape)
        plain[name] = numbers.astype(ml_dtypes.bfloat16).astype(np.float32)
    return stored, plain


def write_gguf(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    kind: Callable[[str, np.ndarray], gguf.GGMLQuantizationType],
    architecture: str = "flux",
) -> Tensors:
    """Write a GGUF file and return its values.

    Args:
        path: of the file.
        tensors: float32.
        kind: of each tensor; K types get random blocks, since the package cannot quantise to them.
        architecture: metadata of the file.
    """
    writer = gguf.GGUFWriter(path, architecture)
    random, plain = np.random.default_rng(0), {}
    for name, tensor in tensors.items():
        chosen = kind(name, tensor)
        if chosen.name.endswith("_K"):
            stored = k_blocks(random, tensor.shape, chosen)
        else:
            stored = gguf.quantize(np.ascontiguousarray(tensor), chosen)
        writer.add_tensor(name, stored, raw_dtype=chosen)
        plain[name] = gguf.dequantize(stored, chosen).reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


# Positions of the 16-bit scales in each type's block of 256 values.
K_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def k_blocks(
    random: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType
) -> np.ndarray:
    """Random blocks whose values have the magnitude of weights."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // 256, size), np.uint8)
    for place in K_SCALES[kind.name]:
        scales = random.uniform(1e-5, 1e-4, blocks.shape[:-1]).astype(np.float16)
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)
