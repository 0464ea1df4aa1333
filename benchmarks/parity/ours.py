"""This project's side of `benchmarks.parity.parity`: velocities, and outputs of single blocks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from benchmarks.parity.case import GUIDANCES, TIMESTEP, Block, Inputs, Streams, Velocities
from flux_jax.lora import Adapter, combine
from flux_jax.models.attention import rope_tables
from flux_jax.models.blocks import DualStreamBlock, Shared, SingleStreamBlock
from flux_jax.pipeline import Pipeline
from flux_jax.programs import Conditioning


def velocities(pipe: Pipeline, adapter: Adapter, inputs: Inputs) -> Velocities:
    """Velocities without and with an adapter."""
    dtype = pipe.transformer.dtype
    encoded = Conditioning(jnp.asarray(inputs.text, dtype), jnp.asarray(inputs.pooled, dtype))
    arguments = (
        jnp.asarray(inputs.latents),
        encoded,
        jnp.full((1,), TIMESTEP),
        image_ids(pipe, inputs),
    )
    by_scale = {}
    for adapted, used in ((False, ()), (True, ((adapter, 1.0),))):
        for scale in GUIDANCES:
            velocity = pipe.velocity(*arguments, scale, used)
            by_scale[adapted, scale] = np.asarray(velocity, np.float32)
    return by_scale


def image_ids(pipe: Pipeline, inputs: Inputs) -> Array:
    """Positions of the image tokens."""
    pixels = inputs.side * pipe.pixels_per_token
    return pipe.image_ids(pixels, pixels)


def again(
    pipe: Pipeline, adapter: Adapter, inputs: Inputs, blocks: Sequence[Block]
) -> list[Streams]:
    """Outputs of this project's blocks for the inputs of diffusers' blocks.

    Args:
        pipe: the pipeline.
        adapter: applied to all blocks.
        inputs: inputs of the model that the blocks were recorded in.
        blocks: recorded blocks.
    """
    config, dtype = pipe.transformer.config, pipe.transformer.dtype
    modules: dict[str, nn.Module] = {
        "dual": DualStreamBlock(config.num_attention_heads, None, dtype),
        "single": SingleStreamBlock(config.num_attention_heads, dtype),
    }
    of_image = image_ids(pipe, inputs)
    tokens = inputs.text.shape[1]
    of_text = jnp.zeros((tokens, of_image.shape[1]), of_image.dtype)
    tables = rope_tables(jnp.concatenate([of_text, of_image]), config.axes_dims_rope)
    params, lora = pipe.params["transformer"], combine([(adapter, 1.0)]) or {}
    made = []
    for block in blocks:
        name = f"{block.kind}_blocks"
        image, text = (jnp.asarray(x, dtype) for x in (block.given.image, block.given.text))
        given = (image, text) if block.kind == "dual" else jnp.concatenate([text, image], axis=1)
        shared = Shared(jnp.asarray(block.conditioning, dtype), *tables, None, None)
        variables = {"params": params[name], "lora": lora.get(name, {})}
        result = _apply(modules[block.kind], variables, block.index, given, shared)
        if block.kind == "single":
            result = result[:, tokens:], result[:, :tokens]
        made.append(Streams(*(np.asarray(x, np.float32) for x in result)))
    return made


@partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, stacked: PyTree, index: Array, given: PyTree, shared: Shared) -> Any:
    """Apply the block at an index; traced, so that all blocks of a kind share one program."""
    variables = jax.tree.map(lambda leaf: leaf[index], stacked)
    made, _ = module.apply(variables, given, shared)
    return made
