"""The autoencoder between images and latents (diffusers' AutoencoderKL), and packing into tokens.

Matrix products run in the module's `dtype`, parameters keep their dtype; group norms and the
attention's softmax are float32.
Axis letters: B batch, h w image, y x latent grid (one cell per 2^(levels - 1) pixels),
C channels, Z latent channels, M = 2 Z moments of them, S image tokens (one per 2 x 2 latent
cells), P = 4 Z channels of a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flux_jax.errors import InputError
from flux_jax.models.config import read_fields, require

NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)
FILE = "vae/config.json"
V = TypeVar("V", bound="VAEConfig")


@dataclass(frozen=True)
class VAEConfig:
    """Sizes, with the names and defaults of a diffusers `vae/config.json`."""

    block_out_channels: tuple[int, ...] = (64,)
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    in_channels: int = 3
    out_channels: int = 3
    layers_per_block: int = 1
    norm_num_groups: int = 32
    sample_size: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls: type[V], config: Mapping[str, Any]) -> V:
        """Reads the fields from a parsed `config.json`.

        Raises:
            InputError: a value is of the wrong type, or requires what FLUX's autoencoder lacks.
        """
        require(config, FILE, act_fn=("silu", "swish"))
        for field, kind in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            types = config.get(field, ())
            if not isinstance(types, list | tuple) or any(each != kind for each in types):
                raise InputError(f"{FILE}: {field} = {config[field]} may only contain {kind}")
        read = read_fields(cls, config, FILE)
        odd = [c for c in read.block_out_channels if c % read.norm_num_groups]
        if odd:
            raise InputError(
                f"{FILE}: block_out_channels = {read.block_out_channels} must be multiples of "
                f"norm_num_groups = {read.norm_num_groups}"
            )
        return read

    @property
    def spatial_factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def decoder(self) -> "VAEConfig":
        """Sizes of the decoder; FLUX.1's are the encoder's."""
        return self


def group_norm(config: VAEConfig, name: str) -> nn.GroupNorm:
    """Group norm in float32 with two-pass variance, which agrees with PyTorch's."""
    return nn.GroupNorm(
        config.norm_num_groups,
        epsilon=NORM_EPS,
        dtype=jnp.float32,
        use_fast_variance=False,
        name=name,
    )


def conv(features: int, dtype: DTypeLike, name: str, size: int = 3) -> nn.Conv:
    """Convolution that preserves height and width."""
    return nn.Conv(features, (size, size), padding=size // 2, dtype=dtype, name=name)


class ResnetBlock(nn.Module):
    """Two normalised convolutions with a residual connection (ResnetBlock2D without time)."""

    config: VAEConfig
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B y x C"]) -> Float[Array, "B y x features"]:
        """Applies the block."""
        y = nn.silu(group_norm(self.config, "norm1")(x))
        y = conv(self.features, self.dtype, "conv1")(y)
        y = nn.silu(group_norm(self.config, "norm2")(y))
        y = conv(self.features, self.dtype, "conv2")(y)
        if x.shape[-1] != self.features:
            x = conv(self.features, self.dtype, "conv_shortcut", size=1)(x)
        return x + y


class SpatialAttention(nn.Module):
    """Single-head attention over the cells of a grid, with a residual connection."""

    config: VAEConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B y x C"]) -> Float[Array, "B y x C"]:
        """Attends over all cells."""
        batch, _, _, channels = x.shape
        y = group_norm(self.config, "group_norm")(x).reshape(batch, -1, 1, channels)
        q, k, v = (
            nn.Dense(channels, dtype=self.dtype, name=name)(y) for name in ("to_q", "to_k", "to_v")
        )
        # One head of up to 512 channels: wider than cuDNN's flash attention supports.
        y = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return x + nn.Dense(channels, dtype=self.dtype, name="to_out")(y).reshape(x.shape)


class MidBlock(nn.Module):
    """Residual block, attention if configured, residual block."""

    config: VAEConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B y x C"]) -> Float[Array, "B y x C"]:
        """Applies the block; the shape is preserved."""
        x = ResnetBlock(self.config, x.shape[-1], self.dtype, name="resnets_0")(x)
        if self.config.mid_block_add_attention:
            x = SpatialAttention(self.config, self.dtype, name="attentions_0")(x)
        return ResnetBlock(self.config, x.shape[-1], self.dtype, name="resnets_1")(x)


class Downsample(nn.Module):
    """Halves the grid: convolution with stride 2, padded at the bottom and on the right only."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B y x C"]) -> Float[Array, "B y//2 x//2 C"]:
        """Applies the layer; the number of channels is preserved."""
        return nn.Conv(
            x.shape[-1], (3, 3), 2, padding=((0, 1), (0, 1)), dtype=self.dtype, name="conv"
        )(x)


class Upsample(nn.Module):
    """Doubles the grid: nearest-neighbour upsampling, then a convolution."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B y x C"]) -> Float[Array, "B 2*y 2*x C"]:
        """Applies the layer; the number of channels is preserved."""
        return conv(x.shape[-1], self.dtype, "conv")(x.repeat(2, axis=1).repeat(2, axis=2))


