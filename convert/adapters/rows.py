"""Converts changes of a layout's layers to changes of the model's layers, and back.

A layout's layer may join several of the model's, concatenated along the outputs, or have the halves
of its outputs swapped.

Axis letters: I inputs, O outputs, R rank.
"""

from dataclasses import replace

import numpy as np

from convert.adapters.joined import PartRecord, join, records_of_parts, split
from convert.adapters.layers import Full, Pair
from convert.adapters.names import Layer, Place
from convert.adapters.parts import UnusableError, product


def apart(
    layer: Layer, block: int | None, made: Pair | Full, records: list[PartRecord | None] | None
) -> dict[Place, Pair | Full]:
    """Splits a change of a layout's layer into changes of the model's layers.

    Raises:
        UnusableError: its number of outputs is not their sum.
    """
    places = layer.places(block)
    if len(places) == 1:
        return {places[0]: _swapped(made) if layer.swapped else made}
    rows, inputs = made.shape
    widths = layer.widths(inputs)
    if rows != sum(widths):
        raise UnusableError(f"has {rows} outputs, expected {sum(widths)}")
    ends = np.cumsum(widths)[:-1]
    biases = [None] * len(widths) if made.bias is None else np.split(made.bias, ends)
    lengths = [None] * len(widths) if made.magnitude is None else np.split(made.magnitude, ends)
    if isinstance(made, Full):
        deltas = np.split(made.delta, ends)
        parts = zip(deltas, biases, lengths, strict=True)
        return {place: Full(*part) for place, part in zip(places, parts, strict=True)}
    if made.bias is None and made.magnitude is None:
        pairs = split(made, widths, records)
    else:
        ups = np.split(made.up, ends)
        pairs = [Pair(made.down, up, made.alpha) for up in ups]
    return {
        place: replace(pair, bias=bias, magnitude=length)
        for place, pair, bias, length in zip(places, pairs, biases, lengths, strict=True)
        if pair is not None
    }


def together(
    layer: Layer, parts: list[Pair | Full | None]
) -> tuple[Pair | Full, list[PartRecord | None] | None]:
    """The inverse of `apart`.

    Raises:
        ValueError: the layers do not fit each other; the message says why.
    """
    first = next(each for each in parts if each is not None)
    if len(layer.targets) == 1:
        return _swapped(first) if layer.swapped else first, None
    inputs = first.shape[1]
    widths = layer.widths(inputs)
    for each, width in zip(parts, widths, strict=True):
        if each and each.shape != (width, inputs):
            outputs, other = each.shape
            raise ValueError(
                f"has a part of {other} inputs and {outputs} outputs, expected {inputs} and {width}"
            )
    bias = None
    if any(each is not None and each.bias is not None for each in parts):
        rows = [None if each is None else each.bias for each in parts]
        bias = np.concatenate(
            [
                np.zeros(w, np.float32) if row is None else row
                for row, w in zip(rows, widths, strict=True)
            ]
        )
    pairs = [each for each in parts if not isinstance(each, Full)]
    if len(pairs) < len(parts):
        deltas = [_delta(each, width, inputs) for each, width in zip(parts, widths, strict=True)]
        return Full(np.concatenate(deltas), bias), None
    plain = [pair and replace(pair, bias=None) for pair in pairs]
    joined = join(plain, widths)
    return replace(joined, bias=bias), records_of_parts(plain, joined, widths)


def _delta(each: Pair | Full | None, width: int, inputs: int) -> np.ndarray:
    if each is None:
        return np.zeros((width, inputs), np.float32)
    return each.delta if isinstance(each, Full) else product(each)


def _swapped(each: Pair | Full) -> Pair | Full:
    """The change with the halves of its outputs swapped."""

    def rolled(rows: np.ndarray | None) -> np.ndarray | None:
        return None if rows is None else np.roll(rows, len(rows) // 2, axis=0)

    if isinstance(each, Full):
        delta = np.roll(each.delta, len(each.delta) // 2, axis=0)
        return Full(delta, rolled(each.bias), rolled(each.magnitude))
    up = np.roll(each.up, len(each.up) // 2, axis=0)
    return Pair(each.down, up, each.alpha, rolled(each.bias), rolled(each.magnitude))
