"""Network of the judge for pictures of the shipped small model.

Axis letters: B pictures, h w picture sides, y x feature grid, C channels, E entities, Y styles,
A answers on a relation (each relation, or none).
"""

import functools
from dataclasses import dataclass
from typing import cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

ENTITY_BIAS = -4.0


@dataclass(frozen=True)
class JudgeConfig:
    """Labels of a judge, and sizes of its network.

    Attributes:
        entities: names of the E entities.
        styles: names of the Y styles.
        relations: names of the R relations, such as "to the left of".
        widths: channels at 1/2, 1/4 and 1/8 of the picture's resolution.
        blocks: residual blocks at each of these resolutions.
        embedding: width of the subject and object embeddings.
    """

    entities: tuple[str, ...]
    styles: tuple[str, ...]
    relations: tuple[str, ...]
    widths: tuple[int, ...] = (48, 96, 144)
    blocks: tuple[int, ...] = (1, 2, 2)
    embedding: int = 32


class Verdict(flax.struct.PyTreeNode):
    """Output of the judge for a batch of pictures.

    Attributes:
        entities: logits; a picture shows an entity if its sigmoid is above `THRESHOLD`.
        style: logits; the style is the argmax.
        features: feature grid, the input of the relation head.
    """

    entities: Float[Array, "B E"]
    style: Float[Array, "B Y"]
    features: Float[Array, "B y x C"]


def normalise(channels: int, name: str) -> nn.GroupNorm:
    """Group norm in float32, in groups of eight channels or fewer."""
    groups = next(g for g in range(max(1, channels // 8), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, dtype=jnp.float32, name=name)


class Block(nn.Module):
    """Residual block of two normalised 3 x 3 convolutions."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B y x C"]) -> Float[Array, "B y x C"]:
        """Apply the block; the shape does not change."""
        y = x
        for i in range(2):
            y = nn.silu(normalise(x.shape[-1], f"norm_{i}")(y))
            y = nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, name=f"conv_{i}")(y)
        return x + y


class JudgeNetwork(nn.Module):
    """The network; `relation` takes the features returned by `__call__`."""

    config: JudgeConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Define the layers."""
        config = self.config
        stages = []
        for width, blocks in zip(config.widths, config.blocks, strict=True):
            stages.append(nn.Conv(width, (3, 3), 2, dtype=self.dtype))
            stages.extend(Block(self.dtype) for _ in range(blocks))
        self.stages = stages
        self.final_norm = normalise(config.widths[-1], "final_norm")
        # Few of the many entities are in a picture, so start with a low probability for each.
        self.entity_head = nn.Dense(
            len(config.entities), bias_init=nn.initializers.constant(ENTITY_BIAS)
        )
        self.style_head = nn.Dense(len(config.styles))
        self.subject = nn.Embed(len(config.entities), config.embedding, dtype=self.dtype)
        self.object = nn.Embed(len(config.entities), config.embedding, dtype=self.dtype)
        self.seek = nn.Dense(config.embedding, dtype=self.dtype)
        self.relation_in = nn.Conv(64, (3, 3), dtype=self.dtype)
        self.relation_block = Block(self.dtype)
        self.relation_down = nn.Conv(64, (3, 3), 2, dtype=self.dtype)
        self.relation_hidden = nn.Dense(128, dtype=self.dtype)
        self.relation_head = nn.Dense(len(config.relations) + 1)

    def __call__(self, pictures: Float[Array, "B h w 3"]) -> Verdict:
        """Recognise entities and style.

        Args:
            pictures: values in [-1, 1].
        """
        x = pictures
        for stage in self.stages:
            x = stage(x)
        x = nn.silu(self.final_norm(x))
        # The maximum detects an entity at any place, the mean captures the whole picture.
        pooled = jnp.concatenate([x.max((1, 2)), x.mean((1, 2))], axis=-1)
        return Verdict(self.entity_head(pooled), self.style_head(pooled), x)

    def relation(
        self,
        features: Float[Array, "B y x C"],
        subject: Int[Array, "B"],
        object: Int[Array, "B"],
    ) -> Float[Array, "B A"]:
        """Return logits of the relation of `subject` to `object`; the last means none.

        "A left of B" is "B right of A", so the pair is ordered.
        """
        sought = self.seek(features)
        asked = [self.subject(subject), self.object(object)]
        seen = [sought * each[:, None, None] for each in asked]
        rows, columns = features.shape[1:3]
        place = jnp.stack(
            jnp.meshgrid(jnp.linspace(-1, 1, rows), jnp.linspace(-1, 1, columns), indexing="ij"), -1
        )
        place = jnp.broadcast_to(place, (*features.shape[:3], 2))
        x = self.relation_in(jnp.concatenate([features, *seen, place], axis=-1))
        x = self.relation_down(self.relation_block(x))
        x = nn.silu(self.relation_hidden(nn.silu(x).reshape(x.shape[0], -1)))
        return self.relation_head(x)

    def all_heads(
        self, pictures: Float[Array, "B h w 3"], subject: Int[Array, "B"], object: Int[Array, "B"]
    ) -> tuple[Verdict, Float[Array, "B A"]]:
        """Return the verdict and the relation in one pass; uses every parameter."""
        verdict = self(pictures)
        return verdict, self.relation(verdict.features, subject, object)


@functools.partial(jax.jit, static_argnums=(0, 2))
def init(network: JudgeNetwork, key: Array, size: int = 64) -> PyTree:
    """Initialise parameters for pictures of `size` x `size` pixels."""
    pair = jnp.zeros(1, jnp.int32)
    pictures = jnp.zeros((1, size, size, 3))
    return network.init(key, pictures, pair, pair, method="all_heads")["params"]


def ask(
    network: JudgeNetwork,
    params: PyTree,
    pictures: Float[Array, "B h w 3"],
    subject: Int[Array, "B"],
    object: Int[Array, "B"],
) -> tuple[Verdict, Float[Array, "B A"]]:
    """Return the verdict on pictures in [-1, 1], and relation logits of an ordered pair."""
    out = network.apply({"params": params}, pictures, subject, object, method="all_heads")
    return cast(tuple[Verdict, Array], out)
