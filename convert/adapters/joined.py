"""Joins low-rank pairs of layers that the original model joins (`qkv`, `linear1`), and splits them.

Layers with the same down matrix, as after training the joined layer, keep it: their ups are
concatenated. Others become a block-diagonal pair, whose rank is the sum:

    down = [A_q; A_k]        up = [[B_q, 0], [0, B_k], [0, 0]]

Layers without an adapter have zeros in up. The pair has the alpha / R of its layers. If these
differ, it is the largest one and the other ups are scaled down, all in a wider type, from which the
original bits can be recovered.

Splitting follows the zeros in up. What these do not determine (an up that is itself zero, a type,
an alpha before scaling) is stored in the header, as `PartRecord`. Whatever is stored there, a pair
is split only into layers that join to the same bits again; otherwise each layer gets all of down
and its rows of up, which is always correct.

Axis letters: I inputs, O outputs, R rank.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from convert.adapters.layers import ALPHAS, Pair, number, same, same_bits, typed
from flux_jax.weights.safetensors_files import TYPES

FLOATS = {name: np.dtype(name) for name in TYPES if "float" in name}


@dataclass(frozen=True)
class PartRecord:
    """Properties of a layer before it was joined."""

    rank: int
    alpha: float
    types: tuple[str, str, str]

    @classmethod
    def of(cls, pair: Pair) -> "PartRecord":
        """The record of this layer; types are those of down, up and alpha."""
        types = (pair.down.dtype.name, pair.up.dtype.name, pair.alpha.dtype.name)
        return cls(pair.rank, number(pair.alpha), types)

    @classmethod
    def parse(cls, entry: Any) -> "PartRecord | None":
        """Parses the result of `as_json`.

        Raises:
            TypeError, ValueError, KeyError, OverflowError: it is something else.
        """
        if entry is None:
            return None
        down, up, alpha = (name for name in entry["types"] if FLOATS[name])
        record = cls(int(entry["rank"]), float(entry["alpha"]), (down, up, alpha))
        if record.rank < 1 or not ALPHAS[0] <= record.alpha <= ALPHAS[1]:
            raise ValueError(f"rank = {record.rank}, alpha = {record.alpha}")
        return record

    def as_json(self) -> dict[str, Any]:
        """The record as JSON, for the file's header."""
        return asdict(self)


def join(layers: Sequence[Pair | None], widths: Sequence[int]) -> Pair:
    """Joins several layers into one pair.

    Args:
        layers: the layers in order; None for one without an adapter; all with I inputs.
        widths: their numbers of outputs.
    """
    present = [pair for pair in layers if pair is not None]
    greatest = max(pair.scale for pair in present)
    uneven = any(pair.scale != greatest for pair in present)
    first = present[0]
    shared = not uneven and all(same_bits(pair.down, first.down) for pair in present)
    down_type = _common([pair.down for pair in present], uneven)
    up_type = _common([pair.up for pair in present], uneven)
    if shared:
        down, rank, alpha = first.down, first.rank, first.alpha
    else:
        down = np.concatenate([pair.down.astype(down_type) for pair in present])
        rank = len(down)
        alpha = typed(float(greatest * rank), first.alpha.dtype)
    up = np.zeros((sum(widths), rank), up_type)
    row = column = 0
    for pair, width in zip(layers, widths, strict=True):
        if pair is not None:
            scaled = _times(pair.up, pair.scale / greatest, up_type)
            up[row : row + width, column : column + pair.rank] = scaled
            column += 0 if shared else pair.rank
        row += width
    return Pair(down, up, alpha)


def split(
    joined: Pair, widths: Sequence[int], records: Sequence[PartRecord | None] | None = None
) -> list[Pair | None]:
    """Splits a joined pair into its layers; None for one without an adapter.

    Args:
        joined: the pair.
        widths: numbers of outputs of the joined layers, in order.
        records: result of `records_of_parts` when the pair was joined, if any.
    """
    for parts in (records, _by_zeros(joined, widths)):
        if parts is not None and _fits(joined, widths, parts):
            # Wrong records may cause numbers that no type can represent.
            with np.errstate(over="ignore", invalid="ignore"):
                layers = _apart(joined, widths, parts)
                if same(join(layers, widths), joined):
                    return layers
    return list(_apart(joined, widths, [PartRecord.of(joined)] * len(widths)))


