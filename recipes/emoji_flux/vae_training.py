"""Train the autoencoder: 64 x 64 pictures to 16 x 16 latents of 16 channels and back.

Axis letters: B batch, h w picture sides, M sprites, N scenes.
"""

import functools
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from flux_jax.models.vae import AutoencoderKL, VAEConfig
from recipes.emoji_flux import fit
from recipes.emoji_flux.scenes import Scenes, compose

CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 64, 128],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "force_upcast": False,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 1,
    "mid_block_add_attention": True,
    "norm_num_groups": 16,
    "sample_size": 64,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
BATCH = 128
# The latents need not carry imperceptible detail: the larger this weight, the smoother they are and
# the easier the flow is to learn. The shipped folder's README has the nats per value and the
# error of reconstructions; the judge recognises reconstructions as well as renders.
KL_WEIGHT = 5e-3
GRADIENT_WEIGHT = 0.5


class SceneData(flax.struct.PyTreeNode):
    """Sprites and scene descriptions for composing pictures, on the device."""

    pixels: UInt8[Array, "M 64 64 4"]
    sprite: Array
    box: Array
    background: Array

    @classmethod
    def of(cls, pixels: np.ndarray, scenes: Scenes) -> "SceneData":
        """Move sprites and scene descriptions to the device."""
        parts = (pixels, scenes.sprite, scenes.box, scenes.background)
        return cls(*(jnp.asarray(part) for part in parts))

    def pictures(self, rows: Array) -> Float[Array, "B h w 3"]:
        """Compose the scenes of these rows, in [-1, 1]."""
        return compose(self.pixels, self.sprite[rows], self.box[rows], self.background[rows])


def edges(pictures: Float[Array, "B h w 3"]) -> tuple[Array, Array]:
    """Differences between neighbouring pixels, down and across."""
    return pictures[:, 1:] - pictures[:, :-1], pictures[:, :, 1:] - pictures[:, :, :-1]


def vae_loss(
    vae: AutoencoderKL, batch: int, params: PyTree, key: PRNGKeyArray, data: SceneData
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Absolute error of pixels and of their gradients, plus a small KL to N(0, 1)."""
    row_key, noise_key = jax.random.split(key)
    pictures = data.pictures(jax.random.randint(row_key, (batch,), 0, len(data.sprite)))
    mean, logvar = vae.apply({"params": params}, pictures, method="encode")
    mean, logvar = jnp.asarray(mean, jnp.float32), jnp.asarray(logvar, jnp.float32)
    latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(noise_key, mean.shape)
    decoded = jnp.asarray(vae.apply({"params": params}, latents, method="decode"), jnp.float32)
    absolute = jnp.mean(jnp.abs(decoded - pictures))
    gradient = sum(
        jnp.mean(jnp.abs(a - b)) for a, b in zip(edges(decoded), edges(pictures), strict=True)
    )
    divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)
    # The peak-to-peak range is 2, hence the 4.
    psnr = jnp.mean(-10 * jnp.log10(jnp.mean(jnp.square(decoded - pictures), axis=(1, 2, 3)) / 4))
    loss = absolute + GRADIENT_WEIGHT * gradient + KL_WEIGHT * divergence
    return loss, {"absolute": absolute, "kl": divergence, "psnr": psnr}


def train(
    pixels: np.ndarray,
    scenes: Scenes,
    folder: Path,
    updates: int,
    batch: int = BATCH,
    dtype: DTypeLike = jnp.bfloat16,
) -> tuple[dict[str, Any], PyTree]:
    """Train the autoencoder and measure its latents.

    Returns:
        Its configuration, with shift and scaling such that scaled latents have mean 0 and
        deviation 1, and its parameters.
    """
    vae = AutoencoderKL(VAEConfig.from_dict(CONFIG), dtype=dtype)
    data = SceneData.of(pixels, scenes)
    params = vae.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    optimizer = fit.adamw(1e-3, updates)
    params = fit.fit(
        fit.start(params, optimizer),
        functools.partial(vae_loss, vae, fit.per_device(batch)),
        data,
        optimizer,
        updates,
        folder,
        title="autoencoder",
    )
    means = encode_all(vae, params, data, np.arange(min(8192, len(scenes.sprite))))
    means = means.astype(np.float32)
    shift, deviation = float(means.mean()), float(means.std())
    return CONFIG | {"scaling_factor": 1 / deviation, "shift_factor": shift}, params


def encode_all(
    vae: AutoencoderKL, params: PyTree, data: SceneData, rows: np.ndarray, batch: int = 1024
) -> Float[Array, "B 16 16 16"]:
    """Raw latent means of many scenes, in the autoencoder's dtype."""
    encode = jax.jit(
        lambda params, data, rows: vae.apply(
            {"params": params}, data.pictures(rows), method="encode"
        )[0].astype(vae.dtype)
    )
    padded = np.pad(rows, (0, -len(rows) % batch), mode="edge").reshape(-1, batch)
    return jnp.concatenate([encode(params, data, part) for part in padded])[: len(rows)]
