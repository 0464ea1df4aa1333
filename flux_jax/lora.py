"""Adapters: trees that mirror the base's stacked kernels, for most one A and one B per target.

A tree is passed to a model as the variable collection `lora`; the base is not modified. A target's
leaves are documented in `convert.adapters.stacked`; `flux_jax.models.dora` replaces M by the gain
that follows from it and the model's weights. All are linear in the strength. A target that ends in
"/text", in layers of single-stream blocks, has an A and a B that apply to text tokens only.
Axis letters: L blocks, I inputs, O outputs, R rank.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from flux_jax.errors import InputError, counted, nearest
from flux_jax.settings import BLOCKS, JOINED_LAYERS, TEXT_ONLY, TEXT_QUERY_KEY
from flux_jax.tree import flatten, nest


class Adapter(flax.struct.PyTreeNode):
    """A trained adapter.

    Attributes:
        lora: {"dual_blocks": {"attn": {"add_q_proj": {"A": [L, I, R], "B": [L, R, O]}}}}, ...
        alpha: a low-rank layer's change is strength * alpha / R * (x A) B.
    """

    lora: PyTree
    alpha: float

    @property
    def rank(self) -> int:
        """R, the largest rank of an A and its B; 1 without any."""
        halves = [leaf for path, leaf in flatten(self.lora).items() if path.endswith("/A")]
        return max((leaf.shape[-1] for leaf in halves), default=1)

    def scaled(self, strength: Float[Array, ""] | float = 1.0) -> PyTree:
        """The tree to apply: all effects times the strength, with alpha / R folded into every B.

        At strength 0 the model is the base.

        Raises:
            InputError: a layer is DoRA, which depends on the model's weights.
        """
        low_rank = strength * self.alpha / self.rank
        leaves = {}
        for path, leaf in flatten(self.lora).items():
            name = path.rpartition("/")[2]
            if name == "M":
                raise InputError(
                    f"{path.removesuffix('/M')} is DoRA, which depends on the model's weights; "
                    "apply it with flux_jax.Pipeline"
                )
            leaf = jnp.asarray(leaf)
            if name != "A":
                # In bfloat16 the product with a scale would be rounded a second time.
                wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
                leaf = wide * (low_rank if name == "B" else strength)
            leaves[path] = leaf
        return nest(leaves)


def kernels(params: Mapping[str, Any]) -> dict[str, Any]:
    """Kernels of all dense layers by path, [L, I, O] in blocks and [I, O] outside.

    Args:
        params: the transformer's parameters (or their shapes).
    """
    return {
        path.removesuffix("/kernel"): leaf
        for path, leaf in flatten(params).items()
        if path.endswith("/kernel")
    }


def targets_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Kernels by the targets that adapters may have: all layers, and some for text tokens only.

    Args:
        params: the transformer's parameters (or their shapes).
    """
    known = kernels(params)
    return known | {f"{path}/{TEXT_ONLY}": known[path] for path in JOINED_LAYERS if path in known}


def stacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The kernels that are in blocks."""
    return {path: leaf for path, leaf in kernels(params).items() if len(leaf.shape) == 3}


def init(
    key: PRNGKeyArray,
    params: Mapping[str, Any],
    targets: Sequence[str] = TEXT_QUERY_KEY,
    rank: int = 8,
) -> PyTree:
    """A fresh adapter: A ~ N(0, 1/R²), as PEFT's "gaussian", and B = 0, so that it has no effect.

    Args:
        key: random key.
        params: the transformer's parameters (or their shapes).
        targets: paths of dense layers in `params`, joined by "/", or names in `targets_of`.
        rank: R.

    Raises:
        InputError: a target is not a dense layer of the model, or rank is below 1.
    """
    if rank < 1:
        raise InputError(f"rank = {rank} must be at least 1")
    known = targets_of(params)
    unknown = sorted(set(targets) - set(known))
    if unknown or not targets:
        named = unknown[0] if unknown else ""
        raise InputError(
            f"targets: {named!r} is not a layer of the model; {nearest(named, sorted(known))}"
        )
    flat = {}
    for target, target_key in zip(targets, jax.random.split(key, len(targets)), strict=True):
        *blocks, inputs, outputs = known[target].shape
        flat[f"{target}/A"] = jax.random.normal(target_key, (*blocks, inputs, rank)) / rank
        flat[f"{target}/B"] = jnp.zeros((*blocks, rank, outputs))
    return nest(flat)


def check(lora: PyTree, params: Mapping[str, Any], source: str = "the adapter") -> None:
    """Checks that an adapter's tree fits a model.

    Args:
        lora: the tree.
        params: the transformer's parameters (or their shapes).
        source: name of the adapter in messages.

    Raises:
        InputError: a layer is missing in the model, is beyond its last block, or has another shape.
    """
    extents: dict[str, tuple[int, ...]] = {}
    leaves = flatten(lora)
    for path, leaf in leaves.items():
        target, _, name = path.rpartition("/")
        if name == "A":
            extents[target] = (*leaf.shape[:-1], leaves[f"{target}/B"].shape[-1])
        elif name == "D":
            extents[target] = leaf.shape
    check_extents(extents, params, source)


def check_extents(
    extents: Mapping[str, Sequence[int]], params: Mapping[str, Any], source: str = "the adapter"
) -> None:
    """Checks that a model has layers of these shapes.

    Args:
        extents: by target, (index of the last changed block + 1, inputs, outputs); outside blocks
            (inputs, outputs).
        params: the transformer's parameters (or their shapes).
        source: name of the adapter in messages.

    Raises:
        InputError: a layer is missing in the model, is beyond its last block, or has another shape.
    """
    known, problems, beyond = targets_of(params), [], set()
    for target, extent in sorted(extents.items()):
        wanted = list(known[target].shape) if target in known else []
        fits = len(extent) == len(wanted) and list(extent[-2:]) == wanted[-2:]
        if fits and len(wanted) == 3 and extent[0] > wanted[0]:
            blocks = counted(wanted[0], BLOCKS[target.split("/")[0]])
            beyond.add(f"block {extent[0] - 1}: the model has {blocks}")
        if not fits:
            there = f"has {wanted} there" if wanted else "is not there"
            problems.append(f"{target} {list(extent)} {there}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{source} was made for another architecture than the model's: "
            f"{', '.join(problems[:3])}{more} (blocks, inputs, outputs); take one that was trained "
            "on it"
        )
    if beyond:
        raise InputError(
            f"{source} changes {' and '.join(sorted(beyond))} (numbered from 0); take one that was "
            "trained on this model"
        )


def fitted(adapter: Adapter, params: Mapping[str, Any]) -> Adapter:
    """Pads the adapter to the model's number of blocks; the blocks that it lacks are unchanged.

    Args:
        adapter: as read from its file.
        params: the transformer's parameters (or their shapes).

    Raises:
        InputError: the adapter does not fit, see `check`.
    """
    check(adapter.lora, params)
    known, leaves = targets_of(params), flatten(adapter.lora)
    for path, leaf in leaves.items():
        target, _, name = path.rpartition("/")
        *depth, _, _ = known[target].shape
        if depth and len(leaf) < depth[0]:
            widths = [(0, depth[0] - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)]
            nothing = jnp.nan if name == "M" else 0
            leaves[path] = jnp.pad(jnp.asarray(leaf), widths, constant_values=nothing)
    return Adapter(nest(leaves), adapter.alpha)


def unscaled(lora: PyTree) -> Adapter:
    """An adapter whose change is exactly A B: its alpha equals its rank."""
    adapter = Adapter(lora, 1.0)
    return Adapter(lora, adapter.rank)


def combine(
    adapters: Sequence[tuple[Adapter, Float[Array, ""] | float]], dtype: DTypeLike | None = None
) -> PyTree | None:
    """One tree with the summed effect of (adapter, strength) pairs; None if there are none.

    Low-rank factors are concatenated along the rank: `[A1 A2] [B1; B2] = A1 B1 + A2 B2`, so the
    sum is exact. All other leaves of a target are added.

    Args:
        adapters: adapters fitted to the same model, with their strengths.
        dtype: of the leaves; by default each A keeps its own and all others are float32.
    """
    trees = [flatten(adapter.scaled(strength)) for adapter, strength in adapters]
    if not trees:
        return None
    joined: dict[str, Array] = {}
    for path in sorted({path for tree in trees for path in tree}):
        parts = [tree.pop(path) for tree in trees if path in tree]
        if path.endswith(("/A", "/B")):
            leaf = jnp.concatenate(parts, axis=-1 if path.endswith("/A") else -2)
        else:
            leaf = functools.reduce(jnp.add, parts)
        joined[path] = leaf if dtype is None else leaf.astype(dtype)
    return nest(joined)
