"""FLUX.2's autoencoder: FLUX.1's with 32 channels, and statistics that normalise its tokens.

The latents of 2 x 2 cells become a token of 4 Z channels, ordered (Z, row, column), and each
channel is normalised with a batch norm's running statistics. There is no scaling or shift factor.
Axis letters: B batch, S tokens, P = 4 Z channels of a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from flux_jax.models.config import require
from flux_jax.models.vae import FILE, AutoencoderKL, VAEConfig

PATCH = 2
V = TypeVar("V", bound=VAEConfig)


@dataclass(frozen=True)
class Flux2VAEConfig(VAEConfig):
    """Sizes, with the names and defaults of a diffusers `vae/config.json` of FLUX.2.

    Attributes:
        decoder_block_out_channels: of the decoder, where they differ from the encoder's.
        batch_norm_eps: added to the variance of a token's channel.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 32
    layers_per_block: int = 2
    sample_size: int = 1024
    decoder_block_out_channels: tuple[int, ...] | None = None
    batch_norm_eps: float = 1e-4

    @classmethod
    def from_dict(cls: type[V], config: Mapping[str, Any]) -> V:
        """Reads the fields from a parsed `config.json`.

        Raises:
            InputError: a value is of the wrong type, or requires what this autoencoder lacks.
        """
        patch = config.get("patch_size", (PATCH, PATCH))
        require({"patch_size": tuple(patch)}, FILE, patch_size=((PATCH, PATCH),))
        return super().from_dict(config)

    @property
    def decoder(self) -> "Flux2VAEConfig":
        """Sizes of the decoder."""
        channels = self.decoder_block_out_channels or self.block_out_channels
        return replace(self, block_out_channels=channels)


class Statistics(nn.Module):
    """Mean and variance of each channel of a token."""

    config: Flux2VAEConfig

    def setup(self) -> None:
        """Declares the statistics."""
        shape = (PATCH * PATCH * self.config.latent_channels,)
        self.mean = self.param("mean", nn.initializers.zeros, shape)
        self.var = self.param("var", nn.initializers.ones, shape)

    def normalise(self, tokens: Float[Array, "B S P"]) -> Float[Array, "B S P"]:
        """(x - mean) / sqrt(var + eps)."""
        return (tokens - self.mean) / jnp.sqrt(self.var + self.config.batch_norm_eps)

    def restore(self, tokens: Float[Array, "B S P"]) -> Float[Array, "B S P"]:
        """Inverse of `normalise`."""
        return tokens * jnp.sqrt(self.var + self.config.batch_norm_eps) + self.mean


class Flux2AutoencoderKL(AutoencoderKL):
    """The autoencoder; call it with a `method`: encode, decode, normalise or restore.

    `encode` and `decode` use unnormalised latents, as `flux_jax.models.vae.pack` packs them.
    """

    def setup(self) -> None:
        """Creates the parts under diffusers' names."""
        super().setup()
        assert isinstance(self.config, Flux2VAEConfig)
        self.bn = Statistics(self.config)

    def normalise(self, tokens: Float[Array, "B S P"]) -> Float[Array, "B S P"]:
        """Converts packed latents to the transformer's."""
        return self.bn.normalise(tokens)

    def restore(self, tokens: Float[Array, "B S P"]) -> Float[Array, "B S P"]:
        """Converts the transformer's packed latents to the autoencoder's."""
        return self.bn.restore(tokens)

    def __call__(self, pictures: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Decodes images from the mean of their latents; uses every parameter."""
        decoded = super().__call__(pictures)
        shape = (1, 1, PATCH * PATCH * self.config.latent_channels)
        # Creates the statistics; adds nothing.
        return decoded + 0 * self.bn.normalise(jnp.zeros(shape)).mean()
