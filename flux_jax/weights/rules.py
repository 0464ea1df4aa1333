"""Rules of a name table: how PyTorch tensors are converted to Flax leaves and back.

A row maps one PyTorch tensor to one or more Flax leaves. Names contain placeholders in braces. A
placeholder on both sides is copied ({a}: `resnets.{a}` and `resnets_{a}`); one in the PyTorch name
only counts the blocks that Flax stacks along a leading axis L.

A layout that joins several leaves into one tensor (`qkv`) or reorders a tensor's parts has its own
table, whose rows name several leaves or use another `Rule`; `flux_jax.weights.mapping` handles all
tables.

Axis letters: I inputs, O outputs.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

Shape = tuple[int, ...]


@runtime_checkable
class Rule(Protocol):
    """Converts the tensor of a row to the leaves of that row (for one block), and back."""

    def torch_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The PyTorch tensor's shape, from the leaves' shapes."""
        ...

    def to_leaf(self, tensor: Any, shapes: Sequence[Shape], index: int) -> np.ndarray:
        """One of the leaves; only the slice that it needs is read from a lazy tensor."""
        ...

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The PyTorch tensor."""
        ...


@dataclass(frozen=True)
class Permuted:
    """One leaf, whose axis j is axis `axes[j]` of the PyTorch tensor."""

    axes: tuple[int, ...]

    def torch_shape(self, shapes: Sequence[Shape]) -> Shape:
        """See `Rule`."""
        return tuple(shapes[0][axis] for axis in np.argsort(self.axes))

    def to_leaf(self, tensor: Any, shapes: Sequence[Shape], index: int) -> np.ndarray:
        """See `Rule`."""
        return np.asarray(tensor).transpose(self.axes)

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """See `Rule`."""
        return leaves[0].transpose(np.argsort(self.axes))


@dataclass(frozen=True)
class Joined:
    """Several leaves, concatenated along the tensor's first axis, each permuted like `each`."""

    each: Permuted

    def torch_shape(self, shapes: Sequence[Shape]) -> Shape:
        """See `Rule`."""
        parts = [self.each.torch_shape([shape]) for shape in shapes]
        return (sum(part[0] for part in parts), *parts[0][1:])

    def to_leaf(self, tensor: Any, shapes: Sequence[Shape], index: int) -> np.ndarray:
        """See `Rule`."""
        ends = np.cumsum([0, *(self.each.torch_shape([shape])[0] for shape in shapes)])
        part = tensor[int(ends[index]) : int(ends[index + 1])]
        return self.each.to_leaf(part, shapes[index : index + 1], 0)

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """See `Rule`."""
        return np.concatenate([self.each.to_torch([leaf]) for leaf in leaves])


@dataclass(frozen=True)
class Swapped:
    """One leaf, permuted like `each`, with the halves of the tensor's first axis swapped."""

    each: Permuted

    def torch_shape(self, shapes: Sequence[Shape]) -> Shape:
        """See `Rule`."""
        return self.each.torch_shape(shapes)

    def to_leaf(self, tensor: Any, shapes: Sequence[Shape], index: int) -> np.ndarray:
        """See `Rule`."""
        return self.each.to_leaf(self._swap(np.asarray(tensor)), shapes, index)

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """See `Rule`."""
        return self._swap(self.each.to_torch(leaves))

    def _swap(self, tensor: np.ndarray) -> np.ndarray:
        return np.roll(tensor, len(tensor) // 2, axis=0)


@dataclass(frozen=True)
class Pointwise:
    """A dense layer [I, O] that PyTorch stores as a convolution [O, I, 1, 1]."""

    def torch_shape(self, shapes: Sequence[Shape]) -> Shape:
        """See `Rule`."""
        ((inputs, outputs),) = shapes
        return (outputs, inputs, 1, 1)

    def to_leaf(self, tensor: Any, shapes: Sequence[Shape], index: int) -> np.ndarray:
        """See `Rule`."""
        return np.asarray(tensor)[:, :, 0, 0].T

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """See `Rule`."""
        return leaves[0].T[:, :, None, None]


SCALAR = Permuted(())
VECTOR = Permuted((0,))
SAME = Permuted((0, 1))
LINEAR = Permuted((1, 0))  # [O, I] -> [I, O]
CONV = Permuted((2, 3, 1, 0))  # [O, I, h, w] -> [h, w, I, O]
POINTWISE = Pointwise()


@dataclass(frozen=True)
class Row:
    """One PyTorch tensor and the Flax leaves in it."""

    torch: str
    flax: tuple[str, ...]
    rule: Rule


@dataclass(frozen=True)
class Table:
    """All names of one component.

    Attributes:
        rows: one row for each PyTorch tensor.
        prefix: prefix of every name in files; files without it are read too.
        copies: names of tensors that duplicate or replace another name in some files.
        ignored: names of buffers that some files contain and no model needs.
        stem: name of the files, without suffix.
    """

    rows: tuple[Row, ...]
    prefix: str = ""
    copies: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    stem: str = "diffusion_pytorch_model"


def placeholders(name: str) -> set[str]:
    """The placeholders of a name, without braces."""
    return set(re.findall(r"\{(\w+)\}", name))


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    """A regular expression that captures the numbers at a name's placeholders."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(name)))


def match(template: str, name: str) -> dict[str, str] | None:
    """The numbers at a template's placeholders in `name`; None if it does not match."""
    fields = _pattern(template).fullmatch(name)
    return fields.groupdict() if fields else None
