"""The autoencoder and the latents' packing against diffusers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as TorchAutoencoder
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from flux_jax.errors import InputError
from flux_jax.models.vae import (
    AutoencoderKL,
    VAEConfig,
    latent_ids,
    pack,
    scale_latents,
    unpack,
    unscale_latents,
)
from flux_jax.weights.mapping import to_flax
from flux_jax.weights.tables import VAE

# Sizes, then height and width of the picture.
SHAPES = {
    "no quant convs": (
        {"block_out_channels": [8, 16], "latent_channels": 4, "norm_num_groups": 4}
        | {"layers_per_block": 1, "use_quant_conv": False, "use_post_quant_conv": False},
        (16, 12),
    ),
    "three levels": (
        {"block_out_channels": [8, 16, 24], "latent_channels": 16, "norm_num_groups": 8}
        | {"layers_per_block": 2},
        (20, 16),
    ),
    "no attention": (
        {"block_out_channels": [12, 6, 6, 18], "latent_channels": 3, "norm_num_groups": 3}
        | {"layers_per_block": 1, "mid_block_add_attention": False, "use_quant_conv": False},
        (16, 32),
    ),
}


def reference(sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    levels = len(sizes["block_out_channels"])
    kinds: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    model = TorchAutoencoder(scaling_factor=0.3611, shift_factor=0.1159, **kinds, **sizes).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model


def ours(model: Any) -> tuple[AutoencoderKL, dict[str, Any]]:
    vae = AutoencoderKL(VAEConfig.from_dict(model.config))
    side = vae.config.spatial_factor
    shapes = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return vae, {"params": to_flax(VAE, tensors, shapes["params"])}


def encode(vae: AutoencoderKL, variables: dict[str, Any], pictures: Any) -> Any:
    return jax.jit(functools.partial(vae.apply, method="encode"))(variables, pictures)


def decode(vae: AutoencoderKL, variables: dict[str, Any], latents: Any) -> Any:
    return jax.jit(functools.partial(vae.apply, method="decode"))(variables, latents)


def close(ours: jax.Array, torchs: torch.Tensor) -> None:
    wanted = torchs.detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_encoder_and_decoder_equal_diffusers(shape):
    sizes, (height, width) = SHAPES[shape]
    model = reference(sizes)
    vae, variables = ours(model)
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)

    mean, logvar = encode(vae, variables, pictures)
    with torch.no_grad():
        posterior = model.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2)).latent_dist
        close(mean, posterior.mean)
        close(logvar, posterior.logvar)
        decoded = model.decode(posterior.mean).sample
    cells = height // vae.config.spatial_factor, width // vae.config.spatial_factor
    assert mean.shape == (2, *cells, sizes["latent_channels"])
    close(decode(vae, variables, np.asarray(mean)), decoded)


@pytest.mark.slow
def test_logvar_is_clipped():
    vae, variables = ours(reference(SHAPES["no quant convs"][0]))
    pictures = jnp.ones((1, 8, 8, 3))
    for bias, wanted in ((-100.0, -30.0), (100.0, 20.0)):
        variables["params"]["encoder"]["conv_out"]["bias"] = np.full(8, bias, np.float32)
        _, logvar = encode(vae, variables, pictures)
        assert (logvar == wanted).all()


@pytest.mark.slow
def test_half_precision_stays_close():
    sizes, (height, width) = SHAPES["no quant convs"]
    exact, variables = ours(reference(sizes))
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), variables)
    latents = jax.random.normal(jax.random.key(0), (1, height // 2, width // 2, 4))
    wanted = decode(exact, half, latents)
    got = decode(AutoencoderKL(exact.config, jnp.bfloat16), half, latents)
    assert got.dtype == jnp.bfloat16
    assert jnp.abs(got - wanted).max() < 0.05 * jnp.abs(wanted).max()


def test_packing_and_positions_equal_diffusers():
    rows, columns, channels = 6, 10, 5
    latents = np.random.default_rng(0).normal(size=(2, rows, columns, channels))
    tokens = pack(jnp.asarray(latents, jnp.float32))
    torchs = torch.from_numpy(latents.astype(np.float32)).permute(0, 3, 1, 2)
    packed = FluxPipeline._pack_latents(torchs.contiguous(), 2, channels, rows, columns)
    np.testing.assert_array_equal(tokens, packed)
    back = FluxPipeline._unpack_latents(packed, 8 * rows, 8 * columns, 8)
    np.testing.assert_array_equal(unpack(tokens, rows, columns), back.permute(0, 2, 3, 1))
    ids = FluxPipeline._prepare_latent_image_ids(2, rows // 2, columns // 2, "cpu", torch.float32)
    np.testing.assert_array_equal(latent_ids(rows, columns), ids)


def test_scaling_and_its_inverse():
    config = VAEConfig((8,), 4, scaling_factor=0.3611, shift_factor=0.1159)
    latents = jnp.asarray([0.1159, 1.1159])
    scaled = scale_latents(config, latents)
    np.testing.assert_allclose(scaled, [0.0, 0.3611], atol=1e-7)
    np.testing.assert_allclose(unscale_latents(config, scaled), latents, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types"),
        ({"norm_num_groups": 5}, "norm_num_groups = 5"),
    ],
)
def test_unsupported_config_is_named(change, message):
    config = {"block_out_channels": [8], "latent_channels": 4, "scaling_factor": 1.0}
    with pytest.raises(InputError, match=message):
        VAEConfig.from_dict(config | {"norm_num_groups": 4} | change)
    with pytest.raises(InputError, match="scaling_factor = 'x' must be of type float"):
        VAEConfig.from_dict({"scaling_factor": "x"})


def test_sizes_that_do_not_fit_are_named():
    vae = AutoencoderKL(VAEConfig((4, 4), 2, 1.0, norm_num_groups=2))
    with pytest.raises(InputError, match="9 x 8"):
        vae.init(jax.random.key(0), jnp.zeros((1, 9, 8, 3)))
    with pytest.raises(InputError, match="3 x 4"):
        pack(jnp.zeros((1, 3, 4, 2)))
