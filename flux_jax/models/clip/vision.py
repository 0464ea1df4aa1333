"""CLIP's image tower.

Matrix products run in the module's `dtype`; norms and softmax are float32.
Axis letters: B pictures, h w picture sides, y x patches along the sides, P model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flux_jax.errors import InputError
from flux_jax.models.clip.blocks import check_sizes, layer_norm, transformer
from flux_jax.models.config import read_fields, require


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes, with the names and defaults of a transformers `config.json`.

    Attributes:
        image_size: height and width of the pictures, in pixels.
        patch_size: height and width of a patch, in pixels.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str) -> "CLIPVisionConfig":
        """Reads the fields of a parsed `vision_config`.

        Args:
            config: the fields.
            where: their file, for messages.

        Raises:
            InputError: a value is of the wrong type, or is not implemented.
        """
        require(config, where, num_channels=(3,))
        read = read_fields(cls, config, where)
        check_sizes(read, where)
        if read.patch_size > read.image_size:
            raise InputError(
                f"{where}: patch_size = {read.patch_size} must be at most image_size = "
                f"{read.image_size}"
            )
        return read

    @property
    def patches(self) -> int:
        """Number of patches of a picture; pixels beyond the last whole patch are not seen."""
        return (self.image_size // self.patch_size) ** 2


class CLIPVisionTower(nn.Module):
    """The image transformer."""

    config: CLIPVisionConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "B h w 3"]) -> Float[Array, "B P"]:
        """Returns the final norm's output at the class token.

        Args:
            pixels: normalised pictures of `image_size`, see `flux_jax.models.clip.pixels`.
        """
        config, patch = self.config, self.config.patch_size
        x = nn.Conv(
            config.hidden_size,
            (patch, patch),
            (patch, patch),
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedder",
        )(pixels)
        x = x.reshape(len(x), config.patches, config.hidden_size)
        normal = nn.initializers.normal(0.02)
        first = self.param("class_embedder", normal, (config.hidden_size,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, *first.shape)), x], axis=1)
        tokens = config.patches + 1
        x += nn.Embed(tokens, config.hidden_size, dtype=self.dtype, name="position_embedder")(
            jnp.arange(tokens)
        )
        x = layer_norm(config, "first_norm")(x).astype(self.dtype)
        x, _ = transformer(config, self.dtype, causal=False)(x, None)
        return layer_norm(config, "final_norm")(x[:, 0]).astype(self.dtype)
