"""CLIP as one model: both towers, projected to vectors that can be compared.

Axis letters: B pictures, N texts, T tokens, h w picture sides, E width of the shared vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flux_jax.errors import InputError
from flux_jax.models.clip.text import CLIPTextConfig, CLIPTextEncoder
from flux_jax.models.clip.vision import CLIPVisionConfig, CLIPVisionTower
from flux_jax.models.config import read_fields


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a whole CLIP.

    Attributes:
        text: of the text encoder.
        vision: of the image tower.
        projection_dim: width E of the shared vectors.
    """

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str) -> "CLIPConfig":
        """Reads a parsed `config.json` of transformers' CLIPModel.

        Args:
            config: the file's content.
            where: its path, for messages.

        Raises:
            InputError: it belongs to another model, or a value is of the wrong type or not
                implemented.
        """
        parts = {}
        for name in ("text_config", "vision_config"):
            part = config.get(name)
            if config.get("model_type") != "clip" or not isinstance(part, Mapping):
                raise InputError(
                    f"{where}: no CLIP with text and image tower: model_type must be 'clip', with "
                    "text_config and vision_config, as in openai/clip-vit-base-patch32"
                )
            # Older files repeat the fields here, and transformers prefers these.
            also = config.get(f"{name}_dict")
            parts[name] = {**part, **(also if isinstance(also, Mapping) else {})}
        return cls(
            CLIPTextConfig.from_dict(parts["text_config"]),
            CLIPVisionConfig.from_dict(parts["vision_config"], where),
            read_fields(_Projection, config, where).projection_dim,
        )


@dataclass(frozen=True)
class _Projection:
    projection_dim: int = 512


class CLIP(nn.Module):
    """Both towers with their projections."""

    config: CLIPConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Makes the towers and projections."""
        config = self.config
        self.text = CLIPTextEncoder(config.text, self.dtype)
        self.vision = CLIPVisionTower(config.vision, self.dtype)
        self.text_projection, self.visual_projection = (
            nn.Dense(config.projection_dim, use_bias=False, dtype=self.dtype) for _ in range(2)
        )
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def image_features(self, pixels: Float[Array, "B h w 3"]) -> Float[Array, "B E"]:
        """Vectors of pictures, not of unit length."""
        return self.visual_projection(self.vision(pixels))

    def text_features(self, ids: Int[Array, "N T"]) -> Float[Array, "N E"]:
        """Vectors of texts, not of unit length."""
        return self.text_projection(self.text(ids))

    def __call__(
        self, pixels: Float[Array, "B h w 3"], ids: Int[Array, "N T"]
    ) -> Float[Array, "B N"]:
        """Logits: scaled cosines of each picture with each text."""
        image, text = unit(self.image_features(pixels)), unit(self.text_features(ids))
        return jnp.exp(self.logit_scale) * image @ text.T


def unit(vectors: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Vectors along the last axis, scaled to length 1."""
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
