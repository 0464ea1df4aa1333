"""Quantised weights in PyTorch's files: detected by tensor names, dequantised when they are read.

| format | tensors | weight |
| --- | --- | --- |
| scaled fp8 (ComfyUI) | `L.weight`, `L.scale_weight` or `L.weight_scale` | weight * scale |
| bitsandbytes NF4, FP4 | see `flux_jax.weights.quantized.bitsandbytes` | table[code] * absmax |
| bitsandbytes LLM.int8() | `L.weight`, `L.SCB` | weight * SCB / 127 |
| GGUF | see `flux_jax.weights.quantized.gguf_files` | by the package `gguf` |

Scales of activations (`scale_input`, `input_scale`) are for fp8 matrix products and are ignored.
Other formats are detected and refused.

Axis letters: O outputs, I inputs.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Num

from flux_jax.errors import LONGEST, InputError, counted
from flux_jax.system.json_files import parse_json
from flux_jax.weights.quantized import bitsandbytes
from flux_jax.weights.quantized.lazy import Lazy

SCALED = "scaled fp8 (ComfyUI)"
SCALES = (".scale_weight", ".weight_scale")
INPUT_SCALES = (".scale_input", ".input_scale")
MARKER = "scaled_fp8"
# The tensor that describes the format of a layer, as JSON in bytes.
LAYER_FORMAT = ".comfy_quant"
# Formats of weights multiplied by one scale or one per row, with the weight's type.
PLAIN_FORMATS = {
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fn_rowwise": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int8_tensorwise": np.dtype(np.int8),
}
# Endings of tensor names in unsupported formats.
REFUSED = {
    "SVDQuant (nunchaku)": r"\.(smooth_factor(_orig)?|wscales|wtscale|smooth|proj_down|wcscales)",
    "NVFP4": r"\.(weight_scale_2|weight_global_scale)",
    "GPTQ or AWQ": r"\.(qzeros|g_idx)",
    "packed int4": r"\.(qweight|weight_packed|int_weight)",
    "torchao": r".*[_:](qdata|tensor_impl|int_data|packed_weight)",
    "Quanto": r"\.weight\._(data|scale|shift|packed)",
    "HQQ": r"\.W_q",
    "fp8 with a scale for each square block": r"\.weight_scale_inv",
    "SDNQ": r"\.(zero_point|svd_up|svd_down)",
    "AQLM": r"\.codebooks",
    "ModelOpt": r"\.(weight|input|output)_quantizer\._\w+",
}
MEND = "take the model in bfloat16, plain or scaled fp8, NF4 or GGUF"


def quantisation(tensors: Mapping[str, Any]) -> str | None:
    """Name of the format that tensors are quantised in; None if they are not quantised.

    Args:
        tensors: tensors of a file, or the result of `dequantised`.
    """
    for tensor in tensors.values():
        if isinstance(tensor, Lazy):
            return tensor.stored_as
    if refusal := _refused(tensors):
        return refusal[0]
    for name in tensors:
        for suffix, stored_as in bitsandbytes.STATES.items():
            if name.endswith(suffix):
                return stored_as
        if name.endswith(".SCB"):
            return bitsandbytes.INT8
        if _is_marker(name) or name.endswith((*SCALES, LAYER_FORMAT)):
            return SCALED
    return None


def dequantised(
    tensors: Mapping[str, Any], *, source: str | os.PathLike[str] = "weights"
) -> dict[str, Any]:
    """Replaces quantised tensors by `Lazy` ones under their plain names; others are unchanged.

    Args:
        tensors: tensors of a file.
        source: their origin, for error messages.

    Raises:
        InputError: the quantisation format is not supported, or scales are missing or do not fit.
    """
    if refusal := _refused(tensors):
        stored_as, names = refusal
        text = f"quantised by {stored_as}, which is not supported"
        raise InputError(_message(source, text, names, MEND))
    weights: dict[str, Lazy] = {}
    dropped: set[str] = set()
    problems: dict[str, str] = {}
    for name in tensors:
        owner, companions = _owner(name)
        if owner not in tensors:
            continue
        dropped |= {each for each in companions if each in tensors}
        try:
            if lazy := _dequantise(name, owner, tensors):
                weights[owner] = lazy
        except ValueError as error:
            problems[owner] = str(error)
    if problems:
        names = list(problems)
        text = f"{names[0]}: {problems[names[0]]}"
        raise InputError(_message(source, text, names, f"fetch the file again, or {MEND}"))
    return {
        name: weights.get(name, tensor)
        for name, tensor in tensors.items()
        if name not in dropped and not _is_marker(name)
    }


def _is_marker(name: str) -> bool:
    return name == MARKER or name.endswith(f".{MARKER}")


def _owner(name: str) -> tuple[str, list[str]]:
    """The tensor that a companion belongs to, and all companions to drop; "" for other names."""
    for suffix in bitsandbytes.STATES:
        if name.endswith(suffix):
            owner = name.removesuffix(suffix)
            return owner, [name, *(owner + part for part in bitsandbytes.TABLES)]
    for suffix in (*SCALES, *INPUT_SCALES, LAYER_FORMAT, ".SCB"):
        if name.endswith(suffix):
            layer = name.removesuffix(suffix)
            rest = [f"{layer}.weight_format"] if suffix == ".SCB" else []
            return f"{layer}.weight", [name, *rest]
    return "", []


def _dequantise(name: str, owner: str, tensors: Mapping[str, Any]) -> Lazy | None:
    """Dequantises the tensor that a companion belongs to; None if the companion has no effect.

    Raises:
        ValueError: the two do not fit each other; the message says why.
    """
    companion, weight = tensors[name], tensors[owner]
    layer = owner.removesuffix(".weight")
    for suffix in bitsandbytes.STATES:
        if name.endswith(suffix):
            return bitsandbytes.four_bits(owner, suffix, tensors)
    if name.endswith(".SCB"):
        order = np.asarray(tensors.get(f"{layer}.weight_format", 0))
        if order.any():
            raise ValueError("its int8 weights are in a GPU-specific order")
        return bitsandbytes.eight_bits(weight, companion)
    if name.endswith(LAYER_FORMAT):
        _described_type(companion)
        if not any(layer + each in tensors for each in SCALES):
            raise ValueError("its scale is missing")
    if name.endswith(SCALES):
        if layer + LAYER_FORMAT in tensors:
            dtype = _described_type(tensors[layer + LAYER_FORMAT])
            # Some programs store the bits of fp8 as integers.
            weight = weight.view(dtype) if weight.dtype == np.uint8 else weight
            if weight.dtype != dtype:
                raise ValueError(f"it is {weight.dtype}, but its comfy_quant specifies {dtype}")
        elif weight.dtype.kind in "iu":
            raise ValueError(
                f"it is {weight.dtype} with a scale, and no tensor specifies its format"
            )
        return _scaled(weight, companion)
    return None


def _described_type(described: Any) -> np.dtype:
    """The type of a layer's weight, from its description, if this is a weight with a scale.

    Raises:
        ValueError: the description is invalid, or names another format or a rotation.
    """
    try:
        description = parse_json(np.asarray(described).tobytes())
        stored_as = description["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("its comfy_quant is not JSON with a format") from error
    turned = [key for key, value in description.items() if key.startswith("convrot") and value]
    if not isinstance(stored_as, str) or stored_as not in PLAIN_FORMATS or turned:
        shown = " with ".join([str(stored_as)[:40], *turned[:1]])
        raise ValueError(f"it is in the format {shown}, which is not supported")
    return PLAIN_FORMATS[stored_as]


def _scaled(weight: Any, scale: Any) -> Lazy:
    """A weight times one scale, or one scale per row.

    Raises:
        ValueError: the scale has another shape, or is not of a float type.
    """
    shape, sizes = tuple(weight.shape), tuple(scale.shape)
    all_of_it = set(sizes) <= {1}
    if not shape or not (all_of_it or (sizes[0] == shape[0] and set(sizes[1:]) <= {1})):
        raise ValueError(
            f"its scale is {list(sizes)} for {list(shape)}; only one scale, or one per row, is "
            "supported"
        )
    if scale.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
        raise ValueError(
            f"its scale is {scale.dtype} and must be float32, bfloat16 or another float type"
        )

    def rows(wanted: slice) -> np.ndarray:
        part = np.asarray(weight[wanted])
        return scaled_rows(
            part, np.asarray(scale).reshape(-1)[slice(None) if all_of_it else wanted]
        )

    return Lazy(shape, np.dtype(np.float32), weight.nbytes + scale.nbytes, SCALED, rows)


def scaled_rows(
    weight: Num[np.ndarray, "O ..."], scales: Float[np.ndarray, "S"]
) -> Float[np.ndarray, "O ..."]:
    """Multiplies rows by one scale (S = 1) or one scale per row (S = O), in float32."""
    rows = weight.astype(np.float32)
    rows *= scales.astype(np.float32).reshape(-1, *(1,) * (weight.ndim - 1))
    return rows


def _refused(tensors: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """An unsupported format that was detected, and the tensors that show it."""
    for stored_as, ending in REFUSED.items():
        pattern = re.compile(rf"(?:{ending})$")
        if names := [name for name in tensors if pattern.search(name)]:
            return stored_as, names
    return None


def _message(source: str | os.PathLike[str], text: str, names: Sequence[str], mend: str) -> str:
    """One line with the count and as many examples as fit, at most three."""
    for shown in (3, 2, 1, 0):
        examples = ", ".join(names[:shown])
        count = counted(len(names), "tensor")
        listed = f"{count}: {examples}{', ...' if len(names) > shown else ''}"
        line = f"{source}: {text} ({listed if shown else count}); {mend}"
        if len(line) <= LONGEST:
            break
    return line
