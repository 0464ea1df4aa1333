"""The pipeline command: both directions, and its messages about unusable input."""

import filecmp
import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from helpers import tiny, warm

from convert.pipeline import convert
from flux_jax.errors import InputError
from flux_jax.pipeline import load
from flux_jax.tree import flatten, nest
from flux_jax.weights import sizes
from flux_jax.weights.checkpoint import read_params, write_params
from flux_jax.weights.safetensors_files import read_component
from flux_jax.weights.tables import COMPONENTS


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a pipeline by folder and name, without CLIP's optional prefix."""
    return {
        f"{name}:{key.removeprefix('text_model.')}": np.asarray(tensor)
        for name in COMPONENTS
        for key, tensor in read_component(folder / name).items()
    }


def assert_same_tensors(one: Path, two: Path):
    first, second = contents(one), contents(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.tobytes() == second[name].tobytes(), name


@pytest.fixture(scope="module")
def bfloat16_folder(tmp_path_factory, tiny_folder) -> Path:
    """The tiny pipeline with bfloat16 weights."""
    folder = tmp_path_factory.mktemp("tiny") / "bfloat16"
    pipeline = FluxPipeline.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("source", ["tiny_folder", "sharded_folder", "bfloat16_folder"])
def test_there_and_back_is_bit_exact(source, request, tmp_path):
    folder = request.getfixturevalue(source)
    convert(folder, tmp_path / "flax")
    convert(tmp_path / "flax", tmp_path / "again")
    assert_same_tensors(folder, tmp_path / "again")
    rest = {name for name in files(folder) if ".safetensors" not in name}
    assert {name for name in files(tmp_path / "flax") if "/checkpoint/" not in name} == rest
    for name in rest:
        assert filecmp.cmp(folder / name, tmp_path / "again" / name, shallow=False)
    assert {path.name for path in tmp_path.iterdir()} == {"flax", "again"}


@pytest.mark.slow
def test_diffusers_layout_comes_back_in_shards(tiny_folder, tmp_path):
    convert(tiny_folder, tmp_path / "flax")
    convert(tmp_path / "flax", tmp_path / "torch", shard_bytes=40_000)
    assert (tmp_path / "torch/transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    assert_same_tensors(tiny_folder, tmp_path / "torch")


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory) -> Path:
    """A bfloat16 pipeline, with FLUX.1's values where the original layout has no field for them."""
    folder = tmp_path_factory.mktemp("tiny") / "flux"
    tiny.build(folder, axes=sizes.ROPE_AXES, heads=1)
    pipeline = FluxPipeline.from_pretrained(folder, vae=tiny.vae(widths=(32, 64)))
    pipeline.vae.register_to_config(**sizes.VAE_FIXED)
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("through", ["diffusers", "flax"])
@pytest.mark.slow
def test_original_layout_there_and_back_is_bit_exact(through, flux_folder, tmp_path):
    convert(flux_folder, tmp_path / "original", to="original")
    assert {path.name for path in (tmp_path / "original").iterdir()} >= {
        "ae.safetensors", "flux1.safetensors", "text_encoder_2", "tokenizer", "scheduler"
    }  # fmt: skip
    assert not (tmp_path / "original" / "transformer").exists()
    convert(tmp_path / "original", tmp_path / "middle", to=through)
    last = tmp_path / "middle"
    if through == "flax":
        convert(last, tmp_path / "last")
        last = tmp_path / "last"
    assert_same_tensors(flux_folder, last)
    one, two = (FluxPipeline.from_pretrained(f) for f in (flux_folder, last))
    for name in COMPONENTS:
        first, second = (getattr(pipeline, name).state_dict() for pipeline in (one, two))
        assert first.keys() == second.keys()
        assert all(first[key].equal(second[key]) for key in first)
    convert(last, tmp_path / "original again", to="original")
    for name in ("ae.safetensors", "flux1.safetensors"):
        again = tmp_path / "original again" / name
        assert filecmp.cmp(tmp_path / "original" / name, again, shallow=False)


@pytest.mark.slow
def test_our_layout_loads_as_what_it_was_made_from(sharded_folder, tmp_path):
    convert(sharded_folder, tmp_path / "flax")
    one, two = load(sharded_folder), load(tmp_path / "flax")
    jax.tree.map(np.testing.assert_array_equal, dict(one.params), dict(two.params))
    kinds = {type(leaf) for leaf in jax.tree.leaves(dict(two.params))}
    assert kinds == {type(jax.numpy.zeros(1))}
    half = load(tmp_path / "flax", jax.numpy.bfloat16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(dict(half.params))} == {"bfloat16"}


@pytest.mark.slow
def test_diffusers_loads_what_came_back(tiny_folder, tmp_path):
    convert(tiny_folder, tmp_path / "flax")
    convert(tmp_path / "flax", tmp_path / "again")
    one, two = (FluxPipeline.from_pretrained(f) for f in (tiny_folder, tmp_path / "again"))
    for name in COMPONENTS:
        first, second = (getattr(pipeline, name).state_dict() for pipeline in (one, two))
        assert first.keys() == second.keys()
        assert all(first[key].equal(second[key]) for key in first)


def test_other_layouts_and_hidden_files_are_left_and_the_rest_is_copied(tiny_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_folder, source)
    for name in ("LICENSE", "judge/weights.safetensors", "flux1-dev.safetensors", ".git/HEAD"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("text")
    convert(source, tmp_path / "flax")
    copied = files(tmp_path / "flax")
    assert {"LICENSE", "judge/weights.safetensors"} <= copied
    assert not {"flux1-dev.safetensors", ".git/HEAD"} & copied


def edit_transformer(folder: Path, **changes):
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_config_of_another_depth_counts_surplus_tensors(tiny_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_folder, source)
    edit_transformer(source, num_layers=1, guidance_embeds=False)
    with pytest.raises(InputError) as caught:
        convert(source, tmp_path / "new")
    said = str(caught.value)
    assert said.startswith(f"{source / 'transformer'}: 36 tensors do not fit: surplus: ")
    assert len(said) <= 400
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.slow
def test_flax_weights_that_do_not_fit_are_listed(tiny_folder, tmp_path):
    source = tmp_path / "flax"
    convert(tiny_folder, source)
    folder = source / "transformer"
    flat = flatten(read_params(folder))
    flat["proj_out/bias"] = np.zeros(3, np.float32)
    flat["dual_blocks/extra"] = flat.pop("x_embedder/bias")
    shutil.rmtree(folder / "checkpoint")
    write_params(folder, nest(flat))
    with pytest.raises(InputError) as caught:
        convert(source, tmp_path / "new")
    with pytest.raises(InputError) as again:
        load(source)
    assert str(again.value).split("; ")[0] == str(caught.value).split("; ")[0]
    message = str(caught.value)
    assert "missing: x_embedder/bias [32]" in message
    assert "misshapen: proj_out/bias is [3], expected [16]" in message
    assert "surplus: dual_blocks/extra [32]" in message


def test_target_inside_source_is_refused(tiny_folder):
    with pytest.raises(InputError, match="is inside SRC"):
        convert(tiny_folder, tiny_folder / "flax")
    assert not (tiny_folder / "flax").exists()


@pytest.mark.slow
def test_every_model_is_read_in_its_own_layout(tiny_folder, tmp_path):
    convert(tiny_folder, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "vae")
    shutil.copytree(tiny_folder / "vae", tmp_path / "mixed" / "vae")
    convert(tmp_path / "mixed", tmp_path / "again")
    assert_same_tensors(tiny_folder, tmp_path / "again")


@pytest.mark.slow
def test_a_checkpoint_that_is_not_whole_is_refused(tiny_folder, tmp_path):
    convert(tiny_folder, tmp_path / "flax")
    shutil.copytree(tmp_path / "flax", tmp_path / "cut")
    (tmp_path / "cut/vae/checkpoint/_METADATA").unlink()
    with pytest.raises(
        InputError, match=r"vae/checkpoint: not a complete checkpoint .*convert the"
    ):
        load(tmp_path / "cut")
    for file in (tmp_path / "flax/vae/checkpoint/ocdbt.process_0/d").iterdir():
        file.unlink()
    # In a subprocess: after an error, Orbax's unread arrays remain in memory.
    result = command(tmp_path / "flax", tmp_path / "new")
    assert result.returncode == 2
    assert "vae/checkpoint: damaged; convert the model again" in result.stderr
    assert not (tmp_path / "new").exists()


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return warm.run("-m", "convert.pipeline", *arguments)


@pytest.mark.slow
def test_command_converts(tiny_folder, tmp_path):
    result = command(tiny_folder, tmp_path / "new" / "flax")
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'new' / 'flax'}\n")
    assert (tmp_path / "new" / "flax" / "transformer" / "checkpoint").is_dir()
    result = command(tmp_path / "new" / "flax", tmp_path / "original", "--to", "original")
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'original'}\n")
    assert (tmp_path / "original" / "flux1.safetensors").is_file()


def missing_folder(folder: Path):
    shutil.rmtree(folder)
    return "source' does not exist; check the path"


def no_pipeline(folder: Path):
    (folder / "model_index.json").write_text("FluxPipeline")
    return "model_index.json is not JSON"


def another_pipeline(folder: Path):
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return "this is Stable Diffusion (model_index.json says 'StableDiffusionPipeline')"


def missing_component(folder: Path):
    shutil.rmtree(folder / "vae")
    return "no weights of the vae; expected a folder vae"


def truncated(folder: Path):
    file = folder / "text_encoder_2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return f"{file}: truncated or not a safetensors file"


@pytest.mark.parametrize(
    "spoil", [missing_folder, no_pipeline, another_pipeline, missing_component, truncated]
)
def test_unusable_source_ends_with_a_message_and_code_2(spoil, tiny_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_folder, source)
    told = spoil(source)
    result = command(source, tmp_path / "new")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"source"}


def test_existing_target_is_not_touched(tiny_folder, tmp_path):
    (tmp_path / "mine").write_text("precious")
    result = command(tiny_folder, tmp_path)
    assert result.returncode == 2
    assert "exists; choose another DST" in result.stderr
    assert files(tmp_path) == {"mine"}
