"""Muted text tokens against diffusers with columns of its attention matrices set to zero."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.models.transformers import transformer_flux
from helpers import tiny

import flux_jax.sharding
from erase.data.words.word_tokens import marks
from flux_jax.errors import InputError
from flux_jax.weights.loading import build, read_params
from flux_jax.weights.source import open_source

SHAPES = {
    # sizes of the transformer, text tokens, image tokens
    "guided-16": ({}, 5, (3, 4)),
    "plain-32": ({"guidance": False, "axes": (8, 12, 12), "heads": 3}, 16, (4, 4)),
    "deep-64": ({"axes": (0, 32, 32), "heads": 1, "dual": 3, "single": 1}, 33, (2, 5)),
}
BATCH = 2


@pytest.fixture(scope="module", params=list(SHAPES))
def case(request, tmp_path_factory):
    """diffusers' transformer, ours as a function of the muted tokens, and inputs of both."""
    sizes, tokens, (height, width) = SHAPES[request.param]
    theirs = tiny.transformer(**sizes)
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder / "transformer")
    source = open_source(folder, "transformer")
    ours = build("transformer", source.config)
    params = read_params(source, "transformer", jnp.float32, flux_jax.sharding.make({}))
    rng = np.random.default_rng(0)
    ids = np.zeros((height, width, 3), np.float32)
    ids[..., 1:] = np.stack(np.mgrid[:height, :width], -1)
    inputs = {
        "hidden_states": rng.normal(size=(BATCH, height * width, 16)),
        "encoder_hidden_states": rng.normal(size=(BATCH, tokens, 24)),
        "pooled_projections": rng.normal(size=(BATCH, 16)),
        "timestep": np.array([0.8, 0.1]),
        "img_ids": ids.reshape(-1, 3),
        "guidance": np.array([3.5, 1.0]) if theirs.config.guidance_embeds else None,
    }
    inputs = {k: None if v is None else v.astype(np.float32) for k, v in inputs.items()}
    apply = jax.jit(partial(ours.apply, {"params": params}, *inputs.values()))
    silenced = (rng.random((BATCH, tokens)) < 0.4).astype(np.float32)
    # The samples of a batch differ, and each of them is changed.
    silenced[:, :2] = [[1, 0], [0, 1]]
    return theirs, apply, inputs, silenced


def put_out(monkeypatch, silenced):
    """Make diffusers compute joint attention explicitly, with the tokens' columns set to zero."""

    def attention(query, key, value, **_):
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        weights = torch.softmax(scores, dim=-1)
        for row, mask in zip(weights, silenced, strict=True):
            row[:, :, np.flatnonzero(mask)] = 0
        return torch.einsum("bhqk,bkhd->bqhd", weights, value)

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", attention)


def assert_close(ours, theirs, bound=2e-5):
    assert ours.shape == theirs.shape
    assert np.max(np.abs(np.asarray(ours) - theirs)) <= bound * np.max(np.abs(theirs))


@torch.no_grad()
def test_silenced_tokens_are_columns_of_zeros_in_every_block(case, monkeypatch):
    theirs, apply, inputs, silenced = case
    given = {k: None if v is None else torch.tensor(v) for k, v in inputs.items()}
    given["txt_ids"] = torch.zeros(silenced.shape[1], 3)
    plain = theirs(**given).sample.numpy()
    for mask in (silenced, np.ones_like(silenced)):
        put_out(monkeypatch, mask)
        zeroed = theirs(**given).sample.numpy()
        assert_close(apply(silenced=mask)[0], zeroed)
        assert np.abs(zeroed - plain).max(axis=(1, 2)).min() > 1e-3 * np.abs(plain).max()


@pytest.mark.slow
def test_nothing_silenced_is_the_model_itself(case):
    _, apply, _, silenced = case
    base = np.asarray(apply()[0])
    np.testing.assert_array_equal(apply(silenced=None)[0], base)
    assert_close(apply(silenced=np.zeros_like(silenced))[0], base, bound=1e-6)


@pytest.mark.slow
def test_attention_mass_is_from_before(case):
    _, apply, _, silenced = case
    masks = silenced[..., None]
    there = apply(token_masks=masks, silenced=silenced)[1]["attention"]
    alone = apply(token_masks=masks)[1]["attention"]
    # The first block's attention is the same; its output to the second is not.
    assert_close(there[0], np.asarray(alone[0]), bound=1e-6)
    assert np.abs(there[1:] - alone[1:]).max() > 1e-4
    assert there.min() > 0


def test_a_mask_of_another_size_is_named(case):
    _, apply, _, silenced = case
    with pytest.raises(InputError, match="silenced has shape"):
        apply(silenced=silenced[:, :-1])


@pytest.mark.slow
@torch.no_grad()
def test_drawing_with_a_silenced_word_equal_diffusers(tiny_folder: Path, monkeypatch):
    pipe, theirs = flux_jax.load(tiny_folder), FluxPipeline.from_pretrained(tiny_folder)
    theirs.set_progress_bar_config(disable=True)
    prompts = ["a red ball on a box", "two cats"]
    mask = marks(pipe.tokenizer_2, prompts, "red")
    assert mask.any(axis=1).tolist() == [True, False]
    put_out(monkeypatch, mask)
    noise = pipe.noise([0, 1], 16, 24)
    limit = pipe.tokenizer_2.model_max_length
    drawn = theirs(
        prompts, latents=torch.tensor(np.asarray(noise)), num_inference_steps=3, height=16,
        width=24, output_type="latent", max_sequence_length=limit,
    ).images.numpy()  # fmt: skip
    given = (noise, pipe.encode(prompts), pipe.image_ids(16, 24), 3)
    assert_close(pipe.denoise(*given, silenced=mask), drawn, bound=1e-4)
    changed = np.abs(drawn - pipe.denoise(*given)).max((1, 2)) / np.abs(drawn).max()
    assert changed[0] > 1e-3
    assert changed[1] < 1e-4
    pictures = pipe(prompts, latents=noise, steps=3, height=16, width=24, silenced=mask)
    assert np.abs(np.subtract(pictures, pipe.decode(drawn, 16, 24), dtype=int)).max() <= 1
