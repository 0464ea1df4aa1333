"""An adapter layer by layer: each keeps its own rank, alpha and types.

Axis letters: I inputs, O outputs, R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np

from convert.adapters.names import Place
from flux_jax.weights.safetensors_files import is_float

# The least and the greatest alpha: any rank times these is a number that float32 holds.
ALPHAS = (1e-30, 1e30)


@dataclass(frozen=True)
class Pair:
    """A layer's change, alpha / R * up @ down.

    Attributes:
        down: A, as PyTorch keeps it, [R, I].
        up: B, as PyTorch keeps it, [O, R].
        alpha: one number, of the type that the file has for it.
        bias: what the layer's own bias gets besides, [O], its scale applied; None for nothing.
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
        """(O, I), that of the layer's weight."""
        return len(self.up), self.down.shape[1]

    @property
    def rank(self) -> int:
        """R."""
        return self.down.shape[0]

    @property
    def scale(self) -> Fraction:
        """Alpha / R, of alpha's decimals."""
        return Fraction(text(self.alpha)) / self.rank


@dataclass(frozen=True)
class Full:
    """A layer's change as one matrix: what LoKr, LoHa and full differences come to.

    Attributes:
        delta: what is added to the weight, as PyTorch keeps it, [O, I], its scale applied.
        bias: what the layer's own bias gets besides, [O]; None for nothing.
        magnitude: DoRA's length of each row, [O], as a `Pair` has it.
    """

    delta: np.ndarray
    bias: np.ndarray | None = None
    magnitude: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I), that of the layer's weight."""
        outputs, inputs = self.delta.shape
        return outputs, inputs


Layers = Mapping[Place, Pair | Full]


def kind(change: Pair | Full) -> str:
    """What a layer's change is called: "LoRA", "DoRA", "full difference", "... with a bias"."""
    name = "LoRA" if isinstance(change, Pair) else "full difference"
    if change.magnitude is not None:
        name = "DoRA" if name == "LoRA" else f"{name} with DoRA"
    return name if change.bias is None else f"{name} with a bias"


def text(alpha: np.ndarray) -> str:
    """The shortest decimal that gives this number in its own type: 0.1 stays 0.1."""
    return str(alpha.reshape(())[()])


def number(alpha: np.ndarray) -> float:
    """The number that `text` writes."""
    return float(text(alpha))


def typed(value: float, dtype: Any) -> np.ndarray:
    """An alpha of this type; where the type does not hold the number, of float32."""
    with np.errstate(over="ignore"):
        single = np.array(value, np.float32)
        alpha = single.astype(dtype) if is_float(dtype) else single
    return alpha if number(alpha) == value else single


def implied(down: np.ndarray) -> np.ndarray:
    """The alpha that a layer has where nothing else is said: the rank, so that alpha / R is 1."""
    # What has no axes is refused for that, and has no rank.
    return typed(float(len(down) if down.ndim else 1), down.dtype)


def same(one: Pair | Full | None, other: Pair | Full | None) -> bool:
    """Whether two changes are held by the same bits."""
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
    """Whether two arrays are the same in type, shape and every bit."""
    like = one.dtype == other.dtype and one.shape == other.shape
    return like and one.tobytes() == other.tobytes()
