"""An adapter layer by layer, and as the Flax tree that stacks its layers.

Each layer keeps its own rank, alpha and types; stacking needs one rank and one alpha for all.
Axis letters: L blocks, I inputs, O outputs, R rank.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

from convert.errors import InputError
from convert.lora_tables import MODEL, PEFT_PARTS, STACKED, TABLE, Place, label, parse
from convert.mapping import differences, flatten, nest, refuse, to_flax, to_torch

MEND = "every target needs A and B of one rank in every block"

# The least and the greatest alpha: any rank times these is a number that float32 holds.
ALPHAS = (1e-30, 1e30)

Lora = Mapping[str, Any]


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
        alpha = single.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else single
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


def stack(source: Path, layers: Layers) -> tuple[dict[str, Any], np.ndarray]:
    """The Flax tree of an adapter, and its alpha.

    Args:
        source: the file, for messages.
        layers: all of one rank, one alpha and, in each target, one type and one width.

    Returns:
        {"dual_blocks": {"attn": {"add_q_proj": {"A": [L, I, R], "B": [L, R, O]}}}}, ... without L
        outside the blocks, and alpha.

    Raises:
        InputError: layers do not stack; lists every one.
    """
    tensors, seen = {}, []
    for (target, block), pair in layers.items():
        for letter, part in (("A", "down"), ("B", "up")):
            tensor = getattr(pair, part)
            tensors[MODEL + label((target, block)) + PEFT_PARTS[part]] = tensor
            blocks = () if block is None else (block + 1,)
            seen.append((f"{target}/{letter}", (*blocks, *reversed(tensor.shape))))
    shapes, _ = _expected(source, seen)
    abstract = {path: SimpleNamespace(shape=shape) for path, shape in shapes.items()}
    lora = to_flax(TABLE, tensors, nest(abstract), source=source, mend=MEND)
    alphas = {text(pair.alpha): pair.alpha for pair in layers.values()}
    if len(alphas) > 1:
        counts = Counter(number(pair.alpha) for pair in layers.values())
        listing = ", ".join(f"{value} on {count} layers" for value, count in sorted(counts.items()))
        raise InputError(
            f"{source}: alpha = {listing}; stacked layers have one alpha: scale B so that one "
            "alpha holds for all, or use diffusers' or kohya's layout"
        )
    return lora, next(iter(alphas.values()))


def unstack(source: Path, lora: Lora, alpha: float, dtype: Any = None) -> dict[Place, Pair]:
    """The layers of a Flax tree.

    Args:
        source: the file, for messages.
        lora: tree of A [L, I, R] and B [L, R, O].
        alpha: of all layers.
        dtype: alpha's type; by default the matrices' if it holds the number, else float32.

    Raises:
        InputError: the tree lacks a partner, mixes ranks or has targets that no layer bears.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten(lora).items()}
    check(source, flat)
    halves: dict[Place, dict[str, np.ndarray]] = {}
    for name, tensor in to_torch(TABLE, nest(flat)).items():
        key = parse(name)
        assert key is not None, "the table's names are diffusers'"
        (place,) = key.layer.places(key.block)
        halves.setdefault(place, {})[key.part] = tensor
    return {
        place: Pair(**half, alpha=typed(alpha, dtype or half["down"].dtype))
        for place, half in halves.items()
    }


def _expected(
    source: Path, seen: Sequence[tuple[str, tuple[int, ...]]]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes that a complete adapter of these targets has, and its rank, by majority.

    Args:
        source: the file, for messages.
        seen: paths with stacked shapes, [I, R] and [R, O] outside the blocks; a path may come
            several times, with different L.
    """
    depth: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    widths: dict[str, Counter[int]] = {}
    for path, shape in seen:
        if len(shape) == (3 if path in STACKED else 2):
            stack, (*blocks, rows, columns) = path.split("/")[0], shape
            depth[stack] = max(depth[stack], *blocks, 0)
            rank, width = (columns, rows) if path.endswith("/A") else (rows, columns)
            ranks[rank] += 1
            widths.setdefault(path, Counter())[width] += 1
    targets = sorted({path[:-2] for path, _ in seen})
    wanted = [f"{target}/{part}" for target in targets for part in "AB"]
    lost = [path for path in wanted if path not in widths]
    if lost:
        raise InputError(f"{source}: no usable matrices for {', '.join(lost)}; {MEND}")
    rank = ranks.most_common(1)[0][0]
    shapes = {}
    for path in wanted:
        width = widths[path].most_common(1)[0][0]
        last = (width, rank) if path.endswith("/A") else (rank, width)
        blocks = (depth[path.split("/")[0]],) if path in STACKED else ()
        shapes[path] = (*blocks, *last)
    return shapes, rank


def check(source: Path, flat: Mapping[str, Any]) -> None:
    """Refuses a stacked tree that is incomplete, uneven, empty or of unknown targets."""
    known = {row.flax[0] for row in TABLE.rows}
    seen = [(path, tuple(leaf.shape)) for path, leaf in flat.items() if path in known]
    shapes, _ = _expected(source, seen) if seen else ({}, 0)
    refuse(source, MEND, differences(flat, shapes))
    if not seen:
        raise InputError(f"{source}: no target at all; {MEND}")
