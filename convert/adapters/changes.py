"""Applies adapters' changes to a model's tensors, in any layout of the model.

Axis letters: I inputs, O outputs, R rank.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from convert.adapters.files import read_layers
from convert.adapters.layers import Full, Layers, Pair, on_text_only
from convert.adapters.names import Place
from convert.adapters.paths import find_adapter, split_strength
from flux_jax.errors import InputError, counted
from flux_jax.weights.mapping import Slot


@dataclass(frozen=True)
class Adapter:
    """An adapter to merge.

    Attributes:
        name: its file or folder, as the user specified it.
        strength: as the user specified it.
        layers: each layer's change, of any kind.
    """

    name: str
    strength: float
    layers: Layers

    def __str__(self) -> str:
        return f"{self.name}:{self.strength}"


@dataclass(frozen=True)
class Change:
    """The change of a layer by one adapter: strength times its change."""

    strength: float
    layer: Pair | Full


Changes = Mapping[Place, Sequence[Change]]


def read_adapters(given: Sequence[str]) -> list[Adapter]:
    """Reads adapters.

    Args:
        given: "PATH" or "PATH:STRENGTH" each.

    Raises:
        InputError: an adapter cannot be used, or occurs twice.
    """
    read: list[Adapter] = []
    problems = []
    for text in given:
        try:
            path, strength = split_strength(text)
            layers = read_layers(find_adapter(path)).layers
            if text := on_text_only(layers):
                raise InputError(
                    f"{path}: it changes {text[0]} ({counted(len(text), 'layer')} in all), which "
                    "weights cannot do; apply it with flux_jax.Pipeline or erase-anything sample"
                )
        except InputError as error:
            problems.append(str(error))
            continue
        read.append(Adapter(str(path), strength, layers))
    for one, other in itertools.combinations(read, 2):
        if _is_same(one, other):
            problems.append(
                f"{one} and {other} are the same adapter; give it once, as "
                f"{one.name}:{one.strength + other.strength:g}"
            )
    refuse_all(problems)
    return read


def _is_same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters have the same numbers, regardless of file names and layouts."""
    return one.layers.keys() == other.layers.keys() and all(
        type(change) is type(other.layers[place])
        and all(
            np.array_equal(getattr(change, part.name), getattr(other.layers[place], part.name))
            for part in fields(change)
        )
        for place, change in one.layers.items()
    )


def refuse_all(problems: Sequence[str]) -> None:
    """Raises one `InputError` with the first problem, if any, and the number of the others."""
    if problems:
        others = len(problems) - 1
        each = "adapter" if others == 1 else "adapters"
        more = f"; {others} more {each} cannot be used either" if others else ""
        raise InputError(problems[0] + more)


def changes_of(adapters: Sequence[Adapter]) -> dict[Place, list[Change]]:
    """The adapters' changes, by layer."""
    changes: dict[Place, list[Change]] = {}
    for adapter in adapters:
        for place, layer in adapter.layers.items():
            changes.setdefault(place, []).append(Change(adapter.strength, layer))
    return changes


def changes_in(slot: Slot, changes: Changes) -> list[list[Change]]:
    """The changes of each part of a tensor: those of a weight, or those of a bias."""
    arrays = []
    for path in slot.leaves:
        target, _, name = path.rpartition("/")
        of_layer = changes.get((target, slot.block), ())
        arrays.append(
            [
                change
                for change in of_layer
                if name == "kernel" or (name == "bias" and change.layer.bias is not None)
            ]
        )
    return arrays


def merged(tensor: np.ndarray, slot: Slot, changes: Changes) -> np.ndarray:
    """Applies the changes of a tensor's parts; parts without changes stay as they are.

    Args:
        tensor: the tensor in its file.
        slot: its parts.
        changes: changes of the model's layers.
    """
    leaves = []
    for index, (path, given) in enumerate(zip(slot.leaves, changes_in(slot, changes), strict=True)):
        leaf = slot.row.rule.to_leaf(tensor, slot.leaf_shapes, index)
        added = _to_kernel if path.endswith("/kernel") else _to_bias
        leaves.append(added(leaf, given) if given else leaf)
    return slot.row.rule.to_torch(leaves)


def _to_bias(leaf: np.ndarray, changes: Sequence[Change]) -> np.ndarray:
    """Adds changes to a bias [O]; the result has the bias's type."""
    total = leaf.astype(np.promote_types(leaf.dtype, np.float32))
    for change in changes:
        assert change.layer.bias is not None, "left out otherwise"
        total += change.strength * change.layer.bias.astype(np.float64)
    return _rounded(total, leaf)


def _to_kernel(leaf: np.ndarray, changes: Sequence[Change]) -> np.ndarray:
    """Adds changes to a kernel [I, O]; the result has the kernel's type."""
    # Transposed and transposed back: PyTorch's kernels are [O, I] in memory.
    base = leaf.T.astype(np.promote_types(leaf.dtype, np.float32))
    plain = [
        (change.strength * float(change.layer.scale), change.layer)
        for change in changes
        if isinstance(change.layer, Pair) and change.layer.magnitude is None
    ]
    total = base.copy() if len(plain) < len(changes) else base
    if plain:
        down = np.concatenate([pair.down.astype(np.float64) for _, pair in plain])
        up = np.concatenate([factor * pair.up.astype(np.float64) for factor, pair in plain], axis=1)
        total += up.astype(total.dtype) @ down.astype(total.dtype)
    for change in changes:
        layer = change.layer
        if isinstance(layer, Full) or layer.magnitude is not None:
            total += change.strength * _difference(base, layer)
    return _rounded(total.T, leaf)


def _difference(base: np.ndarray, layer: Pair | Full) -> np.ndarray:
    """The change of a weight [O, I] by a full difference or DoRA, in the weight's type."""
    if isinstance(layer, Full):
        added = layer.delta.astype(base.dtype)
    else:
        up = float(layer.scale) * layer.up.astype(np.float64)
        added = up.astype(base.dtype) @ layer.down.astype(base.dtype)
    if layer.magnitude is None:
        return added
    turned = base + added
    lengths = np.linalg.norm(turned, axis=1)
    # Rows of zeros stay zero.
    ratio = layer.magnitude.astype(base.dtype) / np.where(lengths == 0, 1, lengths)
    return ratio[:, None] * turned - base


def _rounded(total: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return total.astype(leaf.dtype)
