"""Adapters merged into a model's files: refusals and their messages."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import tiny
from helpers.merging import PARTS, originals_in, pair_in, write_adapter
from safetensors.numpy import load_file, save_file

from convert.adapters.files import FLAX, read_adapter, read_layers, write_layers, write_lora
from convert.merge import merge
from convert.pipeline import convert as convert_pipeline
from flux_jax.errors import InputError
from flux_jax.tree import flatten, nest
from flux_jax.weights.safetensors_files import read_file


@pytest.fixture(scope="module")
def pair(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, float]]:
    """Two adapters with strengths, one of which has every target; read-only."""
    return pair_in(tmp_path_factory.mktemp("adapters"), tiny_folder)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bfloat16 pipeline in diffusers' layout and with single files; read-only."""
    return originals_in(tmp_path_factory.mktemp("original"))


def refused(model: Path, adapters: list[str], target: Path) -> str:
    """The message of a refusal; no file may be left behind."""
    before = {path.name for path in target.parent.iterdir()}
    with pytest.raises(InputError) as caught:
        merge(str(model), adapters, target)
    assert {path.name for path in target.parent.iterdir()} == before
    return str(caught.value)


@pytest.mark.slow
def test_the_first_fault_is_told_and_how_many_more_there_are(tiny_folder, pair, tmp_path):
    (every, _), (parts, _) = pair
    read = read_adapter(parts)
    write_layers(tmp_path / "copy", FLAX, read_layers(parts).layers)
    flat = {path: leaf.copy() for path, leaf in flatten(read.lora).items()}
    flat["dual_blocks/attn/to_k/B"][1, 0, 3] = np.nan
    write_lora(tmp_path / "nan.safetensors", nest(flat), 2.0)
    write_lora(tmp_path / "endless.safetensors", read.lora, float("inf"))
    faults = {
        f"{every}:nan": "the strength 'nan' is not a finite number",
        f"{every}:strong": "the strength 'strong' is not a finite number",
        f"{tmp_path}/nowhere:0.5": "nowhere' does not exist",
        f"{tmp_path}/nan.safetensors": "transformer_blocks.1.attn.to_k has infinities",
        f"{tmp_path}/endless.safetensors:2": "inf; it must be a finite number",
    }
    for adapter, message in faults.items():
        assert message in refused(tiny_folder, [adapter], tmp_path / "new")
    said = refused(tiny_folder, [*faults, str(every)], tmp_path / "new")
    assert "the strength 'nan' is not a finite number" in said
    assert said.endswith("; 4 more adapters cannot be used either")
    assert "\n" not in said
    twice = [f"{parts}:0.5", f"{tmp_path}/copy:0.25"]
    said = refused(tiny_folder, twice, tmp_path / "new")
    assert f"{twice[0]} and {twice[1]} are the same adapter; give it once, as {parts}:0.75" in said


def test_adapters_of_other_architectures_are_named(tiny_folder, pair, tmp_path):
    other = tiny.build(tmp_path / "other", dual=1, heads=3)
    write_adapter(tmp_path / "one", other, PARTS[:2], seed=0)
    adapters = [str(pair[1][0]), f"{tmp_path}/one:0.5"]
    said = refused(tiny_folder, adapters, tmp_path / "new")
    assert f"{tmp_path}/one was made for another architecture" in said
    assert "to_k [1, 48, 48] has [2, 32, 32] there" in said
    assert "\n" not in said


def test_a_block_that_the_model_has_not_is_named_by_its_number(tiny_folder, pair, tmp_path):
    layers = read_layers(pair[1][0]).layers
    beyond = {(target, 99): layer for (target, block), layer in layers.items() if block == 0}
    write_layers(tmp_path / "far", "diffusers", beyond)
    said = refused(tiny_folder, [str(tmp_path / "far")], tmp_path / "new")
    assert f"{tmp_path}/far changes block 99: the model has 2 double blocks" in said
    assert "architecture" not in said


def test_pickles_are_all_named_and_not_opened(tmp_path):
    said = refused(
        tmp_path / "flux.ckpt", [f"{tmp_path}/a.bin", "b.pt:0.5", "c.pth"], tmp_path / "new"
    )
    assert f"{tmp_path}/flux.ckpt, {tmp_path}/a.bin, b.pt:0.5, c.pth: pickles can run" in said


@pytest.mark.slow
def test_models_and_targets_that_do_not_fit_are_refused(tiny_folder, originals, pair, tmp_path):
    adapter = [str(pair[1][0])]
    convert_pipeline(tiny_folder, tmp_path / "flax")
    said = refused(tmp_path / "flax", adapter, tmp_path / "new")
    assert f"erase-anything convert pipeline {tmp_path / 'flax'} DST" in said
    (tmp_path / "mine").mkdir()
    assert "mine exists; choose another OUT" in refused(tiny_folder, adapter, tmp_path / "mine")
    assert "does not exist" in refused(tmp_path / "nowhere", adapter, tmp_path / "new")
    assert "is inside MODEL" in refused(tiny_folder, adapter, tiny_folder / "new")
    file = originals[1] / "flux1.safetensors"
    assert "end its name in .safetensors" in refused(file, adapter, tmp_path / "new")
    folder = tmp_path / "new.safetensors"
    assert "name it without .safetensors" in refused(originals[1], adapter, folder)


def test_sums_beyond_a_type_and_whole_numbers_are_listed_and_leave_nothing(
    originals, pair, tiny_folder, tmp_path
):
    adapter = write_adapter(tmp_path / "adapter", originals[0], ["dual_blocks/attn/to_k"])
    tensors = load_file(originals[1] / "flux1.safetensors")
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(half, tmp_path / "half.safetensors")
    said = refused(tmp_path / "half.safetensors", [f"{adapter}:1e7"], tmp_path / "a.safetensors")
    names = [f"double_blocks.{block}.img_attn.qkv.weight" for block in (0, 1)]
    assert f"half.safetensors: not finite after merging: {', '.join(names)}; use smaller" in said

    name = "double_blocks.1.img_attn.qkv.weight"
    save_file(half | {name: half[name].astype(np.int8)}, tmp_path / "int.safetensors")
    said = refused(tmp_path / "int.safetensors", [str(adapter)], tmp_path / "a.safetensors")
    assert f"{name} is int8; take the model in bfloat16" in said

    small = {key: tensor.astype(ml_dtypes.float8_e4m3fn) for key, tensor in tensors.items()}
    save_file(small, tmp_path / "small.safetensors")
    merge(f"{tmp_path}/small.safetensors", [str(adapter)], tmp_path / "a.safetensors")
    found = read_file(tmp_path / "a.safetensors")[name]
    assert found.dtype == small[name].dtype
    assert (found != small[name]).any()


def test_a_shard_is_no_model(sharded_folder, tiny_folder, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", tiny_folder, PARTS)
    shard = next((sharded_folder / "transformer").glob("*-00001-of-*.safetensors"))
    with pytest.raises(
        InputError, match=r"is one of \d+ files of the transformer; give the folder"
    ):
        merge(str(shard), [str(adapter)], tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()
