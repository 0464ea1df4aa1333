"""How one PyTorch tensor becomes one or more Flax leaves, and back.

Axis letters: I inputs, O outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

Shape = tuple[int, ...]


@runtime_checkable
class Rule(Protocol):
    """How the tensor of a row becomes the leaves of that row (one block of them), and back."""

    def torch_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The PyTorch tensor's shape, from the leaves' shapes."""
        ...

    def to_leaf(self, tensor: Any, shapes: Sequence[Shape], index: int) -> np.ndarray:
        """One of the leaves; of a tensor that is sliced where it lies, no more is read."""
        ...

    def to_torch(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The PyTorch tensor."""
        ...


@dataclass(frozen=True)
class Permuted:
    """One leaf, whose axis j is the PyTorch tensor's axis `axes[j]`."""

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
    """Several leaves, one after the other along the tensor's first axis, permuted like `each`."""

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
    """One leaf, permuted like `each`; the halves of the tensor's first axis change places."""

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
    """A dense layer [I, O] that PyTorch keeps as a convolution [O, I, 1, 1]."""

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


VECTOR = Permuted((0,))
SAME = Permuted((0, 1))
LINEAR = Permuted((1, 0))  # [O, I] -> [I, O]
CONV = Permuted((2, 3, 1, 0))  # [O, I, h, w] -> [h, w, I, O]
POINTWISE = Pointwise()