class Level(nn.Module):
    """Residual blocks of one resolution, then the step to the next resolution, if there is one.

    Diffusers' DownEncoderBlock2D (`step` "downsamplers_0") and UpDecoderBlock2D
    (`step` "upsamplers_0").
    """

    config: VAEConfig
    features: int
    blocks: int
    step: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B y x C"]) -> Float[Array, "B ... features"]:
        """Applies the blocks and the step."""
        for i in range(self.blocks):
            x = ResnetBlock(self.config, self.features, self.dtype, name=f"resnets_{i}")(x)
        if self.step is None:
            return x
        kind = Downsample if self.step == "downsamplers_0" else Upsample
        return kind(self.dtype, name=self.step)(x)


class Encoder(nn.Module):
    """Encodes images to the moments of their latents."""

    config: VAEConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B y x M"]:
        """Returns mean and log-variance, concatenated."""
        config, last = self.config, len(self.config.block_out_channels) - 1
        x = conv(config.block_out_channels[0], self.dtype, "conv_in")(x)
        for i, features in enumerate(config.block_out_channels):
            step = "downsamplers_0" if i < last else None
            x = Level(
                config, features, config.layers_per_block, step, self.dtype, name=f"down_blocks_{i}"
            )(x)
        x = MidBlock(config, self.dtype, name="mid_block")(x)
        x = nn.silu(group_norm(config, "conv_norm_out")(x))
        return conv(2 * config.latent_channels, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Decodes latents to images."""

    config: VAEConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B y x Z"]) -> Float[Array, "B h w C"]:
        """Mirrors the encoder, with one more residual block per level."""
        config, last = self.config, len(self.config.block_out_channels) - 1
        x = conv(config.block_out_channels[-1], self.dtype, "conv_in")(x)
        x = MidBlock(config, self.dtype, name="mid_block")(x)
        for i, features in enumerate(reversed(config.block_out_channels)):
            step = "upsamplers_0" if i < last else None
            x = Level(
                config,
                features,
                config.layers_per_block + 1,
                step,
                self.dtype,
                name=f"up_blocks_{i}",
            )(x)
        x = nn.silu(group_norm(config, "conv_norm_out")(x))
        return conv(config.out_channels, self.dtype, "conv_out")(x)


class AutoencoderKL(nn.Module):
    """The autoencoder; call it with `method="encode"` or `method="decode"`."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Creates the parts under diffusers' names."""
        config = self.config
        self.encoder = Encoder(config, self.dtype)
        self.decoder = Decoder(config.decoder, self.dtype)
        if config.use_quant_conv:
            self.quant_conv = nn.Conv(2 * config.latent_channels, (1, 1), dtype=self.dtype)
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(config.latent_channels, (1, 1), dtype=self.dtype)

    def encode(
        self, pictures: Float[Array, "B h w C"]
    ) -> tuple[Float[Array, "B y x Z"], Float[Array, "B y x Z"]]:
        """Mean and log-variance of the latents, unscaled; images in [-1, 1].

        Raises:
            InputError: height or width is not a multiple of `config.spatial_factor`.
        """
        height, width = pictures.shape[1:3]
        cell = self.config.spatial_factor
        if height % cell or width % cell:
            raise InputError(f"a picture of {height} x {width}: both must be multiples of {cell}")
        moments = self.encoder(pictures)
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: Float[Array, "B y x Z"]) -> Float[Array, "B h w C"]:
        """Images, in [-1, 1] up to overshoot, from unscaled latents."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)

    def __call__(self, pictures: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Decodes images from the mean of their latents; uses every parameter."""
        return self.decode(self.encode(pictures)[0])


def scale_latents(config: VAEConfig, latents: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts the autoencoder's latents to the transformer's: (z - shift) * scaling."""
    return (latents - (config.shift_factor or 0.0)) * config.scaling_factor


def unscale_latents(config: VAEConfig, latents: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Inverse of `scale_latents`."""
    return latents / config.scaling_factor + (config.shift_factor or 0.0)


def pack(latents: Float[Array, "B y x Z"]) -> Float[Array, "B S 4*Z"]:
    """Packs each 2 x 2 cells into one token, channels ordered (Z, row, column).

    Raises:
        InputError: y or x is odd.
    """
    batch, rows, columns, channels = latents.shape
    if rows % 2 or columns % 2:
        raise InputError(f"latents of {rows} x {columns} cells: both must be even")
    cells = latents.reshape(batch, rows // 2, 2, columns // 2, 2, channels)
    return cells.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, 4 * channels)


def unpack(tokens: Float[Array, "B S P"], rows: int, columns: int) -> Float[Array, "B y x Z"]:
    """Inverse of `pack`; rows and columns are the latent grid's height and width."""
    cells = tokens.reshape(tokens.shape[0], rows // 2, columns // 2, -1, 2, 2)
    return cells.transpose(0, 1, 4, 2, 5, 3).reshape(tokens.shape[0], rows, columns, -1)


def latent_ids(rows: int, columns: int) -> Float[Array, "S 3"]:
    """Positions (0, row, column) of the packed tokens of a latent grid of rows x columns cells."""
    row, column = jnp.meshgrid(jnp.arange(rows // 2), jnp.arange(columns // 2), indexing="ij")
    return jnp.stack([jnp.zeros_like(row), row, column], -1).reshape(-1, 3).astype(jnp.float32)