def records_of_parts(
    layers: Sequence[Pair | None], joined: Pair, widths: Sequence[int]
) -> list[PartRecord | None] | None:
    """Records that `split` needs to recover these layers from `joined`; None if it needs none.

    Raises:
        ValueError: they cannot be recovered, as no type is wide enough for their scaled numbers.
    """
    if _equal(split(joined, widths), layers):
        return None
    records = [None if pair is None else PartRecord.of(pair) for pair in layers]
    if not _equal(split(joined, widths, records), layers):
        raise ValueError("no type is wide enough")
    return records


def _equal(one: Sequence[Pair | None], other: Sequence[Pair | None]) -> bool:
    return all(same(*pairs) for pairs in zip(one, other, strict=True))


def _common(arrays: Sequence[np.ndarray], wider: bool) -> np.dtype:
    """A type that can represent all of them, or a wider one with room for scaled numbers."""
    types = {array.dtype for array in arrays}
    if len(types) == 1 and not wider:
        return types.pop()
    widest = max(dtype.itemsize for dtype in types)
    return np.dtype(np.float64 if widest > 4 or (wider and widest == 4) else np.float32)


def _times(up: np.ndarray, ratio: Fraction, dtype: Any) -> np.ndarray:
    return up.astype(dtype) if ratio == 1 else (up.astype(float) * float(ratio)).astype(dtype)


def _by_zeros(joined: Pair, widths: Sequence[int]) -> list[PartRecord | None] | None:
    """Records derived from the zeros in up: the layers with an adapter and their columns."""
    used = np.stack([part.any(axis=0) for part in _rows(_bits(joined.up), widths)])
    present = used.any(axis=1)
    if (used.sum(axis=0) > 1).any() or present.sum() < 2:
        ranks = np.where(present | (present.sum() == 0), joined.rank, 0).tolist()
    else:
        # A zero column belongs to the owner of the previous column, or to the first owner.
        owners = np.where(used.any(axis=0), used.argmax(axis=0), -1)
        owners = np.maximum.accumulate(np.where(owners < 0, present.argmax(), owners))
        ranks = np.bincount(owners, minlength=len(widths)).tolist()
    types = PartRecord.of(joined).types
    alphas = (typed(float(joined.scale * rank), joined.alpha.dtype) for rank in ranks)
    return [
        PartRecord(rank, number(alpha), (*types[:2], alpha.dtype.name)) if rank else None
        for rank, alpha in zip(ranks, alphas, strict=True)
    ]


def _fits(joined: Pair, widths: Sequence[int], records: Sequence[PartRecord | None]) -> bool:
    """Whether layers with these records can have been joined to a pair of this rank."""
    ranks = [each.rank for each in records if each is not None]
    return len(records) == len(widths) and (
        sum(ranks) == joined.rank or set(ranks) == {joined.rank}
    )


def _apart(
    joined: Pair, widths: Sequence[int], records: Sequence[PartRecord | None]
) -> list[Pair | None]:
    """Splits the layers according to the records."""
    present = [each for each in records if each is not None]
    shared = sum(each.rank for each in present) != joined.rank
    scales = [Fraction(repr(each.alpha)) / each.rank for each in present]
    greatest = max(scales)
    layers: list[Pair | None] = []
    column = 0
    for each, up in zip(records, _rows(joined.up, widths), strict=True):
        if each is None:
            layers.append(None)
            continue
        columns = slice(column, column + each.rank)
        column += 0 if shared else each.rank
        down_type, up_type, alpha_type = (FLOATS[name] for name in each.types)
        ratio = Fraction(repr(each.alpha)) / each.rank / greatest
        layers.append(
            Pair(
                joined.down[columns].astype(down_type),
                _times(up[:, columns], 1 / ratio, up_type),
                np.array(each.alpha, alpha_type),
            )
        )
    return layers


def _rows(up: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    return np.split(up, np.cumsum(widths)[:-1])


def _bits(array: np.ndarray) -> np.ndarray:
    """The array viewed as integers, in which a negative zero is not zero."""
    return array.view(f"u{array.itemsize}")
