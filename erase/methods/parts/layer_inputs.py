"""Inputs of layers at single text tokens while the frozen model denoises.

Axis letters: B prompts, L blocks, K selected tokens, N noise levels, S image tokens, C latent
channels, I inputs, O outputs.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.module import Interceptor, InterceptorContext, NextGetter
from jaxtyping import Array, Float, Int

from erase.config.schema import Config
from flux_jax import sharding
from flux_jax.errors import InputError, nearest
from flux_jax.lora import targets_of
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.sampling import euler
from flux_jax.settings import BLOCKS, layer_of
from flux_jax.tree import flatten

# Latents, and sums of the layers' inputs by path.
Carry = tuple[Array, dict[str, Array]]
# Flax collection of the layers' inputs; the transformer's loops over blocks stack it.
SEEN = "seen"
# Layers whose input is one vector per prompt instead of one per token.
POOLED = "pooled_embedder"


def text_inputs(
    pipe: Pipeline,
    config: Config,
    targets: tuple[str, ...],
    prompts: Sequence[str],
    tokens: Int[np.ndarray, "B K"],
) -> dict[str, Float[np.ndarray, "L B K I"]]:
    """Compute layers' inputs at some text tokens, averaged over the frozen model's denoising steps.

    All prompts start from the same noise, so that they differ only in their words.

    Args:
        pipe: the frozen model.
        config: provides the pictures' size, steps, guidance and batch size, and the noise's seed.
        targets: layers of the text stream in dual-stream blocks, layers of single-stream blocks on
            text tokens only, `context_embedder`, or `pooled_embedder/linear_1`, whose input is one
            vector for any token.
        prompts: one per picture.
        tokens: positions of the selected tokens of each prompt.

    Returns:
        The inputs of every target; L = 1 for a layer outside the blocks.

    Raises:
        InputError: the input of a target is not text tokens.
    """
    known = _text_layers(pipe)
    for target in targets:
        if target not in known:
            raise InputError(
                f"adapter.targets: the input of {target!r} is not single text tokens, which this "
                f"method edits; {nearest(target, known)}"
            )
    ids = pipe.image_ids(config.height, config.width)
    sigmas = jnp.asarray(pipe.schedule.sigmas(config.steps, len(ids)), jnp.float32)
    model, parts = pipe.denoiser(ids, config.guidance), []
    for rows in batches(len(prompts), config.bank.batch, "computing layers' inputs"):
        noise = pipe.noise([config.seed] * len(rows), config.height, config.width)
        encoded = pipe.encode([prompts[row] for row in rows])
        samples = sharding.share_out(pipe.mesh, (noise, encoded, tokens[rows]))
        with jax.set_mesh(pipe.mesh):
            inputs = _means(model, *samples, sigmas, layers=tuple(map(layer_of, targets)))
        parts.append(jax.device_get(sharding.gather(pipe.mesh, inputs)))
    return {
        target: np.concatenate([part[layer_of(target)] for part in parts], axis=1)[
            :, : len(prompts)
        ].astype(np.float64)
        for target in targets
    }


def kernels(pipe: Pipeline, target: str) -> Float[np.ndarray, "L I O"]:
    """Return a target's dequantized weights in every block; L = 1 outside the blocks."""
    params, layer = flatten(pipe.params["transformer"]), layer_of(target)
    kernel, scale = (
        np.asarray(sharding.gather(pipe.mesh, params.get(path, jnp.ones(1))), np.float64)
        for path in (f"{layer}/kernel", f"{layer}/scale")
    )
    kernel = kernel * scale[..., None, :]
    return kernel if kernel.ndim == 3 else kernel[None]


def _text_layers(pipe: Pipeline) -> list[str]:
    """Return the targets whose input is a prompt's tokens, or its pooled vector."""
    endings = ("add_q_proj", "add_k_proj", "add_v_proj", "ff_context/linear_1")
    return [
        path
        for path in targets_of(pipe.shapes)
        if path == "context_embedder"
        or path == f"{POOLED}/linear_1"
        or path != layer_of(path)
        or (path.startswith("dual_blocks") and path.endswith(endings))
    ]


@functools.partial(jax.jit, static_argnames="layers")
def _means(
    model: Denoiser,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    tokens: Int[Array, "B K"],
    sigmas: Float[Array, "N"],
    *,
    layers: tuple[str, ...],
) -> dict[str, Float[Array, "L B K I"]]:
    means = mean_over_steps(model, noise, conditioning, sigmas, _capture_inputs(layers, tokens))
    return {
        layer: means[layer] if layer.split("/")[0] in BLOCKS else means[layer][None]
        for layer in layers
    }


def mean_over_steps(
    model: Denoiser,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    sigmas: Float[Array, "N"],
    capture: Interceptor,
) -> dict[str, Array]:
    """Average what an interceptor captures of layers over the denoising steps; call under jit.

    Args:
        model: the denoising model.
        noise: latents at the first noise level.
        conditioning: encoded prompts.
        sigmas: noise levels.
        capture: for `nn.intercept_methods`; sows one array per layer into the collection `SEEN`.

    Returns:
        The means by the layer's path.
    """

    def look(latents: Array, level: Array) -> tuple[Array, dict[str, Array]]:
        with nn.intercept_methods(capture):
            velocity, sown = model.velocity_and_sown(latents, conditioning, level, SEEN)
        return velocity, {path.rpartition("/")[0]: leaf[0] for path, leaf in flatten(sown).items()}

    def step(carry: Carry, levels: tuple[Array, Array]) -> tuple[Carry, None]:
        (latents, sums), (level, following) = carry, levels
        velocity, seen = look(latents, level)
        latents = euler(latents, velocity, level, following)
        return (latents, jax.tree.map(jnp.add, sums, seen)), None

    _, shapes = jax.eval_shape(look, noise, sigmas[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (_, sums), _ = jax.lax.scan(step, (noise, zeros), (sigmas[:-1], sigmas[1:]))
    return jax.tree.map(lambda total: total / (len(sigmas) - 1), sums)


def _capture_inputs(layers: Sequence[str], tokens: Int[Array, "B K"]) -> Interceptor:
    """Return an interceptor that captures layers' inputs at some tokens, in float32."""

    def interceptor(
        call: NextGetter, args: tuple[Any, ...], kwargs: dict[str, Any], context: InterceptorContext
    ) -> object:
        layer = context.module
        if context.method_name == "__call__" and "/".join(layer.path) in layers:
            x = args[0] if args[0].ndim == 3 else args[0][:, None]
            at = jnp.minimum(tokens, x.shape[1] - 1)[..., None]
            inputs = jnp.take_along_axis(x, at, axis=1)
            layer.sow(SEEN, "inputs", inputs.astype(jnp.float32))
        return call(*args, **kwargs)

    return interceptor
