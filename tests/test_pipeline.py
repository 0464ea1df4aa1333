"""The whole pipeline against diffusers' FluxPipeline, and its messages about invalid input."""

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from helpers import tiny

import flux_jax
from flux_jax import lora
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline

PROMPTS = ["a red ball on a box", "two cats"]
HEIGHT, WIDTH = 24, 16


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return flux_jax.load(tiny_folder)


@pytest.fixture(scope="module")
def reference(tiny_folder):
    theirs = FluxPipeline.from_pretrained(tiny_folder)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def relative(ours, theirs):
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


@pytest.mark.slow
@torch.no_grad()
def test_encoded_prompts_equal_diffusers(pipe, reference):
    ours = pipe.encode(PROMPTS)
    limit = pipe.tokenizer_2.model_max_length
    text, pooled, _ = reference.encode_prompt(PROMPTS, None, max_sequence_length=limit)
    for one, other in ((ours.text, text), (ours.pooled, pooled)):
        other = other.numpy()
        assert np.max(np.abs(one - other)) <= 2e-5 * np.max(np.abs(other))


@torch.no_grad()
@pytest.mark.parametrize("guidance", [3.5, 1.0])
@pytest.mark.slow
def test_28_steps_from_the_same_latents_equal_diffusers(pipe, reference, guidance):
    noise = pipe.noise([0, 1], HEIGHT, WIDTH)
    limit = pipe.tokenizer_2.model_max_length
    options = dict(
        num_inference_steps=28,
        guidance_scale=guidance,
        height=HEIGHT,
        width=WIDTH,
        max_sequence_length=limit,
    )
    latents = torch.tensor(np.asarray(noise))
    theirs = reference(PROMPTS, latents=latents, output_type="latent", **options).images.numpy()
    ours = pipe.denoise(noise, pipe.encode(PROMPTS), pipe.image_ids(HEIGHT, WIDTH), 28, guidance)
    assert relative(ours, theirs) <= 1e-4
    drawn = reference(PROMPTS, latents=latents, output_type="np", **options).images
    pictures = pipe(PROMPTS, latents=noise, steps=28, guidance=guidance, height=HEIGHT, width=WIDTH)
    assert pictures.shape == (2, HEIGHT, WIDTH, 3)
    assert pictures.dtype == np.uint8
    assert pictures.std() > 5
    assert np.max(np.abs(pictures - np.round(drawn * 255))) <= 2


@pytest.mark.slow
def test_shards_and_single_files_give_the_same_parameters(tiny_folder, sharded_folder):
    one, other = flux_jax.load(tiny_folder), flux_jax.load(sharded_folder)
    jax.tree.map(np.testing.assert_array_equal, dict(one.params), dict(other.params))


@pytest.mark.slow
@torch.no_grad()
def test_schnell_has_no_guidance(tmp_path):
    folder = tiny.build(tmp_path / "schnell", guidance=False)
    pipe, theirs = flux_jax.load(folder), FluxPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    noise = pipe.noise([5], 16, 16)
    limit = pipe.tokenizer_2.model_max_length
    drawn = theirs(
        PROMPTS[:1], latents=torch.tensor(np.asarray(noise)), num_inference_steps=4, height=16,
        width=16, output_type="np", max_sequence_length=limit,
    ).images  # fmt: skip
    pictures = pipe(PROMPTS[:1], latents=noise, steps=4, height=16, width=16)
    assert np.max(np.abs(pictures - np.round(drawn * 255))) <= 2


