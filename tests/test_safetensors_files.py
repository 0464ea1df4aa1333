"""Weight files: written as libraries write them, read back exactly, refused if damaged."""

import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from helpers import tiny
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from flux_jax.errors import InputError
from flux_jax.weights.safetensors_files import (
    TYPES,
    read_component,
    read_file,
    write_component,
    write_file,
)


@pytest.mark.parametrize("shard_bytes", [10**9, 300, 1])
def test_written_weights_are_read_back_exactly(tmp_path, shard_bytes):
    generator = np.random.default_rng(0)
    tensors = {
        "a.transposed": generator.normal(size=(3, 5)).astype(np.float32).T,
        "b.bfloat16": generator.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "c.integers": np.arange(4),
        "d.scalar": np.array(2.5, np.float16),
    }
    write_component(tmp_path, tensors, "model", {"format": "pt"}, shard_bytes)
    again = read_component(tmp_path)
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        array = np.asarray(again[name])
        assert (array.dtype, array.shape) == (tensor.dtype, again[name].shape)
        np.testing.assert_array_equal(array, tensor)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_torch_reads_shards_as_written(tmp_path):
    model = tiny.transformer(dual=1, single=1)
    model.save_config(tmp_path)
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    write_component(
        tmp_path, tensors, "diffusion_pytorch_model", {"format": "pt"}, shard_bytes=50_000
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = type(model).from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(again[name], value), name


def test_rewriting_leaves_no_shards_of_the_past(tmp_path):
    tensors = {"a": np.zeros(8), "b": np.ones(8)}
    for shard_bytes in (64, 10**9, 64):
        write_component(tmp_path, tensors, "model", {}, shard_bytes)
        assert set(read_component(tmp_path)) == {"a", "b"}
        assert len(list(tmp_path.iterdir())) == (1 if shard_bytes > 64 else 3)


def refusal(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    return str(caught.value)


def sharded(folder: Path) -> Path:
    write_component(folder, {"a": np.zeros(8), "b": np.ones(8)}, "model", {}, 64)
    return folder / "model.safetensors.index.json"


def test_missing_folder_weights_and_shard_are_named(tmp_path):
    assert "nowhere: no such folder" in refusal(lambda: read_component(tmp_path / "nowhere"))
    assert "no weights; expected diffusion_pytorch_model.safetensors or model" in refusal(
        lambda: read_component(tmp_path)
    )
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    message = refusal(lambda: read_component(tmp_path))
    assert "missing shards model-00002-of-00002.safetensors; copy or download" in message


def test_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    index = sharded(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["c"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    said = refusal(lambda: read_component(tmp_path))
    assert "1 tensor is not in its shard: c (model-00001-of-00002.safetensors); copy" in said
    content["weight_map"] = {"a": "../a.safetensors"}
    write_file(tmp_path.parent / "a.safetensors", {"a": np.zeros(1)}, {})
    index.write_text(json.dumps(content))
    said = refusal(lambda: read_component(tmp_path))
    assert "missing shards ../a.safetensors; copy or download them beside the index" in said
    index.write_text("{")
    assert "model.safetensors.index.json: not an index" in refusal(lambda: read_component(tmp_path))


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_file_is_named_with_a_mend(tmp_path, kept):
    file = tmp_path / "model.safetensors"
    write_file(file, {"a": np.arange(100.0)}, {"format": "pt"})
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(lambda: read_component(tmp_path))
    assert str(file) in message
    assert "truncated or not a safetensors file" in message
    assert "copy or download it again" in message


def test_pointer_in_place_of_weights_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "not a safetensors file" in refusal(lambda: read_file(file))


def test_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "model.safetensors"
    write_file(file, {"a": np.arange(3.0)}, {})
    with pytest.raises(Exception, match="complex"):
        write_file(file, {"a": np.zeros(3, np.complex128), "b": np.array(["text"])}, {})
    assert list(load_file(file)) == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", TYPES)
def test_files_are_what_the_library_writes_and_reads(name, tmp_path):
    values = np.arange(24).reshape(2, 3, 4) % 2
    tensors = {"b": values.astype(jnp.dtype(name)), "a": values[0, 0].astype(jnp.dtype(name))}
    write_file(
        tmp_path / "ours.safetensors", {"c": values.astype("i1"), **tensors}, {"format": "x"}
    )
    torch_read = load_torch(tmp_path / "ours.safetensors")
    save_torch({key: torch_read[key] for key in "abc"}, tmp_path / "theirs.safetensors")
    for file in ("ours.safetensors", "theirs.safetensors"):
        read = read_file(tmp_path / file)
        assert list(read) == ["a", "b", "c"]
        for key, tensor in tensors.items():
            assert read[key].dtype == tensor.dtype
            np.testing.assert_array_equal(read[key], tensor)
    with safe_open(tmp_path / "ours.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "x"}


def test_types_without_a_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="x is complex64, which safetensors files cannot store"):
        write_file(tmp_path / "no.safetensors", {"x": np.ones(2, np.complex64)}, {})
    assert not any(tmp_path.iterdir())
    write_file(tmp_path / "empty.safetensors", {}, {})
    assert read_file(tmp_path / "empty.safetensors") == {}
