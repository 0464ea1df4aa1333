"""Adapters merged into a model's files: the changes, and what stays unchanged."""

import filecmp
import json
import shutil
import subprocess
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from helpers import tiny, warm
from helpers.merging import PARTS, originals_in, pair_in, write_adapter
from safetensors.numpy import load_file, save_file

import convert.merge
from convert.adapters.files import read_adapter
from convert.merge import merge
from convert.pipeline import convert as convert_pipeline
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline, load
from flux_jax.tree import flatten, nest
from flux_jax.weights.mapping import to_torch
from flux_jax.weights.safetensors_files import open_safetensors, read_component, write_component
from flux_jax.weights.tables import TRANSFORMER

SINGLE = Path("transformer", "diffusion_pytorch_model.safetensors")


def changes(*adapters: tuple[Path, float]) -> dict[str, np.ndarray]:
    """Changes by adapters, in float64, under diffusers' names of the tensors."""
    total: dict[str, Any] = {}
    for path, strength in adapters:
        read = read_adapter(path)
        flat = {name: leaf.astype(np.float64) for name, leaf in flatten(read.lora).items()}
        for target in {name.rpartition("/")[0] for name in flat}:
            A, B = flat[f"{target}/A"], flat[f"{target}/B"]
            added = strength * read.alpha / A.shape[-1] * (A @ B)
            total[f"{target}/kernel"] = total.get(f"{target}/kernel", 0) + added
    return to_torch(TRANSFORMER, nest(total))


def given(*adapters: tuple[Path, float]) -> list[str]:
    return [f"{path}:{strength}" for path, strength in adapters]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pair(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, float]]:
    """Two adapters with strengths, one of which has every target; read-only."""
    return pair_in(tmp_path_factory.mktemp("adapters"), tiny_folder)


@pytest.fixture(scope="module")
def merged_folder(tiny_folder, pair, tmp_path_factory) -> Path:
    """The tiny pipeline with both merged; read-only."""
    folder = tmp_path_factory.mktemp("merged") / "pipeline"
    merge(str(tiny_folder), given(*pair), folder)
    return folder


