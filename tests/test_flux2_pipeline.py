"""FLUX.2 [klein] from prompts to pictures against diffusers, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu
from helpers.tiny_flux2 import make_klein
from safetensors.numpy import load_file, save_file

import flux_jax
from flux_jax.errors import InputError
from flux_jax.models.flux2.pipeline import Flux2Pipeline, load
from flux_jax.models.flux2.schedule import empirical_mu, latent_ids
from flux_jax.models.tokenizers import chat_ids
from flux_jax.weights import original
from flux_jax.weights.mapping import to_torch

Both = tuple[Flux2KleinPipeline, Flux2Pipeline, Path]
PROMPTS = ["a happy dog below a slice of pizza", "two cats"]


@pytest.fixture(scope="module")
def klein(
    tmp_path_factory: pytest.TempPathFactory,
) -> Both:
    folder = tmp_path_factory.mktemp("klein") / "model"
    theirs = make_klein(folder, distilled=True)
    return theirs, load(folder), folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Flux2KleinPipeline, Flux2Pipeline]:
    folder = tmp_path_factory.mktemp("klein") / "base"
    theirs = make_klein(folder, distilled=False)
    return theirs, load(folder)


def close(got: Any, wanted: torch.Tensor, bound: float = 2e-5) -> None:
    expected = wanted.detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("tokens", [16, 1024, 4096, 4300, 4301, 16384])
@pytest.mark.parametrize("steps", [4, 28, 50])
def test_mu_equals_diffusers(tokens: int, steps: int):
    assert empirical_mu(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps))


def test_the_shift_falls_above_4300_tokens():
    """As in diffusers, where steps no longer count."""
    assert empirical_mu(4300, 4) == pytest.approx(2.273, abs=0.1)
    assert empirical_mu(4301, 4) == empirical_mu(4301, 50) == pytest.approx(1.185, abs=1e-3)


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("tokens", [6, 1024])
def test_sigmas_equal_diffusers(klein: Both, steps: int, tokens: int):
    theirs, ours, _ = klein
    theirs.scheduler.set_timesteps(
        sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps)
    )
    np.testing.assert_allclose(
        ours.schedule.sigmas(steps, tokens), theirs.scheduler.sigmas.numpy(), atol=1e-6
    )


def test_positions_equal_diffusers():
    ids = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 1, 3, 5))[0]
    np.testing.assert_array_equal(latent_ids(6, 10), ids.numpy())


@pytest.mark.slow
@torch.no_grad()
def test_encoded_prompts_equal_diffusers(klein: Both):
    theirs, ours, _ = klein
    wanted, _ = theirs.encode_prompt(PROMPTS)
    close(ours.encode(PROMPTS), wanted)


def test_padding_rows_depend_on_the_prompt(klein: Both):
    """The transformer sees all 512 tokens, so none of them may be dropped."""
    _, ours, _ = klein
    one, other = np.asarray(ours.encode(PROMPTS))
    assert np.max(np.abs(one[-1] - other[-1])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "steps"), [(12, 20, 4), (16, 8, 50), (8, 8, 1)])
@torch.no_grad()
def test_samples_equal_diffusers(klein: Both, height: int, width: int, steps: int):
    theirs, ours, _ = klein
    noise = ours.noise([3, 4], height, width)
    grid = (2, 16, height // 4, width // 4)
    start = torch.tensor(np.asarray(noise)).permute(0, 2, 1).reshape(grid)
    options = dict(height=height, width=width, num_inference_steps=steps, latents=start)
    pictures = np.asarray(theirs(prompt=PROMPTS, output_type="np", **options).images)
    text, ids = ours.encode(PROMPTS), latent_ids(*ours.grid(height, width))
    latents = ours.denoise(noise, text, ids, steps)
    decoded = ours.decode(latents, height, width)
    assert np.max(np.abs(decoded / 255 - pictures)) <= 0.5 / 255 + 2e-4
    np.testing.assert_array_equal(
        ours(PROMPTS, latents=noise, steps=steps, height=height, width=width), decoded
    )


@pytest.mark.slow
@torch.no_grad()
def test_guidance_in_two_passes_equals_diffusers(base: Any):
    theirs, ours = base
    noise = ours.noise([3, 4], 12, 12)
    start = torch.tensor(np.asarray(noise)).permute(0, 2, 1).reshape(2, 16, 3, 3)
    for guidance in (4.0, 1.0):
        options = dict(height=12, width=12, num_inference_steps=5, guidance_scale=guidance)
        wanted = np.asarray(
            theirs(prompt=PROMPTS, output_type="np", latents=start, **options).images
        )
        got = ours(PROMPTS, latents=noise, steps=5, guidance=guidance, height=12, width=12)
        assert np.max(np.abs(got / 255 - wanted)) <= 0.5 / 255 + 2e-4


@pytest.mark.slow
@torch.no_grad()
def test_pictures_go_to_tokens_and_back(klein: Both):
    theirs, ours, _ = klein
    pictures = np.random.default_rng(0).integers(0, 256, (2, 12, 8, 3)).astype(np.uint8)
    signed = torch.tensor(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    patches = theirs._encode_vae_image(signed, generator=None)
    close(ours.encode_pictures(pictures), theirs._pack_latents(patches))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_in_the_original_names_is_the_same(klein: Both, tmp_path: Path, prefix: str):
    theirs, ours, folder = klein
    written = to_torch(original.FLUX2_TRANSFORMER, ours.params["transformer"])
    state = {name: torch.tensor(np.ascontiguousarray(tensor)) for name, tensor in written.items()}
    back = convert_flux2_transformer_checkpoint_to_diffusers(dict(state))
    wanted = theirs.transformer.state_dict()
    assert sorted(back) == sorted(wanted)
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)

    file = tmp_path / "flux-2-klein.safetensors"
    save_file({f"{prefix}{name}": tensor.numpy() for name, tensor in state.items()}, file)
    read = load(folder, transformer=file).params["transformer"]
    jax.tree.map(np.testing.assert_array_equal, read, ours.params["transformer"])


def test_overlong_prompts_are_refused(klein: Both):
    _, ours, _ = klein
    # diffusers cuts them, and with them the end of the template.
    with pytest.raises(InputError, match=r"tokens with its template, over the limit of 512"):
        ours.encode(["z9" * 400])
    ids, mask = chat_ids(ours.tokenizer, ["two cats"], 512)
    assert ids.shape == mask.shape == (1, 512)
    end = ours.tokenizer("<think>\n\n</think>\n\n").input_ids
    assert ids[0, : mask.sum()][-len(end) :].tolist() == end


def test_sizes_and_seeds_are_checked(klein: Both):
    _, ours, _ = klein
    with pytest.raises(InputError, match="height = 13 is not a multiple of 4 pixels"):
        ours(PROMPTS, height=13)
    with pytest.raises(InputError, match="must be one for each prompt"):
        ours(PROMPTS, seeds=[1])
    with pytest.raises(InputError, match="exclude each other"):
        ours(PROMPTS, seeds=[1, 2], latents=ours.noise([1, 2], 8, 8))
    with pytest.raises(InputError, match="latents have shape"):
        ours(PROMPTS, latents=ours.noise([1, 2], 8, 8), height=16)


def changed(folder: Path, tmp_path: Path, file: str, **changes: Any) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(config | changes))
    return copy


def test_each_family_is_refused_by_the_other(klein: Both, tmp_path: Path, tiny_folder: Path):
    _, _, folder = klein
    with pytest.raises(InputError, match=r"this is FLUX\.2"):
        flux_jax.load(folder)
    with pytest.raises(InputError, match=r"says FluxPipeline.*use flux_jax\.load for FLUX\.1"):
        load(tiny_folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("text_encoder/config.json", {"model_type": "mistral3"}, "'mistral3' is not supported"),
        ("transformer/config.json", {"joint_attention_dim": 60}, "joint_attention_dim = 60"),
        ("transformer/config.json", {"num_layers": 3}, "missing: transformer_blocks.2"),
        ("vae/config.json", {"latent_channels": 8}, "4 latent_channels = 32 and"),
        ("tokenizer/tokenizer_config.json", {"chat_template": None}, "no chat template"),
    ],
)
def test_other_parts_are_refused_in_one_line(
    klein: Both, tmp_path: Path, file: str, changes: dict[str, Any], message: str
):
    copy = changed(klein[2], tmp_path, file, **changes)
    (copy / "tokenizer" / "chat_template.jinja").unlink(missing_ok=True)
    if "chat_template" not in changes:
        shutil.copytree(klein[2] / "tokenizer", copy / "tokenizer", dirs_exist_ok=True)
    with pytest.raises(InputError, match=message) as refused:
        load(copy)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_an_autoencoder_without_statistics_is_refused(klein: Both, tmp_path: Path):
    copy = tmp_path / "model"
    shutil.copytree(klein[2], copy)
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "bn." not in name}
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"missing: bn\.running_mean"):
        load(copy)
