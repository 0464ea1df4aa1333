"""Weights: checked at once, read when needed, freed when no longer needed."""

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from safetensors.numpy import load_file, save_file

from erase.methods.settings.erase_anything import Lower, Upper
from erase.model.draw import draw
from erase.training import run
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline, load
from flux_jax.settings import SamplingOptions
from flux_jax.sharding import make
from flux_jax.weights import loading
from flux_jax.weights.loading import Weights
from flux_jax.weights.source import open_source
from flux_jax.weights.tables import COMPONENTS


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of models in the order in which they are read."""
    names: list[str] = []
    read = loading.read_params
    monkeypatch.setattr(
        loading, "read_params", lambda source, name, *rest: names.append(name) or read(
            source, name, *rest
        )
    )  # fmt: skip
    return names


@pytest.mark.slow
def test_a_model_is_read_when_it_is_asked_for_and_once(tiny_folder: Path, reads: list[str]):
    pipe = load(tiny_folder)
    assert isinstance(pipe.params, Weights)
    assert reads == []
    assert set(pipe.params) == set(COMPONENTS)
    pipe.encode(["a cat"])
    assert reads == ["text_encoder", "text_encoder_2"]
    first = pipe.params["text_encoder"]
    assert pipe.params["text_encoder"] is first
    pipe(["a cat"], steps=1, height=16, width=16)
    assert reads == ["text_encoder", "text_encoder_2", "transformer", "vae"]


@pytest.mark.slow
def test_released_models_are_freed_and_read_again(tiny_folder: Path, reads: list[str]):
    pipe = load(tiny_folder, jnp.float32)
    before = pipe.encode(["a cat"])
    leaf = weakref.ref(jax.tree.leaves(pipe.params["text_encoder_2"])[0])
    pipe.release("text_encoder", "text_encoder_2", "vae")
    gc.collect()
    assert leaf() is None
    after = pipe.encode(["a cat"])
    assert reads == ["text_encoder", "text_encoder_2"] * 2
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_remembered_prompts_need_no_text_encoders(tiny_folder: Path, reads: list[str]):
    pipe = load(tiny_folder, jnp.float32)
    pipe.remember(["a cat", "a dog", "a cat", "a red ball"], 2)
    pipe.remember(["a dog"], 2)
    pipe.release("text_encoder", "text_encoder_2")
    assert reads == ["text_encoder", "text_encoder_2"]
    remembered = pipe.encode(["a dog", "a red ball", "a dog"])
    assert reads == ["text_encoder", "text_encoder_2"]
    assert isinstance(pipe.recall(["a dog"]).text, np.ndarray)
    pipe.remembered.clear()
    anew = pipe.encode(["a dog", "a red ball", "a dog"])
    assert reads == ["text_encoder", "text_encoder_2"] * 2
    jax.tree.map(lambda *both: np.testing.assert_allclose(*both, atol=1e-5), remembered, anew)


def test_prompts_are_remembered_in_few_sizes(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    pipe = load(tiny_folder, jnp.float32)
    sizes: list[int] = []

    def encode(_: Pipeline, prompts: list[str], cut: bool) -> np.ndarray:
        assert not cut
        sizes.append(len(prompts))
        return np.array([[len(prompt)] for prompt in prompts])

    monkeypatch.setattr(Pipeline, "encode", encode)
    for count in range(1, 12):
        texts = [f"{count} {'x' * index}" for index in range(count)]
        pipe.remember(texts, 6)
        assert [pipe.remembered[text].tolist() for text in texts] == [[len(t)] for t in texts]
    # Never more than the batch size.
    assert sorted(set(sizes)) == [1, 2, 4, 6]


def test_shapes_that_a_caller_changes_are_whole_for_the_next(tiny_folder: Path):
    config = open_source(tiny_folder, "vae").config
    first = loading.abstract_params("vae", config)
    kept = sorted(first)
    first.clear()
    assert sorted(loading.abstract_params("vae", config)) == kept != []


def test_names_and_shapes_are_checked_before_anything_is_read(
    tiny_folder: Path, tmp_path: Path, reads: list[str]
):
    shutil.copytree(tiny_folder, tmp_path / "model")
    file = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"missing: encoder\.conv_in\.bias \[8\]"):
        load(tmp_path / "model")
    assert reads == []


# Models in the order in which they are placed on the devices, with those present then.
ORDER = [
    ("text_encoder", set()),
    ("text_encoder_2", {"text_encoder"}),
    ("transformer", set()),
    ("vae", {"transformer"}),
]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    seen: list[tuple[str, set[str]]] = []
    get = Weights.__getitem__

    def watched(self: Weights, name: str):
        if name not in self._read:
            seen.append((name, set(self._read)))
        return get(self, name)

    monkeypatch.setattr(Weights, "__getitem__", watched)
    return seen


@pytest.mark.slow
def test_text_encoders_have_left_before_a_run_needs_the_transformer(
    tiny_folder: Path, tmp_path: Path, held: list[tuple[str, set[str]]]
):
    # One loss is enough here, and compiles sooner.
    config = tiny.run_config(tiny_folder, lower=Lower(attn=0.0), upper=Upper(lora=0.0, rsc=0.0))
    config = replace(config, evaluation=replace(config.evaluation, pictures=1))
    run.run({"one": config, "two": replace(config, seed=1)}, tmp_path / "runs")
    assert held == ORDER


@pytest.mark.slow
def test_text_encoders_have_left_before_pictures_are_drawn(
    tiny_folder: Path, held: list[tuple[str, set[str]]]
):
    prompts = ["a cat", "a dog", "a red ball"]
    options = SamplingOptions(steps=1, height=16, width=16, batch=2)
    draw(load(tiny_folder), prompts, [0, 1, 2], options)
    assert held == ORDER


def test_dtypes_follow_the_request(tiny_folder: Path):
    for dtype in (jnp.float32, jnp.bfloat16):
        weights = Weights({"vae": open_source(tiny_folder, "vae")}, dtype, make({}))
        assert {leaf.dtype for leaf in jax.tree.leaves(weights["vae"])} == {jnp.dtype(dtype)}