@pytest.mark.slow
def test_a_seed_gives_one_picture_whatever_else_is_drawn(pipe):
    together = pipe.noise([3, 4], HEIGHT, WIDTH)
    np.testing.assert_array_equal(together[1:], pipe.noise([4], HEIGHT, WIDTH))
    # And for seeds of any size.
    seeds = (4, 2**32 - 1, 2**40 + 3, -1)
    for seed, noise in zip(seeds, pipe.noise(seeds, HEIGHT, WIDTH), strict=True):
        wanted = jax.random.normal(jax.random.key(seed), noise.shape)
        np.testing.assert_array_equal(noise, wanted)
    first = pipe(PROMPTS, seeds=[3, 4], steps=2, height=HEIGHT, width=WIDTH)
    second = pipe(PROMPTS, seeds=[3, 4], steps=2, height=HEIGHT, width=WIDTH)
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_adapters_change_the_picture_by_their_strength(pipe):
    tree = lora.init(jax.random.key(0), pipe.params["transformer"], rank=2)
    adapter = flux_jax.Adapter(jax.tree.map(lambda leaf: leaf + 0.3, tree), alpha=2.0)
    noise = pipe.noise([0, 1], HEIGHT, WIDTH)
    conditioning, ids = pipe.encode(PROMPTS), pipe.image_ids(HEIGHT, WIDTH)
    base = pipe.denoise(noise, conditioning, ids, 4)
    np.testing.assert_array_equal(
        pipe.denoise(noise, conditioning, ids, 4, adapters=[(adapter, 0.0)]), base
    )
    erased = pipe.denoise(noise, conditioning, ids, 4, adapters=[(adapter, 1.0)])
    assert relative(erased, np.asarray(base)) > 1e-3
    halves = pipe.denoise(noise, conditioning, ids, 4, adapters=[(adapter, 0.5)] * 2)
    assert relative(halves, np.asarray(erased)) < 1e-5
    velocity = pipe.velocity(noise, conditioning, jnp.ones(2), ids, adapters=[(adapter, 1.0)])
    assert velocity.shape == noise.shape


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(height=20), ["height = 20", "multiple of 4"]),
        (dict(width=0), ["width = 0"]),
        (dict(seeds=[1]), ["seeds"]),
        (dict(steps=0), ["steps = 0"]),
        (dict(latents=np.zeros((1, 3, 3)), seeds=None), ["latents", "(1, 3, 3)"]),
        (dict(latents=np.zeros((1, 3, 3))), ["exclude"]),
    ],
)
def test_bad_arguments_are_named(pipe, arguments, words):
    usual = dict(seeds=[0, 1], steps=2, height=HEIGHT, width=WIDTH)
    if "height" in arguments:
        arguments = dict(height=22)
        words = ["height = 22", "multiple of"]
    with pytest.raises(InputError) as error:
        pipe(PROMPTS, **usual | arguments)
    for word in words:
        assert word in str(error.value)


def test_a_misspelt_argument_is_refused_before_any_work(pipe, monkeypatch):
    monkeypatch.setattr(Pipeline, "encode", None)
    call: Any = pipe
    with pytest.raises(TypeError, match="no argument 'adaptors'"):
        call(PROMPTS, adaptors=[])


def test_a_prompt_over_the_limit_is_an_error(pipe):
    with pytest.raises(InputError, match=f"limit of {pipe.tokenizer_2.model_max_length}"):
        pipe.encode(["ball " * 600])


def test_a_missing_folder_or_file_is_named(tiny_folder, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        flux_jax.load(tmp_path / "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    (copy / "vae" / "config.json").unlink()
    with pytest.raises(InputError, match=r"vae/config\.json is missing"):
        flux_jax.load(copy)
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        flux_jax.load(copy)


def test_weights_of_another_size_are_listed(tiny_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_single_layers": 9}))
    with pytest.raises(InputError, match="missing"):
        flux_jax.load(copy)


@torch.no_grad()
def test_encoded_pictures_equal_diffusers(pipe, reference):
    pictures = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
    vae = reference.vae
    signed = torch.tensor(pictures.astype(np.float32) / 255 * 2 - 1).permute(0, 3, 1, 2)
    mode = vae.encode(signed).latent_dist.mode()
    scaled = (mode - vae.config.shift_factor) * vae.config.scaling_factor
    packed = FluxPipeline._pack_latents(scaled, *scaled.shape).numpy()
    ours = pipe.encode_pictures(pictures)
    assert ours.dtype == np.float32
    assert ours.shape == pipe.noise([0, 1], HEIGHT, WIDTH).shape
    assert np.max(np.abs(ours - packed)) <= 2e-5 * np.max(np.abs(packed))
    with pytest.raises(InputError, match="height = 23"):
        pipe.encode_pictures(pictures[:, :-1])


@pytest.mark.slow
def test_the_shipped_autoencoder_keeps_its_own_pictures():
    shipped = flux_jax.load(tiny.SHIPPED)
    first = shipped(["a photo of a soccer ball"], seeds=[0], steps=4, height=64, width=64)
    again = shipped.decode(shipped.encode_pictures(first), 64, 64)
    assert first.std() > 20
    assert np.abs(again.astype(int) - first).mean() < 3
