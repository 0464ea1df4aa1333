"""Builds modules from configurations and loads their parameters onto devices."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import PyTree

from flux_jax import progress
from flux_jax import sharding as meshes
from flux_jax.errors import InputError
from flux_jax.lora import stacked
from flux_jax.models import quantize as rounding
from flux_jax.models.clip.text import CLIPTextConfig, CLIPTextEncoder
from flux_jax.models.kernels import fp8_hopper
from flux_jax.models.t5 import T5Config, T5Encoder
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.models.vae import AutoencoderKL, VAEConfig
from flux_jax.settings import STORAGE
from flux_jax.weights import checkpoint, mapping
from flux_jax.weights.source import FlaxSource, Source, TorchSource


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
    """How to build a module and its parameters from one folder of a pipeline."""

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
    """Builds the module of a component.

    Args:
        name: a key of `COMPONENTS`.
        config: its parsed `config.json`.
        dtype: compute dtype.
    """
    component = COMPONENTS[name]
    return component.module(component.config(config), dtype=dtype)


def check_widths(configs: Mapping[str, Any]) -> None:
    """Checks that the models belong to one pipeline.

    Raises:
        InputError: the output width of a model is not the input width of the transformer.
    """
    for name, width, taker in (
        ("text_encoder: hidden_size", configs["text_encoder"].hidden_size, "pooled_projection_dim"),
        ("text_encoder_2: d_model", configs["text_encoder_2"].d_model, "joint_attention_dim"),
        ("vae: 4 latent_channels", 4 * configs["vae"].latent_channels, "in_channels"),
    ):
        expected = getattr(configs["transformer"], taker)
        if width != expected:
            raise InputError(
                f"{name} = {width} and the transformer's {taker} = {expected} must be the same; "
                "take all models from one pipeline"
            )


def abstract_params(name: str, config: Mapping[str, Any]) -> PyTree:
    """Shapes of a component's parameters, a tree of `jax.ShapeDtypeStruct`; allocates nothing."""
    # A new tree for each caller.
    return jax.tree.map(lambda leaf: leaf, _traced(name, COMPONENTS[name].config(config)))


@functools.cache
def _traced(name: str, sizes: Any) -> PyTree:
    """Shapes of a component's parameters, cached: tracing a model takes a tenth of a second."""
    component = COMPONENTS[name]
    inputs = component.inputs(sizes)
    return jax.eval_shape(component.module(sizes).init, jax.random.key(0), *inputs)["params"]


class Weights(Mapping[str, Any]):
    """Parameters of a pipeline's models, each read on first access.

    Every tensor of the files must be in the model and vice versa, which is checked at construction.
    Each leaf is moved to its devices as soon as it is read.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        dtype: DTypeLike,
        mesh: Mesh,
        quantize: str | None = None,
    ):
        """Checks names and shapes.

        Args:
            sources: weights by the names in `COMPONENTS`.
            dtype: dtype of the loaded parameters.
            mesh: devices, see `flux_jax.sharding`.
            quantize: "int8" or "fp8" quantises the transformer's large kernels, see
                `flux_jax.models.quantize`.

        Raises:
            InputError: tensors are missing, surplus or misshapen, or the type of quantisation is
                unknown.
        """
        rounding.check(quantize)
        self._sources, self._dtype, self._mesh = sources, dtype, mesh
        self._quantize = quantize
        self._read: dict[str, PyTree] = {}
        for name, source in sources.items():
            shapes = abstract_params(name, source.config)
            if isinstance(source, TorchSource):
                mapping.check(source.table, source.tensors, shapes, source=source.where)
            elif isinstance(source, FlaxSource):
                checkpoint.check(source.where, shapes)

    def __getitem__(self, name: str) -> PyTree:
        """The parameters of a model.

        Raises:
            InputError: a tensor holds non-finite numbers, or a file is damaged.
        """
        if name not in self._read:
            self._read[name] = read_params(
                self._sources[name], name, self._dtype, self._mesh, self._storage(name)
            )
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def shapes(self, name: str) -> PyTree:
        """A model's parameters as `jax.ShapeDtypeStruct`, with their shardings; reads nothing."""
        wanted = _wanted(self._sources[name], name, self._dtype, self._mesh)
        storage = self._storage(name)
        return _in_place(self._mesh, rounding.shapes(wanted, storage)) if storage else wanted

    def _storage(self, name: str) -> str | None:
        return self._quantize if name == "transformer" else None

    def on(self, mesh: Mesh) -> "Weights":
        """The same weights, unread, for other devices."""
        other = copy.copy(self)
        other._mesh, other._read = mesh, {}
        return other

    def release(self, *names: str) -> None:
        """Frees the memory of models; they are read again on the next access."""
        for name in names:
            self._read.pop(name, None)


