"""FLUX.2's autoencoder and the statistics of its tokens against diffusers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline

from flux_jax.errors import InputError
from flux_jax.models.flux2.vae import Flux2AutoencoderKL, Flux2VAEConfig
from flux_jax.models.vae import pack, unpack
from flux_jax.weights.mapping import to_flax, to_torch
from flux_jax.weights.tables import FLUX2_VAE

# Sizes, then height and width of the picture.
SHAPES = {
    "two levels": (
        {"block_out_channels": [8, 16], "latent_channels": 4, "norm_num_groups": 4}
        | {"layers_per_block": 1},
        (16, 12),
    ),
    "other decoder": (
        {"block_out_channels": [8, 16, 24], "latent_channels": 6, "norm_num_groups": 8}
        | {"layers_per_block": 2, "decoder_block_out_channels": [8, 8, 16]},
        (24, 16),
    ),
    "four levels": (
        {"block_out_channels": [12, 6, 6, 18], "latent_channels": 3, "norm_num_groups": 3}
        | {"layers_per_block": 1, "mid_block_add_attention": False, "batch_norm_eps": 1e-3},
        (16, 48),
    ),
}


def reference(sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    levels = len(sizes["block_out_channels"])
    kinds: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    model = AutoencoderKLFlux2(**kinds, **sizes).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    torch.nn.init.normal_(model.bn.running_mean, 0.0, 1.0)
    torch.nn.init.uniform_(model.bn.running_var, 0.0, 4.0)
    return model


def ours(model: Any) -> tuple[Flux2AutoencoderKL, dict[str, Any]]:
    module = Flux2AutoencoderKL(Flux2VAEConfig.from_dict(dict(model.config)))
    side = module.config.spatial_factor
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return module, {"params": to_flax(FLUX2_VAE, state, shapes["params"])}


def close(got: Any, wanted: torch.Tensor) -> None:
    expected = wanted.numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_encoder_statistics_and_decoder_equal_diffusers(shape: str):
    sizes, (height, width) = SHAPES[shape]
    model = reference(sizes)
    module, variables = ours(model)
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)
    mean, logvar = jax.jit(lambda p: module.apply(variables, p, method="encode"))(pictures)
    posterior = model.encode(torch.tensor(pictures).permute(0, 3, 1, 2)).latent_dist
    close(np.transpose(mean, (0, 3, 1, 2)), posterior.mean)
    close(np.transpose(logvar, (0, 3, 1, 2)), posterior.logvar)

    # As the pipeline does between them.
    patches = Flux2KleinPipeline._patchify_latents(posterior.mean)
    centre = model.bn.running_mean.view(1, -1, 1, 1)
    spread = torch.sqrt(model.bn.running_var.view(1, -1, 1, 1) + model.config.batch_norm_eps)
    normalised = Flux2KleinPipeline._pack_latents((patches - centre) / spread)
    tokens = module.apply(variables, pack(mean), method="normalise")
    close(tokens, normalised)
    rows, columns = mean.shape[1:3]
    back = unpack(module.apply(variables, tokens, method="restore"), rows, columns)
    close(np.transpose(back, (0, 3, 1, 2)), posterior.mean)

    decoded = jax.jit(lambda z: module.apply(variables, z, method="decode"))(back)
    close(np.transpose(decoded, (0, 3, 1, 2)), model.decode(posterior.mean).sample)


def test_all_tensors_go_to_pytorch_and_back():
    model = reference(SHAPES["other decoder"][0])
    _, variables = ours(model)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    del state["bn.num_batches_tracked"]
    back = to_torch(FLUX2_VAE, variables["params"])
    assert sorted(back) == sorted(state)
    for name, tensor in back.items():
        np.testing.assert_array_equal(np.asarray(tensor), state[name])


def test_without_statistics_it_is_refused():
    model = reference(SHAPES["two levels"][0])
    _, variables = ours(model)
    shapes = jax.eval_shape(lambda: variables["params"])
    state = {n: t.numpy() for n, t in model.state_dict().items() if not n.startswith("bn.")}
    with pytest.raises(InputError, match=r"bn\.running_mean"):
        to_flax(FLUX2_VAE, state, shapes)


def test_other_patches_are_refused():
    config = dict(reference(SHAPES["two levels"][0]).config)
    with pytest.raises(InputError, match=r"patch_size = \(4, 4\) is not supported"):
        Flux2VAEConfig.from_dict(config | {"patch_size": [4, 4]})
