"""Modules from configurations, parameters from files onto the device."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jax.typing import DTypeLike
from jaxtyping import PyTree

from convert.checkpoint import read_params
from convert.mapping import to_flax
from convert.source import Source, TorchSource
from flux_jax.clip import CLIPTextConfig, CLIPTextEncoder
from flux_jax.t5 import T5Config, T5Encoder
from flux_jax.transformer import FluxConfig, FluxTransformer
from flux_jax.vae import AutoencoderKL, VAEConfig


def _transformer_inputs(config: FluxConfig) -> tuple[Any, ...]:
    of = jax.ShapeDtypeStruct
    tokens, one = 4, of((1,), jnp.float32)
    return (
        of((1, tokens, config.in_channels), jnp.float32),
        of((1, tokens, config.joint_attention_dim), jnp.float32),
        of((1, config.pooled_projection_dim), jnp.float32),
        one,
        of((tokens, 3), jnp.float32),
        one if config.guidance_embeds else None,
    )


def _text_inputs(config: CLIPTextConfig | T5Config) -> tuple[Any, ...]:
    return (jax.ShapeDtypeStruct((1, 4), jnp.int32),)


def _vae_inputs(config: VAEConfig) -> tuple[Any, ...]:
    side = 2 ** len(config.block_out_channels)
    return (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),)


@dataclass(frozen=True)
class Component:
    """How one folder of a pipeline becomes a module with parameters."""

    config: Callable[[Mapping[str, Any]], Any]
    module: Callable[..., nn.Module]
    inputs: Callable[[Any], tuple[Any, ...]]


COMPONENTS = {
    "transformer": Component(FluxConfig.from_dict, FluxTransformer, _transformer_inputs),
    "text_encoder": Component(CLIPTextConfig.from_dict, CLIPTextEncoder, _text_inputs),
    "text_encoder_2": Component(T5Config.from_dict, T5Encoder, _text_inputs),
    "vae": Component(VAEConfig.from_dict, AutoencoderKL, _vae_inputs),
}


def build(name: str, config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module of a component.

    Args:
        name: a key of `COMPONENTS`.
        config: its parsed `config.json`.
        dtype: compute dtype.
    """
    component = COMPONENTS[name]
    return component.module(component.config(config), dtype=dtype)


def abstract_params(name: str, config: Mapping[str, Any]) -> PyTree:
    """Shapes of a component's parameters, as a tree of `jax.ShapeDtypeStruct`; needs no memory."""
    component = COMPONENTS[name]
    module = build(name, config)
    inputs = component.inputs(component.config(config))
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def load_component(
    source: Source, name: str, dtype: DTypeLike, advance: Callable[[int], Any] = lambda read: None
) -> tuple[nn.Module, dict[str, PyTree]]:
    """Module and parameters of one component, computing and stored in `dtype`.

    Every tensor of the files must be in the model and the other way round. Each leaf goes onto the
    device as soon as it is read.

    Args:
        source: its weights.
        name: a key of `COMPONENTS`.
        dtype: of parameters and products.
        advance: called with the number of bytes of each part that was read.

    Raises:
        InputError: tensors are missing, surplus, misshapen or not finite.
    """
    shapes = abstract_params(name, source.config)
    if isinstance(source, TorchSource):

        def place(leaf: np.ndarray) -> jax.Array:
            # As it lies in memory, and turned there: devices transpose many times faster.
            order = np.argsort([-stride for stride in leaf.strides], kind="stable")
            lying = jax.device_put(leaf.transpose(order))
            return _turned(lying, tuple(np.argsort(order)), dtype).block_until_ready()

        params = to_flax(
            source.table, source.tensors, shapes, source=source.where, place=place, advance=advance
        )
    else:
        device = SingleDeviceSharding(jax.devices()[0])
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=device), shapes
        )
        params = read_params(source.where, wanted)
        advance(source.nbytes)
    return build(name, source.config, dtype), params


@functools.partial(jax.jit, static_argnums=(1, 2))
def _turned(array: jax.Array, axes: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return array.transpose(axes).astype(dtype)
