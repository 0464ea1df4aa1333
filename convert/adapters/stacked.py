"""Stacks an adapter's layers along the blocks, as the model uses them, and unstacks them.

A target is a path of the Flax tree; its leaves are
- A [L, I, R] and B [L, R, O]: x gets alpha / R * (x A) B, where R is the largest rank in the tree;
- D [L, I, O]: a full difference, x D;
- b [L, O]: a difference of the bias;
- M [L, O]: DoRA's length of each output's weights, NaN where a layer is not DoRA.
A target that ends in "/text" has an A and a B that apply to text tokens only.
Outside the blocks there is no L. Layers of one rank and one alpha, in all blocks, are stacked
unchanged. Others are padded with zeros, in ranks and in blocks, and each scale is folded into B.

Axis letters: L blocks, I inputs, O outputs, R rank.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.layers import Full, Layers, Pair, kind, number, typed
from convert.adapters.names import STACKED, TABLE, TEXT_HALVES, Place, label, parse
from flux_jax.errors import InputError, counted
from flux_jax.settings import TEXT_ONLY
from flux_jax.tree import flatten, nest
from flux_jax.weights.mapping import differences, refuse, to_torch

# Leaves with an axis of blocks.
IN_BLOCKS = STACKED | TEXT_HALVES
MEND = "every target needs A and B of one rank in every block"
# Maximum number of elements in a leaf: more than the kernels of all blocks of any FLUX.1.
LARGEST_LEAF = 1 << 32
# Elements that may be padding for the most part, and the largest ratio to those stored beyond them:
# more than the blocks of any FLUX.1.
LARGEST_PADDED, MOST_PADDING = 1 << 26, 64

Lora = Mapping[str, Any]
Shape = tuple[int, ...]


def stack(source: Path, layers: Layers) -> tuple[dict[str, Any], np.ndarray]:
    """Builds the Flax tree of an adapter, and its alpha.

    Args:
        source: the file, for messages.
        layers: layers of any kind, rank, alpha and blocks.

    Returns:
        {"dual_blocks": {"attn": {"add_q_proj": {"A": [L, I, R], "B": [L, R, O]}}}}, ..., where L
        reaches to the target's last block, and alpha.

    Raises:
        InputError: a target's layers have different widths, or it would be too large.
    """
    if uneven(layers) is None:
        return _as_they_are(layers)
    leaves: dict[str, np.ndarray] = {}
    shapes = extents(source, layers)
    _check_padding(source, layers, shapes)
    for target, shape in shapes.items():
        changes = {block: change for (name, block), change in layers.items() if name == target}
        if math.prod(shape) > LARGEST_LEAF:
            raise InputError(
                f"{source}: {target} has {counted(shape[0], 'block')} of {shape[1]} inputs and "
                f"{shape[2]} outputs, more than any FLUX model; take a file whose blocks are "
                "numbered from 0"
            )
        leaves |= {f"{target}/{name}": leaf for name, leaf in _padded(shape, changes).items()}
    ranks = [leaf.shape[-1] for path, leaf in leaves.items() if path.endswith("/A")]
    return nest(leaves), np.array(max(ranks, default=1), np.float32)


def stack_evenly(file: Path, layers: Layers) -> tuple[dict[str, Any], np.ndarray]:
    """Like `stack`, for layers that need no padding, as in this project's layout.

    Raises:
        InputError: the layers need padding.
    """
    if why := uneven(layers):
        raise InputError(
            f"{file}: the flax layout supports only LoRA layers of one rank, alpha and type, in "
            f"every block; {why}: write diffusers', kohya's or the original layout instead"
        )
    return _as_they_are(layers)


def uneven(layers: Layers) -> str | None:
    """Why layers need padding, with the first example; None if they do not."""
    pairs: dict[Place, Pair] = {}
    for place, change in layers.items():
        if not isinstance(change, Pair) or kind(change) != "LoRA":
            return f"{label(place)} is a {kind(change)}"
        pairs[place] = change
    ranks = sorted({pair.rank for pair in pairs.values()})
    if len(ranks) > 1:
        return f"these have ranks from {ranks[0]} to {ranks[-1]}"
    alphas = Counter(number(pair.alpha) for pair in pairs.values())
    if len(alphas) > 1:
        listing = [
            f"{value} on {counted(count, 'layer')}" for value, count in alphas.most_common(3)
        ]
        return f"here alpha = {', '.join(listing)}"
    depths: Counter[str] = Counter()
    for target, block in pairs:
        stream = target.split("/")[0]
        depths[stream] = max(depths[stream], -1 if block is None else block)
    first: dict[str, Pair] = {}
    for (target, block), pair in pairs.items():
        other = first.setdefault(target, pair)
        wanted = (other.down.shape, other.up.shape, other.down.dtype, other.up.dtype)
        if (pair.down.shape, pair.up.shape, pair.down.dtype, pair.up.dtype) != wanted:
            return f"{label((target, block))} has other shapes or types than in other blocks"
        lost = [] if block is None else range(depths[target.split("/")[0]] + 1)
        for absent in lost:
            if (target, absent) not in pairs:
                return f"{label((target, absent))} is missing"
    return None


def extents(source: Path, layers: Layers) -> dict[str, Shape]:
    """Sizes that each target needs: (blocks, inputs, outputs); outside blocks (inputs, outputs).

    Raises:
        InputError: a target's layers have different widths.
    """
    shapes: dict[str, Shape] = {}
    for (target, block), change in layers.items():
        outputs, inputs = change.shape
        blocks = () if block is None else (block + 1,)
        known = shapes.setdefault(target, (*blocks, inputs, outputs))
        if known[-2:] != (inputs, outputs):
            raise InputError(
                f"{source}: {label((target, block))} has {inputs} inputs and {outputs} outputs, in "
                f"another block {known[-2]} and {known[-1]}; take a file of one model"
            )
        shapes[target] = (*map(max, known[:-2], blocks), inputs, outputs)
    return shapes


def _check_padding(source: Path, layers: Layers, shapes: Mapping[str, Shape]) -> None:
    """Refuses layers that would mostly be padding: few, in blocks of large indices.

    Raises:
        InputError: they would; the message has the largest index.
    """
    stored: Counter[str] = Counter()
    largest: Counter[str] = Counter()
    for (target, _), change in layers.items():
        outputs, inputs = change.shape
        rank = min(change.rank, inputs, outputs) if isinstance(change, Pair) else 0
        size = rank * (inputs + outputs) or inputs * outputs
        stored[target] += size
        largest[target] = max(largest[target], size)
    padded = sum(math.prod(shapes[target][:-2]) * size for target, size in largest.items())
    if padded > LARGEST_PADDED and padded > MOST_PADDING * stored.total():
        last = max(block for _, block in layers if block is not None)
        raise InputError(
            f"{source}: block {last} is the last one, and the adapter would take "
            f"{padded:,} numbers, {padded // stored.total()} times those in the file; take a file "
            "whose blocks are numbered from 0"
        )


def _as_they_are(layers: Layers) -> tuple[dict[str, Any], np.ndarray]:
    leaves: dict[str, dict[int | None, np.ndarray]] = {}
    for (target, block), pair in layers.items():
        assert isinstance(pair, Pair), "uneven otherwise"
        leaves.setdefault(f"{target}/A", {})[block] = pair.down.T
        leaves.setdefault(f"{target}/B", {})[block] = pair.up.T
    tree = {
        path: np.stack([parts[block] for block in range(len(parts))])
        if path in IN_BLOCKS
        else parts[None]
        for path, parts in leaves.items()
    }
    alpha = next(pair.alpha for pair in layers.values() if isinstance(pair, Pair))
    return nest(tree), alpha


def _padded(shape: Shape, changes: Mapping[int | None, Pair | Full]) -> dict[str, np.ndarray]:
    """A target's leaves, padded with zeros where a layer has no part.

    Args:
        shape: (blocks, inputs, outputs), or (inputs, outputs) outside the blocks.
        changes: changes of one target, by block.
    """
    *blocks, inputs, outputs = shape
    parts: dict[str, dict[int | None, np.ndarray]] = {}
    for block, change in changes.items():
        for name, part in _parts(change).items():
            parts.setdefault(name, {})[block] = part
    rank = max((half.shape[1] for half in parts.get("A", {}).values()), default=0)
    wanted = {"A": (inputs, rank), "B": (rank, outputs), "D": (inputs, outputs)}
    leaves = {}
    for name, found in parts.items():
        dtype = np.result_type(*(part.dtype for part in found.values()))
        leaf = np.zeros((*blocks, *wanted.get(name, (outputs,))), dtype)
        if name == "M":
            leaf[...] = np.nan
        for block, part in found.items():
            place = () if block is None else (block,)
            leaf[(*place, *map(slice, part.shape))] = part
        leaves[name] = leaf
    return leaves


def _parts(change: Pair | Full) -> dict[str, np.ndarray]:
    """A layer's leaves, scale folded into B; A and B have at most the smaller width as rank."""
    vectors = {"b": change.bias, "M": change.magnitude}
    parts = {name: _wide(part) for name, part in vectors.items() if part is not None}
    if isinstance(change, Full):
        return parts | {"D": change.delta.T}
    outputs, inputs = change.shape
    scale = float(change.scale)
    if change.rank <= min(inputs, outputs):
        # Products of bfloat16 numbers and a scale are rounded only to float32.
        return parts | {"A": change.down.T, "B": _wide(change.up.T) * scale}
    # A larger rank than the width: padding other layers to it would take more than the model.
    product = scale * (_wide(change.down.T) @ _wide(change.up.T))
    eye = np.eye(min(inputs, outputs), dtype=product.dtype)
    return parts | ({"A": eye, "B": product} if inputs <= outputs else {"A": product, "B": eye})


