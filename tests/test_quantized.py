"""Quantised tensors: each format against its definition, and refusals.

`bitsandbytes.safetensors` was written by bitsandbytes 0.50.2: random weights as it stores them, and
the values that its own functions compute from them.
"""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flux_jax.errors import InputError
from flux_jax.weights.quantized.formats import REFUSED, dequantised, quantisation
from flux_jax.weights.quantized.lazy import Lazy
from flux_jax.weights.safetensors_files import read_file

FP8 = {"e4m3fn": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
STORED = read_file(Path(__file__).parent / "helpers" / "bitsandbytes.safetensors")
CASES = sorted(name.split(".")[1] for name in STORED if name.startswith("expected."))
WEIGHT = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def stored(case: str) -> dict[str, np.ndarray]:
    return {name: tensor for name, tensor in STORED.items() if name.startswith(f"{case}.")}


def as_bytes(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def refusal(tensors: dict, source: str = "model.safetensors") -> str:
    with pytest.raises(InputError) as caught:
        dequantised(tensors, source=source)
    text = str(caught.value)
    assert text.startswith(f"{source}: ")
    assert "\n" not in text
    assert len(text) <= 400
    return text


@pytest.mark.parametrize("case", CASES)
def test_bitsandbytes_own_values_are_met_bit_for_bit(case: str):
    expected = STORED[f"expected.{case}"]
    (made,) = dequantised(stored(case)).values()
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    assert made.nbytes == sum(
        tensor.nbytes
        for name, tensor in stored(case).items()
        if not name.endswith(("weight_format", "__nf4", "__fp4"))
    )
    assert np.asarray(made).tobytes() == expected.tobytes()
    for start, stop in ((0, 1), (1, 3), (2, len(expected)), (0, len(expected))):
        assert made[start:stop].tobytes() == expected[start:stop].tobytes()


@pytest.mark.parametrize("fp8", FP8)
@pytest.mark.parametrize("names", ["scale_weight scale_input", "weight_scale input_scale"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("sizes", [(), (1,), (1, 1), (6,), (6, 1)])
def test_scaled_fp8_is_weight_times_scale(fp8: str, names: str, prefix: str, sizes):
    count = 6 if 6 in sizes else 1
    by_weight, by_input = names.split()
    scale = np.linspace(0.003, 0.7, count, dtype=np.float32).reshape(sizes)
    weight = WEIGHT.astype(FP8[fp8])
    bias = np.ones(6, np.float32)
    tensors = {
        f"{prefix}a.weight": weight,
        f"{prefix}a.bias": bias,
        f"{prefix}a.{by_weight}": scale,
        f"{prefix}a.{by_input}": np.float32([1.0]),
        f"{prefix}scaled_fp8": np.zeros(2, FP8[fp8]),
    }
    made = dequantised(tensors)
    assert list(made) == [f"{prefix}a.weight", f"{prefix}a.bias"]
    assert made[f"{prefix}a.bias"] is bias
    lazy = made[f"{prefix}a.weight"]
    expected = weight.astype(np.float32) * np.broadcast_to(scale.reshape(-1, 1), (6, 5))
    assert (lazy.shape, lazy.dtype) == ((6, 5), np.float32)
    assert lazy.nbytes == weight.nbytes + scale.nbytes
    np.testing.assert_array_equal(np.asarray(lazy), expected)
    np.testing.assert_array_equal(lazy[2:5], expected[2:5])


def test_layers_of_newer_comfyui_say_their_format():
    scale = np.float32(0.25)
    fp8 = WEIGHT.astype(FP8["e4m3fn"])
    whole = np.arange(-15, 15, dtype=np.int8).reshape(6, 5)
    for stored_as, weight, plain in (
        ("float8_e4m3fn", fp8, fp8.astype(np.float32)),
        ("float8_e4m3fn", fp8.view(np.uint8), fp8.astype(np.float32)),
        ("float8_e5m2", WEIGHT.astype(FP8["e5m2"]), WEIGHT.astype(FP8["e5m2"]).astype(np.float32)),
        ("int8_tensorwise", whole, whole.astype(np.float32)),
    ):
        tensors = {
            "a.comfy_quant": as_bytes({"format": stored_as}),
            "a.weight": weight,
            "a.weight_scale": scale,
        }
        assert quantisation(tensors) == "scaled fp8 (ComfyUI)"
        (made,) = dequantised(tensors).values()
        np.testing.assert_array_equal(np.asarray(made), plain / 4)


def test_plain_files_stay_as_they_are():
    tensors = {"a.weight": WEIGHT, "b.weight": WEIGHT.astype(FP8["e4m3fn"]), "q.scale": WEIGHT[0]}
    assert quantisation(tensors) is None
    made = dequantised(tensors)
    assert made.keys() == tensors.keys()
    assert all(made[name] is tensors[name] for name in tensors)


@pytest.mark.parametrize(
    ("name", "stored_as"),
    [
        ("nf4", "bitsandbytes NF4"),
        ("fp4_double", "bitsandbytes FP4"),
        ("int8", "bitsandbytes LLM.int8()"),
    ],
)
def test_formats_are_named_before_and_after(name: str, stored_as: str):
    assert quantisation(stored(name)) == stored_as
    assert quantisation(dequantised(stored(name))) == stored_as


REFUSED_NAMES = {
    "SVDQuant (nunchaku)": "transformer_blocks.0.qkv_proj.smooth_factor",
    "NVFP4": "double_blocks.0.img_attn.qkv.weight_scale_2",
    "GPTQ or AWQ": "encoder.block.0.q.qzeros",
    "packed int4": "single_blocks.0.linear1.qweight",
    "torchao": "double_blocks.0.img_mlp._weight_qdata",
    "Quanto": "transformer_blocks.0.attn.to_q.weight._data",
    "HQQ": "double_blocks.0.img_mlp.0.W_q",
    "fp8 with a scale for each square block": "double_blocks.0.img_mlp.0.weight_scale_inv",
    "SDNQ": "transformer_blocks.0.attn.to_q.zero_point",
    "AQLM": "double_blocks.0.img_mlp.0.codebooks",
    "ModelOpt": "transformer_blocks.0.attn.to_q.weight_quantizer._scale",
}


@pytest.mark.parametrize("stored_as", REFUSED)
def test_other_formats_are_named_and_refused_in_a_line(stored_as: str):
    one = REFUSED_NAMES[stored_as]
    names = [one.replace(".0.", f".{block}.", 1) for block in range(19)]
    tensors = dict.fromkeys(names, WEIGHT) | {"img_in.weight": WEIGHT}
    assert quantisation(tensors) == stored_as
    text = refusal(tensors)
    assert f"quantised by {stored_as}, which is not supported (19 tensors: {names[0]}, " in text
    assert names[2] in text
    assert names[3] not in text
    assert "take the model in bfloat16" in text
    refusal(tensors, source="x" * 150)
    assert f"(1 tensor: {one}); " in refusal({one: WEIGHT})


def broken(case: str, part: str, change) -> dict[str, np.ndarray]:
    tensors = stored(case)
    return tensors | {part: change(tensors[part])}


def with_state(case: str, **entries: object) -> dict[str, np.ndarray]:
    name = f"{case}.weight.quant_state.bitsandbytes__nf4"
    return stored(case) | {name: as_bytes(json.loads(STORED[name].tobytes()) | entries)}


FAULTS = {
    "no table": (
        {name: each for name, each in stored("nf4").items() if not name.endswith("quant_map")},
        "its companions .quant_map are missing",
    ),
    "no nested scales": (
        {n: each for n, each in stored("nf4_double").items() if not n.endswith("nested_absmax")},
        "its companions .nested_absmax are missing",
    ),
    "few scales": (
        broken("nf4", "nf4.weight.absmax", lambda each: each[:-1]),
        "its absmax has 3 entries, expected 4",
    ),
    "few codes": (
        broken("nf4", "nf4.weight", lambda each: each[:-1]),
        "its codes has 119 entries, expected 120",
    ),
    "short table": (
        broken("nf4", "nf4.weight.quant_map", lambda each: each[:-1]),
        "its quant_map has 15 entries, expected 16",
    ),
    "empty state": (
        broken("nf4", "nf4.weight.quant_state.bitsandbytes__nf4", np.zeros_like),
        "its quant_state is not JSON",
    ),
    "no shape": (with_state("nf4", shape=None), "its quant_state is incomplete or invalid"),
    "no such type": (
        with_state("nf4", dtype="int3"),
        "its quant_state is incomplete or invalid: 'int3'",
    ),
    "endless block": (with_state("nf4", blocksize=float("inf")), "is incomplete or invalid"),
    "block of nothing": (with_state("nf4", blocksize=0), "its quant_state has invalid sizes"),
    "no axes": (with_state("nf4", shape=[]), "its quant_state has invalid sizes"),
    "float scales of scales": (
        broken("nf4_double", "nf4_double.weight.absmax", lambda each: each.astype(np.float32)),
        "its absmax is float32 and must be uint8",
    ),
    "order of one GPU": (
        broken("int8", "int8.weight_format", lambda each: each + 1),
        "its int8 weights are in a GPU-specific order",
    ),
    "few rows of int8": (
        broken("int8", "int8.SCB", lambda each: each[:-1]),
        "it is int8 [7, 33] with SCB [6]",
    ),
    "scales of columns": (
        {"a.weight": WEIGHT.astype(FP8["e4m3fn"]), "a.weight_scale": np.ones(5, np.float32)},
        "its scale is [5] for [6, 5]",
    ),
    "scales of blocks": (
        {"a.weight": WEIGHT.astype(FP8["e4m3fn"]), "a.scale_weight": np.ones((6, 5), np.float32)},
        "its scale is [6, 5] for [6, 5]",
    ),
    "powers of two": (
        {"a.weight": WEIGHT.astype(FP8["e4m3fn"]), "a.weight_scale": np.ones(6, np.uint8)},
        "its scale is uint8",
    ),
    "int8 of no known format": (
        {"a.weight": WEIGHT.astype(np.int8), "a.weight_scale": np.float32(1)},
        "it is int8 with a scale, and no tensor specifies its format",
    ),
    "format without scale": (
        {
            "a.weight": WEIGHT.astype(np.int8),
            "a.comfy_quant": as_bytes({"format": "float8_e4m3fn"}),
        },
        "its scale is missing",
    ),
    "turned int8": (
        {
            "a.weight": WEIGHT.astype(np.int8),
            "a.weight_scale": np.float32(1),
            "a.comfy_quant": as_bytes({"format": "int8_tensorwise", "convrot": True}),
        },
        "it is in the format int8_tensorwise with convrot, which is not supported",
    ),
    "unknown format": (
        {"a.weight": WEIGHT.astype(np.uint8), "a.comfy_quant": as_bytes({"format": "nvfp4"})},
        "it is in the format nvfp4, which is not supported",
    ),
    "format as text": (
        {"a.weight": WEIGHT, "a.comfy_quant": as_bytes([1])},
        "its comfy_quant is not JSON with a format",
    ),
    "format as a list": (
        {"a.weight": WEIGHT.astype(np.uint8), "a.comfy_quant": as_bytes({"format": ["nvfp4"]})},
        "it is in the format ['nvfp4'], which is not supported",
    ),
    "another type": (
        {
            "a.weight": WEIGHT.astype(FP8["e5m2"]),
            "a.weight_scale": np.float32(1),
            "a.comfy_quant": as_bytes({"format": "float8_e4m3fn"}),
        },
        "it is float8_e5m2, but its comfy_quant specifies float8_e4m3fn",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_in_a_line(fault: str):
    tensors, expected = FAULTS[fault]
    text = refusal(tensors)
    assert expected in text
    assert "fetch the file again" in text


def test_lazies_are_arrays_to_numpy():
    asked = []

    def rows(wanted: slice) -> np.ndarray:
        asked.append((wanted.start, wanted.stop))
        return WEIGHT[wanted]

    lazy = Lazy((6, 5), WEIGHT.dtype, 30, "test", rows)
    assert asked == []
    np.testing.assert_array_equal(np.asarray(lazy, np.float64), WEIGHT.astype(np.float64))
    np.testing.assert_array_equal(lazy[1:-1], WEIGHT[1:-1])
    np.testing.assert_array_equal(lazy[4:2], WEIGHT[4:2])
    np.testing.assert_array_equal(lazy[::2], WEIGHT[::2])
    np.testing.assert_array_equal(lazy[:, 2], WEIGHT[:, 2])
    assert asked == [(0, 6), (1, 5), (4, 4), (0, 6), (0, 6)]
