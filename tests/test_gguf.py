"""GGUF files: values against diffusers' decoder, names against PyTorch's files."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import dequantize_functions
from gguf import GGMLQuantizationType as Kind
from helpers import tiny
from helpers.quantising import write_gguf

from flux_jax.errors import InputError
from flux_jax.weights.quantized.formats import dequantised, quantisation
from flux_jax.weights.quantized.gguf_files import T5_BLOCK
from flux_jax.weights.safetensors_files import read_file

MATRIX = np.random.default_rng(1).normal(size=(5, 512)).astype(np.float32)
NAME = "double_blocks.0.img_mlp.0.weight"
BLOCKS = [
    Kind[name]
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
]


def as_diffusers_decodes(file: Path, kind: Kind) -> np.ndarray:
    (tensor,) = gguf.GGUFReader(file).tensors
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = torch.from_numpy(np.array(tensor.data)).reshape(-1, size)
    numbers = dequantize_functions[kind](blocks, block, size, torch.float32)
    return numbers.reshape(*reversed(tensor.shape.tolist())).numpy()


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_blocks_are_what_diffusers_decodes(kind: Kind, tmp_path: Path):
    file = tmp_path / "model.gguf"
    write_gguf(file, {NAME: MATRIX}, lambda *_: kind)
    (tensor,) = read_file(file).values()
    expected = as_diffusers_decodes(file, kind)
    assert (tensor.shape, tensor.dtype) == (MATRIX.shape, np.float32)
    assert (
        tensor.nbytes
        == MATRIX.size // gguf.GGML_QUANT_SIZES[kind][0] * (gguf.GGML_QUANT_SIZES[kind][1])
    )
    numbers = np.asarray(tensor)
    # diffusers multiplies some scales in half precision.
    assert np.abs(numbers - expected).max() <= 1e-3 * np.abs(expected).max()
    np.testing.assert_array_equal(tensor[1:4], numbers[1:4])
    if not kind.name.endswith("_K"):
        assert np.abs(numbers - MATRIX).max() <= 0.35


def test_8_bits_are_a_scale_times_whole_numbers(tmp_path: Path):
    file = tmp_path / "model.gguf"
    write_gguf(file, {NAME: MATRIX}, lambda *_: Kind.Q8_0)
    (tensor,) = gguf.GGUFReader(file).tensors
    stored = np.array(tensor.data).reshape(-1, 34)
    scales = stored[:, :2].copy().view(np.float16).astype(np.float32)
    expected = (stored[:, 2:].view(np.int8) * scales).reshape(MATRIX.shape)
    np.testing.assert_array_equal(np.asarray(read_file(file)[NAME]), expected)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
def test_floats_keep_their_types(kind: Kind, tmp_path: Path):
    file = tmp_path / "model.gguf"
    plain = write_gguf(file, {NAME: MATRIX, "norm.scale": MATRIX[0]}, lambda *_: kind)
    tensors = read_file(file)
    types = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    for name, expected in plain.items():
        assert tensors[name].dtype.name == types[kind.name]
        assert tensors[name].nbytes == expected.size * tensors[name].dtype.itemsize
        np.testing.assert_array_equal(np.asarray(tensors[name]).astype(np.float32), expected)
        np.testing.assert_array_equal(tensors[name][1:3].astype(np.float32), expected[1:3])
    assert quantisation(tensors) == "GGUF"
    assert dequantised(tensors) == tensors


def test_shapes_that_were_changed_for_the_blocks_come_back(tmp_path: Path):
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "flux")
    stored = gguf.quantize(MATRIX, Kind.Q8_0)
    writer.add_tensor("a.weight", stored, raw_dtype=Kind.Q8_0)
    writer.add_array("comfy.gguf.orig_shape.a.weight", [40, 64])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_file(file)["a.weight"]
    expected = gguf.dequantize(stored, Kind.Q8_0).reshape(40, 64)
    assert tensor.shape == (40, 64)
    np.testing.assert_array_equal(np.asarray(tensor), expected)
    np.testing.assert_array_equal(tensor[3:17], expected[3:17])


def as_llama_cpp_names(name: str) -> str:
    for theirs, part in T5_BLOCK.items():
        head, _, tail = name.partition(f".layer.{part}.")
        if tail:
            return f"{head.replace('encoder.block', 'enc.blk')}.{theirs}.{tail}"
    return {
        "shared.weight": "token_embd.weight",
        "encoder.final_layer_norm.weight": "enc.output_norm.weight",
    }[name]


def test_t5_has_the_names_that_transformers_gives(tmp_path: Path):
    state = {name: value.numpy() for name, value in tiny.t5(50, width=32).state_dict().items()}
    state.pop("encoder.embed_tokens.weight", None)
    file = tmp_path / "t5xxl-encoder.gguf"
    theirs = {as_llama_cpp_names(name): value for name, value in state.items()}
    # From gguf's own table of names, for the parts of T5's encoder that it covers.
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)
    for name in state:
        assert table.get_name(name, (".weight",)) == as_llama_cpp_names(name)
    write_gguf(file, theirs, lambda *_: Kind.F16, "t5encoder")
    tensors = read_file(file)
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(np.asarray(tensors[name]), value.astype(np.float16))


def refusal(file: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_file(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert "\n" not in text
    assert len(text) <= 400
    return text


def test_damaged_files_are_refused_in_a_line(tmp_path: Path):
    file = tmp_path / "model.gguf"
    assert "no such file" in refusal(file)
    write_gguf(file, {NAME: MATRIX, "norm.scale": MATRIX[0]}, lambda *_: Kind.F32)
    whole = file.read_bytes()
    for end in (0, 3, 4, 10, 24, 40, 100, 150, len(whole) // 2, len(whole) - 2049):
        file.write_bytes(whole[:end])
        assert "truncated or not a GGUF file" in refusal(file)
        assert "copy or download it again" in refusal(file)
    for text in (b"version https://git-lfs.github.com/spec/v1\n", bytes(100), b"GGUF" * 99):
        file.write_bytes(text)
        assert "truncated or not a GGUF file" in refusal(file)
    file.write_bytes(b"GGUF\x03\0\0\0" + bytes(64))
    assert "holds no tensors" in refusal(file)


def test_random_bytes_in_the_header_end_in_a_line(tmp_path: Path):
    file = tmp_path / "model.gguf"
    write_gguf(file, {NAME: MATRIX, "norm.scale": MATRIX[0]}, lambda *_: Kind.F32)
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    refusals = []
    for _ in range(60):
        changed = bytearray(whole)
        for place in random.integers(0, 200, 3):
            changed[place] = random.integers(0, 256)
        file.write_bytes(changed)
        try:
            for tensor in read_file(file).values():
                np.asarray(tensor)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert max(map(len, refusals)) <= 400
    assert not any("\n" in text for text in refusals)


def test_files_of_other_machines_are_refused(tmp_path: Path):
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "flux", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor(NAME, MATRIX)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "in big-endian byte order; take a little-endian file" in refusal(file)


def test_without_the_package_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "flux1-dev-Q4_K_S.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "GGUF files need the package gguf; install it: pip install gguf" in refusal(file)


def test_sizes_are_bounded_before_the_file_is_read(tmp_path: Path):
    file = tmp_path / "model.gguf"
    write_gguf(file, {NAME: MATRIX}, lambda *_: Kind.Q8_0)
    whole = file.read_bytes()
    # A key "a" with an array of texts, or of arrays.
    key = (1).to_bytes(8, "little") + b"a" + (9).to_bytes(4, "little")
    for content, problem in (
        (whole[:8] + (10**6).to_bytes(8, "little") + whole[16:], "1,000,000 tensors"),
        (whole[:16] + (10**9).to_bytes(8, "little") + whole[24:], "1,000,000,000 keys"),
        (whole[:16] + b"\1" + bytes(7) + key + b"\x08\0\0\0" + b"\xff" * 8, "entries in arrays"),
        (whole[:16] + b"\1" + bytes(7) + key + b"\x09\0\0\0" + bytes(8), "arrays of arrays"),
        (whole[:20], "truncated or not a GGUF file"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=problem):
            read_file(file)
