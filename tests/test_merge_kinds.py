"""Every kind of adapter change merged into a model's files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tiny
from helpers.flux_case import assert_close
from helpers.kinds import difference, mixed, weights_in
from safetensors.numpy import load_file

from convert.adapters import changes
from convert.adapters.layers import Layers
from convert.adapters.names import label
from convert.adapters.stacked import stack
from convert.merge import merge
from convert.pipeline import convert as convert_pipeline
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline, load
from flux_jax.weights import sizes
from flux_jax.weights.safetensors_files import read_component

STRENGTHS = (0.5, -0.75)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> dict[str, Layers]:
    """Two adapters of all kinds, returned for the names of files."""
    every = weights_in(model)
    files = {}
    for seed in (0, 2):
        (tmp_path / f"{seed}.safetensors").touch()
        files[str(tmp_path / f"{seed}.safetensors")] = mixed(every, seed)
    monkeypatch.setattr(
        changes, "read_layers", lambda path: SimpleNamespace(layers=files[str(path)])
    )
    return files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model") / "diffusers", axes=sizes.ROPE_AXES, heads=1)


def given(named: dict[str, Layers]) -> list[str]:
    return [f"{name}:{strength}" for name, strength in zip(named, STRENGTHS, strict=True)]


def velocity(pipe: Pipeline, adapters=()) -> np.ndarray:
    latents, conditioning = pipe.noise([0, 1], 16, 16), pipe.encode(["a red apple", "a dog"])
    times = np.array([0.9, 0.2], np.float32)
    ids = pipe.image_ids(16, 16)
    return np.asarray(pipe.velocity(latents, conditioning, times, ids, 3.5, adapters))


@pytest.mark.slow
def test_each_weight_and_bias_gets_its_changes_and_the_velocity_is_that_of_the_adapters(
    model, named, tmp_path
):
    merge(str(model), given(named), tmp_path / "merged")
    before, after = (
        read_component(folder / "transformer") for folder in (model, tmp_path / "merged")
    )
    wanted = {name: np.asarray(tensor, np.float64) for name, tensor in before.items()}
    for layers, strength in zip(named.values(), STRENGTHS, strict=True):
        for place, change in layers.items():
            name = label(place)
            weight, bias = difference(change, np.asarray(before[f"{name}.weight"]))
            wanted[f"{name}.weight"] += strength * weight
            wanted[f"{name}.bias"] += strength * bias
    for name, tensor in wanted.items():
        assert_close(np.asarray(after[name]), tensor, bound=1e-6)
        if np.array_equal(tensor, before[name]):
            assert np.asarray(after[name]).tobytes() == np.asarray(before[name]).tobytes()
    adapters = []
    for (name, layers), strength in zip(named.items(), STRENGTHS, strict=True):
        tree, alpha = stack(Path(name), layers)
        adapters.append((Adapter(tree, float(alpha)), strength))
    merged = velocity(load(tmp_path / "merged"))
    assert_close(merged, velocity(load(model), adapters), bound=1e-5)


@pytest.mark.slow
def test_joined_and_swapped_tensors_get_the_same(model, named, tmp_path):
    convert_pipeline(model, tmp_path / "single", to="original")
    merge(str(tmp_path / "single"), given(named), tmp_path / "merged")
    merge(str(model), given(named), tmp_path / "diffusers")
    convert_pipeline(tmp_path / "diffusers", tmp_path / "wanted", to="original")
    found, wanted = (
        load_file(tmp_path / name / "flux1.safetensors") for name in ("merged", "wanted")
    )
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].tobytes() == tensor.tobytes(), name
