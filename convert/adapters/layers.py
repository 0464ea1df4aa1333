"""An adapter layer by layer: each layer has its own rank, alpha and types.

Axis letters: I inputs, O outputs, R rank.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np

from convert.adapters.names import Place, label
from flux_jax.settings import TEXT_ONLY
from flux_jax.weights.safetensors_files import is_float

# Smallest and largest alpha: their product with any rank is within float32's range.
ALPHAS = (1e-30, 1e30)


@dataclass(frozen=True)
class Pair:
    """A layer's change, alpha / R * up @ down.

    Attributes:
        down: A in PyTorch's orientation, [R, I].
        up: B in PyTorch's orientation, [O, R].
        alpha: one number, with its type in the file.
        bias: change of the layer's bias, [O], with its scale applied; None for no change.
        magnitude: DoRA's length of each row, [O]: the layer's weight becomes
            magnitude * (W + alpha / R * up @ down) / ‖W + alpha / R * up @ down‖, row by row
            (Liu et al. 2024, Eq. 5); None for a plain sum.
    """

    down: np.ndarray
    up: np.ndarray
    alpha: np.ndarray
    bias: np.ndarray | None = None
    magnitude: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I), the shape of the layer's weight."""
        return len(self.up), self.down.shape[1]

    @property
    def rank(self) -> int:
        """R, the rank."""
        return self.down.shape[0]

    @property
    def scale(self) -> Fraction:
        """Alpha / R, exact for alpha's decimals."""
        return Fraction(text(self.alpha)) / self.rank


def on_text_only(layers: Iterable[Place]) -> list[str]:
    """Names of the layers that change text tokens only, for messages."""
    return [label(place) for place in layers if place[0].endswith(f"/{TEXT_ONLY}")]


@dataclass(frozen=True)
class Full:
    """A layer's change as one matrix, from LoKr, LoHa or a full difference.

    Attributes:
        delta: change of the weight in PyTorch's orientation, [O, I], with its scale applied.
        bias: change of the layer's bias, [O]; None for no change.
        magnitude: DoRA's length of each row, [O], as in `Pair`.
    """

    delta: np.ndarray
    bias: np.ndarray | None = None
    magnitude: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I), the shape of the layer's weight."""
        outputs, inputs = self.delta.shape
        return outputs, inputs


Layers = Mapping[Place, Pair | Full]


def kind(change: Pair | Full) -> str:
    """Name of a change's kind: "LoRA", "DoRA", "full difference", "... with a bias"."""
    name = "LoRA" if isinstance(change, Pair) else "full difference"
    if change.magnitude is not None:
        name = "DoRA" if name == "LoRA" else f"{name} with DoRA"
    return name if change.bias is None else f"{name} with a bias"


def text(alpha: np.ndarray) -> str:
    """The shortest decimal that represents this number in its type: 0.1 stays 0.1."""
    return str(alpha.reshape(())[()])


def number(alpha: np.ndarray) -> float:
    """The number that `text` prints."""
    return float(text(alpha))


def typed(value: float, dtype: Any) -> np.ndarray:
    """An alpha of this type; float32 if the type cannot represent the number."""
    with np.errstate(over="ignore"):
        single = np.array(value, np.float32)
        alpha = single.astype(dtype) if is_float(dtype) else single
    return alpha if number(alpha) == value else single


def implied(down: np.ndarray) -> np.ndarray:
    """The default alpha of a layer: the rank, so that alpha / R is 1."""
    # A tensor without axes has no rank, and is refused later.
    return typed(float(len(down) if down.ndim else 1), down.dtype)


def same(one: Pair | Full | None, other: Pair | Full | None) -> bool:
    """Whether two changes are equal bit by bit."""
    if one is None or other is None or type(one) is not type(other):
        return one is other
    for name in (field.name for field in fields(one)):
        first, second = getattr(one, name), getattr(other, name)
        if (first is None) != (second is None):
            return False
        if first is not None and not same_bits(first, second):
            return False
    return True


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal in type, shape and every bit."""
    like = one.dtype == other.dtype and one.shape == other.shape
    return like and one.tobytes() == other.tobytes()