def _wide(array: np.ndarray) -> np.ndarray:
    """The array in float32, or in its own type if that is wider."""
    return array.astype(np.promote_types(array.dtype, np.float32))


def unstack(source: Path, lora: Lora, alpha: float, dtype: Any = None) -> dict[Place, Pair]:
    """Splits a Flax tree into layers.

    Args:
        source: the file, for messages.
        lora: tree of A [L, I, R] and B [L, R, O].
        alpha: alpha of all layers.
        dtype: alpha's type; by default that of the matrices if it can represent the number, else
            float32.

    Raises:
        InputError: an A or B is missing, ranks differ, or a target is not a layer of the model.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten(lora).items()}
    check(source, flat)
    whole = {path: leaf for path, leaf in flat.items() if path not in TEXT_HALVES}
    text = {
        path.replace(f"/{TEXT_ONLY}/", "/"): leaf
        for path, leaf in flat.items()
        if path not in whole
    }
    on_text = {(f"{target}/{TEXT_ONLY}", block): h for (target, block), h in _halves(text).items()}
    return {
        place: Pair(**half, alpha=typed(alpha, dtype or half["down"].dtype))
        for place, half in (_halves(whole) | on_text).items()
    }


def _halves(flat: Mapping[str, np.ndarray]) -> dict[Place, dict[str, np.ndarray]]:
    """Each layer's matrices in PyTorch's orientation, by the names of `Pair`."""
    halves: dict[Place, dict[str, np.ndarray]] = {}
    for name, tensor in to_torch(TABLE, nest(flat)).items():
        key = parse(name)
        assert key is not None, "the table's names are diffusers'"
        (place,) = key.layer.places(key.block)
        halves.setdefault(place, {})[key.part] = tensor
    return halves


def _expected(
    source: Path, seen: Sequence[tuple[str, tuple[int, ...]]]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Expected shapes of a complete adapter of these targets, and its rank, by majority.

    Args:
        source: the file, for messages.
        seen: paths with stacked shapes, [I, R] and [R, O] outside the blocks; a path may occur
            several times, with different L.
    """
    depth: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    widths: dict[str, Counter[int]] = {}
    for path, shape in seen:
        if len(shape) == (3 if path in IN_BLOCKS else 2):
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
        blocks = (depth[path.split("/")[0]],) if path in IN_BLOCKS else ()
        shapes[path] = (*blocks, *last)
    return shapes, rank


def check(source: Path, flat: Mapping[str, Any]) -> None:
    """Refuses a stacked tree that is incomplete, uneven or empty, or has unknown targets."""
    known = {row.flax[0] for row in TABLE.rows} | TEXT_HALVES
    seen = [(path, tuple(leaf.shape)) for path, leaf in flat.items() if path in known]
    shapes, _ = _expected(source, seen) if seen else ({}, 0)
    refuse(source, MEND, differences(flat, shapes))
    if not seen:
        raise InputError(f"{source}: no targets; {MEND}")
