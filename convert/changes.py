"""What adapters change in a model's tensors, in whatever layout these are.

Axis letters: L blocks, I inputs, O outputs, R rank.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.adapters import find_adapter, split_strength
from convert.errors import InputError
from convert.lora import read_adapter
from convert.mapping import Slot, flatten


@dataclass(frozen=True)
class Adapter:
    """An adapter to merge.

    Attributes:
        name: its file or folder, as given.
        strength: as given.
        alpha: the change is strength * alpha / R * (A B).
        lora: {"dual_blocks": {"attn": {"add_q_proj": {"A": [L, I, R], "B": [L, R, O]}}}}, ...
    """

    name: str
    strength: float
    alpha: float
    lora: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name}:{self.strength}"


@dataclass(frozen=True)
class Change:
    """What one adapter adds to a kernel: factor * (A B).

    Attributes:
        A: [L, I, R].
        B: [L, R, O].
        factor: strength * alpha / R.
    """

    A: np.ndarray
    B: np.ndarray
    factor: float


# By the kernels' paths, joined by "/".
Changes = Mapping[str, Sequence[Change]]


def read_adapters(given: Sequence[str]) -> list[Adapter]:
    """Reads adapters.

    Args:
        given: "PATH" or "PATH:STRENGTH" each.

    Raises:
        InputError: one cannot be used or comes twice; lists every fault.
    """
    read: list[Adapter] = []
    problems = []
    for text in given:
        try:
            path, strength = split_strength(text)
            file = read_adapter(find_adapter(path))
        except InputError as error:
            problems.append(str(error))
            continue
        read.append(Adapter(str(path), strength, file.alpha, file.lora))
    for one, other in itertools.combinations(read, 2):
        if _is_same(one, other):
            problems.append(
                f"{one} and {other} are the same adapter; give it once, as "
                f"{one.name}:{one.strength + other.strength:g}"
            )
    refuse_all(problems)
    return read


def _is_same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters hold the same numbers, whatever their files' names and layouts."""
    first, second = flatten(one.lora), flatten(other.lora)
    return (one.alpha, first.keys()) == (other.alpha, second.keys()) and all(
        np.array_equal(leaf, second[path]) for path, leaf in first.items()
    )


def refuse_all(problems: Sequence[str]) -> None:
    """Raises one `InputError` with a line for every problem, if there are any."""
    if problems:
        raise InputError("\n".join(problems))


def changes_of(adapters: Sequence[Adapter]) -> dict[str, list[Change]]:
    """What adapters change, by the kernels' paths."""
    changes: dict[str, list[Change]] = {}
    for adapter in adapters:
        leaves = flatten(adapter.lora)
        for path in (path for path in leaves if path.endswith("/A")):
            A, B = leaves[path], leaves[f"{path[:-1]}B"]
            change = Change(A, B, adapter.strength * adapter.alpha / A.shape[-1])
            changes.setdefault(f"{path[:-1]}kernel", []).append(change)
    return changes


def merged(tensor: np.ndarray, slot: Slot, changes: Changes) -> np.ndarray:
    """A tensor with its parts' changes; parts without any come as they are.

    Args:
        tensor: as its file holds it.
        slot: what it holds.
        changes: of the kernels.
    """
    leaves = []
    for index, path in enumerate(slot.leaves):
        leaf = slot.row.rule.to_leaf(tensor, slot.leaf_shapes, index)
        leaves.append(_added(leaf, changes[path], slot.block) if path in changes else leaf)
    return slot.row.rule.to_torch(leaves)


def _added(leaf: np.ndarray, changes: Sequence[Change], block: int | None) -> np.ndarray:
    """A kernel [I, O] with its changes, in its own type."""
    total = leaf.astype(np.promote_types(leaf.dtype, np.float32))
    A = np.concatenate([change.A[block].astype(np.float64) for change in changes], axis=1)
    B = np.concatenate([change.factor * change.B[block].astype(np.float64) for change in changes])
    # Turned, and turned back: PyTorch's kernels lie in memory as [O, I].
    total += (B.T.astype(total.dtype) @ A.T.astype(total.dtype)).T
    with np.errstate(over="ignore"):
        return total.astype(leaf.dtype)