@pytest.fixture(scope="module")
def bfloat16_folder(tiny_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "bfloat16"
    FluxPipeline.from_pretrained(tiny_folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> tuple[Path, Path]:
    """A bfloat16 pipeline in diffusers' layout and with single files; read-only."""
    return originals_in(tmp_path_factory.mktemp("original"))


def velocity(pipe: Pipeline, adapters=()) -> np.ndarray:
    latents = pipe.noise([0, 1], 16, 16)
    conditioning = pipe.encode(["a red apple", "a dog"])
    timestep = np.array([0.9, 0.2], np.float32)
    return np.asarray(
        pipe.velocity(latents, conditioning, timestep, pipe.image_ids(16, 16), 3.5, adapters)
    )


def adapters_of(pair: list[tuple[Path, float]]) -> list[tuple[Adapter, float]]:
    read = [(read_adapter(path), strength) for path, strength in pair]
    return [(Adapter(file.lora, file.alpha), strength) for file, strength in read]


@pytest.mark.slow
def test_a_merged_model_is_the_base_with_its_adapters(tiny_folder, merged_folder, pair):
    base, merged, adapters = load(tiny_folder), load(merged_folder), adapters_of(pair)
    wanted, plain = velocity(base, adapters), velocity(base)
    assert np.abs(wanted - plain).max() > 0.05 * np.abs(plain).max()
    np.testing.assert_allclose(velocity(merged), wanted, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.slow
def test_a_merged_model_draws_what_the_base_draws_with_adapters(tiny_folder, merged_folder, pair):
    base, merged = load(tiny_folder), load(merged_folder)
    settings: dict[str, Any] = {"steps": 2, "height": 16, "width": 16}
    prompts = ["a red apple", "a dog"]
    drawn = base(prompts, adapters=adapters_of(pair), **settings).astype(int)
    np.testing.assert_allclose(merged(prompts, **settings), drawn, atol=1)
    assert np.abs(base(prompts, **settings) - drawn).max() > 1


@pytest.mark.slow
def test_the_shipped_model_draws_the_same_merged(tmp_path):
    wide = tmp_path / "wide"
    shutil.copytree(tiny.SHIPPED, wide)
    tensors = read_component(tiny.SHIPPED / "transformer")
    floats = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    write_component(wide / "transformer", floats, SINGLE.stem, {"format": "pt"})
    adapter = write_adapter(tmp_path / "adapter", tiny.SHIPPED, rank=8, alpha=8.0)
    settings: dict[str, Any] = {"steps": 2, "height": 64, "width": 64}
    prompts = ["a photo of an airplane", "a panda to the left of a banana"]
    base = load(tiny.SHIPPED)
    drawn = base(prompts, adapters=adapters_of([(adapter, 0.5)]), **settings).astype(int)
    effect = np.abs(base(prompts, **settings) - drawn)
    assert effect.mean() > 5
    for name, folder, most in (("float32", wide, 0.01), ("bfloat16", tiny.SHIPPED, 0.5)):
        merge(str(folder), [f"{adapter}:0.5"], tmp_path / name)
        difference = np.abs(load(tmp_path / name)(prompts, **settings) - drawn)
        # In bfloat16 the sum is rounded, which an adapter beside the weights is not.
        assert difference.mean() < most, name


@torch.no_grad()
def test_diffusers_finds_in_a_merged_folder_what_it_adds_itself(tiny_folder, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", tiny_folder, rank=3, alpha=4.5)
    merge(str(tiny_folder), [str(adapter)], tmp_path / "merged")
    theirs = FluxPipeline.from_pretrained(tiny_folder)
    theirs.load_lora_weights(adapter)
    merged = FluxPipeline.from_pretrained(tmp_path / "merged")
    rng = torch.Generator().manual_seed(0)
    ids = torch.zeros(6, 3)
    ids[:, 1] = torch.arange(6)
    inputs = dict(
        hidden_states=torch.randn(1, 6, 16, generator=rng),
        encoder_hidden_states=torch.randn(1, 5, 24, generator=rng),
        pooled_projections=torch.randn(1, 16, generator=rng),
        timestep=torch.tensor([0.7]),
        img_ids=ids,
        txt_ids=torch.zeros(5, 3),
        guidance=torch.tensor([3.5]),
    )
    wanted = theirs.transformer(**inputs).sample
    found = merged.transformer(**inputs).sample
    assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    theirs.unload_lora_weights()
    assert (theirs.transformer(**inputs).sample - wanted).abs().max() > 0.05 * wanted.abs().max()


def test_kernels_get_their_sum_rounded_once_and_the_rest_keeps_its_bytes(
    tiny_folder, bfloat16_folder, pair, tmp_path
):
    parts = pair[1:]
    added = changes(*parts)
    assert len(added) == 2 + 2 + 3
    for base, half in ((tiny_folder, 2.0**-24), (bfloat16_folder, 2.0**-8)):
        merge(str(base), given(*parts), tmp_path / base.name)
        before, after = (
            read_component(each / "transformer") for each in (base, tmp_path / base.name)
        )
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype
            if name in added:
                wanted = tensor.astype(np.float64) + added[name]
                # Half a step of the dtype, plus float32's rounding of a product and a sum.
                size = np.abs(tensor.astype(np.float64)) + np.abs(added[name])
                bound = half * np.abs(wanted) + 2.0**-23 * size + 1e-8
                assert (np.abs(after[name].astype(np.float64) - wanted) <= bound).all(), name
                assert (np.abs(after[name].astype("f4") - tensor.astype("f4")) > 0).mean() > 0.5
            else:
                assert after[name].tobytes() == tensor.tobytes(), name
    assert {str(tensor.dtype) for tensor in after.values()} == {"bfloat16"}


@pytest.mark.slow
def test_single_files_get_what_diffusers_layout_gets(originals, tmp_path):
    diffusers, single = originals
    adapter = write_adapter(tmp_path / "adapter", diffusers, PARTS)
    merge(str(diffusers), [str(adapter)], tmp_path / "diffusers")
    merge(str(single), [str(adapter)], tmp_path / "original")
    convert_pipeline(tmp_path / "diffusers", tmp_path / "wanted", to="original")
    wanted = load_file(tmp_path / "wanted" / "flux1.safetensors")
    found = load_file(tmp_path / "original" / "flux1.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].tobytes() == tensor.tobytes(), name
    # In a tensor of several parts, rows of other parts keep their bytes.
    name, width = "double_blocks.1.img_attn.qkv.weight", 128
    before = load_file(single / "flux1.safetensors")[name]
    changed = (found[name] != before).mean(axis=1) > 0.5
    assert changed.tolist() == [False] * width + [True] * width + [False] * width
    assert files(tmp_path / "original") == files(single)
    assert filecmp.cmp(single / "ae.safetensors", tmp_path / "original" / "ae.safetensors", False)
    load(tmp_path / "original")

    merge(str(single / "flux1.safetensors"), [str(adapter)], tmp_path / "flux.safetensors")
    file = tmp_path / "original" / "flux1.safetensors"
    assert filecmp.cmp(file, tmp_path / "flux.safetensors", shallow=False)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_bundled_names_and_models_stay(originals, tmp_path, prefix):
    plain = load_file(originals[1] / "flux1.safetensors")
    adapter = write_adapter(tmp_path / "adapter", originals[0], PARTS)
    beside = {f"vae.{k}": v for k, v in load_file(originals[1] / "ae.safetensors").items()}
    bundled = {f"{prefix}{name}": tensor for name, tensor in plain.items()}
    save_file(bundled | beside, tmp_path / "all.sft", {"format": "pt", "title": "flux"})
    merge(str(tmp_path / "all.sft"), [str(adapter)], tmp_path / "new.sft")
    merge(str(originals[1] / "flux1.safetensors"), [str(adapter)], tmp_path / "b.safetensors")
    wanted, found = load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "new.sft")
    assert found.keys() == bundled.keys() | beside.keys()
    assert all(found[f"{prefix}{n}"].tobytes() == t.tobytes() for n, t in wanted.items())
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in beside.items())
    assert any(found[n].tobytes() != t.tobytes() for n, t in bundled.items())
    assert open_safetensors(tmp_path / "new.sft").metadata() == {
        "format": "pt", "title": "flux", "merged_adapters": f"{adapter}:1.0"
    }  # fmt: skip


def test_the_transformers_folder_alone_is_merged(tiny_folder, merged_folder, pair, tmp_path):
    merge(str(tiny_folder / "transformer"), given(*pair), tmp_path / "new")
    assert files(tmp_path / "new") == files(tiny_folder / "transformer")
    wanted, found = (
        read_component(each) for each in (merged_folder / "transformer", tmp_path / "new")
    )
    assert wanted.keys() == found.keys()
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in wanted.items())


def test_shards_stay_shards_with_their_index(sharded_folder, merged_folder, pair, tmp_path):
    merge(str(sharded_folder), given(*pair), tmp_path / "new")
    assert files(tmp_path / "new") == files(sharded_folder)
    name = f"{SINGLE}.index.json"
    assert filecmp.cmp(sharded_folder / name, tmp_path / "new" / name, shallow=False)
    places = json.loads((tmp_path / "new" / name).read_text())["weight_map"]
    assert len(set(places.values())) > 2
    wanted = read_component(merged_folder / "transformer")
    for shard in set(places.values()):
        tensors = load_file(tmp_path / "new" / "transformer" / shard)
        assert tensors.keys() == {name for name, place in places.items() if place == shard}
        assert all(tensors[key].tobytes() == wanted[key].tobytes() for key in tensors)
        said = open_safetensors(tmp_path / "new" / "transformer" / shard).metadata()
        assert said == {"format": "pt", "merged_adapters": ", ".join(given(*pair))}


def test_strengths_add_up_over_several_merges(tiny_folder, pair, tmp_path):
    (every, _), (parts, _) = pair
    merge(str(tiny_folder), [f"{every}:0.5", f"{parts}:2"], tmp_path / "one")
    merge(str(tmp_path / "one"), [f"{every}:0.25"], tmp_path / "two")
    merge(str(tiny_folder), [f"{parts}:2", f"{every}:0.75"], tmp_path / "at once")
    two, once = (read_component(tmp_path / n / "transformer") for n in ("two", "at once"))
    base = read_component(tiny_folder / "transformer")
    for name, tensor in once.items():
        np.testing.assert_allclose(two[name], tensor, atol=1e-6)
    assert sum((once[name] != base[name]).any() for name in base) == len(changes((every, 1)))
    said = open_safetensors(tmp_path / "two" / SINGLE).metadata()["merged_adapters"]
    assert said == f"{every}:0.5, {parts}:2.0, {every}:0.25"


def test_a_folder_is_complete_without_the_unmerged_transformer(originals, tmp_path):
    diffusers, single = originals
    source = tmp_path / "source"
    convert_pipeline(diffusers, tmp_path / "again", to="diffusers")
    (tmp_path / "again").rename(source)
    (source / "flux1-dev.safetensors").write_bytes((single / "flux1.safetensors").read_bytes())
    (source / "ae.safetensors").write_bytes((single / "ae.safetensors").read_bytes())
    for name in (".git/HEAD", "LICENSE", "notes/pointer.bin", "pointer.safetensors"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("text")
    for name in ("fp16.safetensors", "bin", "safetensors.index.fp16.json"):
        (source / f"transformer/diffusion_pytorch_model.{name}").write_text("text")
    adapter = write_adapter(tmp_path / "adapter", source, PARTS)
    # If a name is a link, as in the hub's cache, the file behind it is merged.
    weights = source / "vae" / SINGLE.name
    weights.symlink_to(weights.rename(tmp_path / "blob"))
    merge(str(source), [str(adapter)], tmp_path / "new")
    left = {"flux1-dev.safetensors", ".git/HEAD"} | {
        f"transformer/diffusion_pytorch_model.{name}"
        for name in ("fp16.safetensors", "bin", "safetensors.index.fp16.json")
    }
    assert files(source) - files(tmp_path / "new") == left
    for name in files(tmp_path / "new") - {str(SINGLE)}:
        assert filecmp.cmp(source / name, tmp_path / "new" / name, shallow=False), name
    copied = tmp_path / "new" / "vae"
    assert (copied / SINGLE.name).samefile(tmp_path / "blob")
    assert not (copied / SINGLE.name).is_symlink()
    assert not (copied / "config.json").samefile(source / "vae" / "config.json")


def test_disks_without_links_get_copies(tiny_folder, pair, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    merge(str(tiny_folder), given(*pair), tmp_path / "new")
    assert files(tmp_path / "new") == files(tiny_folder)
    one, other = (folder / "vae" / SINGLE.name for folder in (tiny_folder, tmp_path / "new"))
    assert filecmp.cmp(one, other, shallow=False)
    assert not one.samefile(other)


def test_changed_tensors_are_made_one_after_the_other(tiny_folder, pair, tmp_path, monkeypatch):
    alive: list[int] = []
    made: list[weakref.ref] = []

    def watched(tensor, slot, changes):
        result = np.array(merged(tensor, slot, changes))
        made.append(weakref.ref(result))
        alive.append(sum(each() is not None for each in made))
        return result

    merged = convert.merge.merged
    monkeypatch.setattr("convert.merge.merged", watched)
    merge(str(tiny_folder), given(*pair), tmp_path / "new")
    assert len(made) > 40
    # One is written while the next is computed.
    assert max(alive) <= 2


@pytest.mark.slow
def test_command_merges_and_refuses(tiny_folder, merged_folder, pair, tmp_path):
    def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return warm.run("-m", "convert.merge", *arguments)

    result = command(tiny_folder, *given(*pair), tmp_path / "new")
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'new'}\n")
    assert filecmp.cmp(merged_folder / SINGLE, tmp_path / "new" / SINGLE, shallow=False)
    again = command(tiny_folder, *given(*pair), tmp_path / "new")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "Traceback" not in again.stderr
