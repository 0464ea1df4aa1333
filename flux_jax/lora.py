"""Low-rank adapters: trees that mirror the base's stacked kernels, one A and one B a target.

A tree is passed to a model as the variable collection `lora`; the base stays untouched.
Axis letters: L blocks, I inputs, O outputs, R rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from convert.errors import InputError, nearest
from convert.mapping import flatten, nest

TEXT_QUERY_KEY = ("dual_blocks/attn/add_q_proj", "dual_blocks/attn/add_k_proj")


@flax.struct.dataclass
class Adapter:
    """A trained adapter.

    Attributes:
        lora: {"dual_blocks": {"attn": {"add_q_proj": {"A": [L, I, R], "B": [L, R, O]}}}}, ...
        alpha: the layer's change is strength * alpha / R * (x A) B.
    """

    lora: PyTree
    alpha: float

    @property
    def rank(self) -> int:
        """R, the inner width of every A and B."""
        return jax.tree.leaves(self.lora)[0].shape[-1]

    def scaled(self, strength: Float[Array, ""] | float = 1.0) -> PyTree:
        """The tree to apply: strength * alpha / R folded into every B; 0 gives the base."""
        factor = strength * self.alpha / self.rank
        return nest(
            {
                path: leaf * factor if path.endswith("/B") else leaf
                for path, leaf in flatten(self.lora).items()
            }
        )


def kernels(params: Mapping[str, Any]) -> dict[str, Any]:
    """Kernels of all dense layers, [L, I, O] in blocks and [I, O] outside, by their layers' paths.

    Args:
        params: the transformer's parameters (or their shapes).
    """
    return {
        path.removesuffix("/kernel"): leaf
        for path, leaf in flatten(params).items()
        if path.endswith("/kernel")
    }


def stacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `kernels` that lie in blocks."""
    return {path: leaf for path, leaf in kernels(params).items() if len(leaf.shape) == 3}


def init(
    key: PRNGKeyArray,
    params: Mapping[str, Any],
    targets: Sequence[str] = TEXT_QUERY_KEY,
    rank: int = 8,
) -> PyTree:
    """A fresh adapter: A ~ N(0, 1/R²), as PEFT's "gaussian", and B = 0, so that nothing changes.

    Args:
        key: random key.
        params: the transformer's parameters (or their shapes).
        targets: paths of dense layers in `params`, joined by "/".
        rank: R.

    Raises:
        InputError: a target is not a dense layer of the model, or rank is below 1.
    """
    if rank < 1:
        raise InputError(f"rank = {rank} must be at least 1")
    known = kernels(params)
    unknown = sorted(set(targets) - set(known))
    if unknown or not targets:
        named = unknown[0] if unknown else ""
        raise InputError(
            f"targets: {named!r} is no layer of the model; {nearest(named, sorted(known))}"
        )
    flat = {}
    for target, target_key in zip(targets, jax.random.split(key, len(targets)), strict=True):
        *blocks, inputs, outputs = known[target].shape
        flat[f"{target}/A"] = jax.random.normal(target_key, (*blocks, inputs, rank)) / rank
        flat[f"{target}/B"] = jnp.zeros((*blocks, rank, outputs))
    return nest(flat)


def check(lora: PyTree, params: Mapping[str, Any]) -> None:
    """Makes sure that an adapter's tree fits a model.

    Args:
        lora: the tree.
        params: the transformer's parameters (or their shapes).

    Raises:
        InputError: a layer is missing in the model, or has another shape; names every one.
    """
    leaves, known = flatten(lora), kernels(params)
    problems = []
    for target in sorted({path.rpartition("/")[0] for path in leaves}):
        found = [*leaves[f"{target}/A"].shape[:-1], leaves[f"{target}/B"].shape[-1]]
        wanted = list(known[target].shape) if target in known else None
        if found != wanted:
            has = f"there {wanted}" if wanted else "not there"
            problems.append(f"{target} (blocks, inputs, outputs) is {found} here and {has}")
    if problems:
        listing = "\n  ".join(problems)
        raise InputError(
            "the adapter was made for another architecture than the model's; take an adapter that "
            f"was trained on it:\n  {listing}"
        )


def unscaled(lora: PyTree) -> Adapter:
    """An adapter whose change is A B as they are: its alpha is its rank."""
    return Adapter(lora, jax.tree.leaves(lora)[0].shape[-1])  # pyright: ignore[reportCallIssue]


def combine(adapters: Sequence[tuple[Adapter, Float[Array, ""] | float]]) -> PyTree | None:
    """One tree with the summed effect of several (adapter, strength) pairs; None for none.

    Ranks are laid side by side: [A1 A2] [B1; B2] = A1 B1 + A2 B2, so the sum is exact.
    """
    trees = [flatten(adapter.scaled(strength)) for adapter, strength in adapters]
    if not trees:
        return None
    joined: dict[str, Array] = {}
    for path in sorted({path for tree in trees for path in tree}):
        parts = [tree[path] for tree in trees if path in tree]
        joined[path] = jnp.concatenate(parts, axis=-1 if path.endswith("/A") else -2)
    return nest(joined)