def read_params(
    source: Source, name: str, dtype: DTypeLike, mesh: Mesh, quantize: str | None = None
) -> PyTree:
    """Reads the parameters of one model onto its devices, with a progress bar.

    Args:
        source: the weights.
        name: a key of `COMPONENTS`.
        dtype: dtype of the parameters.
        mesh: devices; each receives only its own shards.
        quantize: storage type of stacked dense kernels, "int8" or "fp8"; each is quantised before
            the next one is read.

    Raises:
        InputError: tensors are missing, surplus, misshapen or not finite, or a file is damaged.
    """
    wanted = _wanted(source, name, dtype, mesh)
    kernels = {f"{layer}/kernel" for layer in stacked(wanted)} if quantize else set()

    def rounded(leaf: jax.Array) -> rounding.Quantized:
        assert quantize is not None
        placed = place_quantized(mesh, rounding.quantized(leaf, quantize))
        # The leaf's memory is not freed before this is done.
        return jax.block_until_ready(placed)

    def place(path: str, leaf: np.ndarray) -> Any:
        placed = _placed(leaf, dtype, mesh)
        return rounded(placed) if path in kernels else placed

    title = {"desc": f"loading {name}", "total": source.nbytes, "unit": "B", "unit_scale": True}
    with progress.bar(**title) as bar:
        if isinstance(source, TorchSource):
            params = mapping.to_flax(
                source.table,
                source.tensors,
                wanted,
                source=source.where,
                place=place,
                advance=bar.update,
            )
            return rounding.beside(params)
        params = checkpoint.read_params(source.where, wanted, dict.fromkeys(kernels, rounded))
        bar.update(source.nbytes)
        return rounding.beside(params)


def place_quantized(mesh: Mesh, kernel: rounding.Quantized) -> rounding.Quantized:
    """Places a quantised kernel on its devices, in the order in which they read it."""
    return jax.device_put(kernel, jax.tree.map(lambda leaf: _place(mesh, leaf), kernel))


def _wanted(source: Source, name: str, dtype: DTypeLike, mesh: Mesh) -> PyTree:
    shapes = abstract_params(name, source.config)
    return _in_place(
        mesh, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    )


def _in_place(mesh: Mesh, shapes: PyTree) -> PyTree:
    """Adds the weights' shardings to their shapes."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_place(mesh, leaf)),
        shapes,
    )


def _place(mesh: Mesh, leaf: Any) -> NamedSharding | Format:
    """A weight's sharding; with its inputs last in memory where `fp8_hopper` reads it."""
    sharding = meshes.of_weight(mesh, leaf.shape)
    if leaf.dtype == STORAGE["fp8"].dtype and fp8_hopper.runs_on(mesh.devices.ravel().tolist()):
        return Format(Layout((0, 2, 1)), sharding)
    return sharding


def _placed(leaf: np.ndarray, dtype: DTypeLike, mesh: Mesh) -> jax.Array:
    """Moves a leaf to its devices; accelerators transpose it themselves, faster than the host."""
    if mesh.devices.flat[0].platform == "cpu":
        # A copy, since the file's memory may be shared with the array.
        leaf = np.array(leaf, dtype, order="C")
    order = np.argsort([-stride for stride in leaf.strides], kind="stable")
    wanted = meshes.of_weight(mesh, leaf.shape)
    lying = leaf.transpose(order)
    spec = [*wanted.spec, *(None,) * (leaf.ndim - len(wanted.spec))]
    sharding = NamedSharding(mesh, PartitionSpec(*(spec[axis] for axis in order)))
    sent = jax.make_array_from_callback(lying.shape, sharding, lying.__getitem__)
    if leaf.dtype == dtype and (order == np.arange(leaf.ndim)).all():
        return sent.block_until_ready()
    return _turned(sent, tuple(np.argsort(order).tolist()), dtype, wanted).block_until_ready()


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _turned(
    array: jax.Array, axes: tuple[int, ...], dtype: DTypeLike, wanted: NamedSharding
) -> jax.Array:
    turned = array.transpose(axes).astype(dtype)
    return jax.lax.with_sharding_constraint(turned, wanted)
