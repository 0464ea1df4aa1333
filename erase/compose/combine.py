"""Combine the changes of several adapters into one: exact sums, and low-rank approximations.

`erase.cli.compose` has the equation of each method; fusion is in `erase.compose.fusion`.
Axis letters: L blocks, I inputs, O outputs, R rank.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from convert.adapters.files import read_layers, write_layers
from convert.adapters.layers import Layers, Pair, kind, on_text_only
from convert.adapters.names import FLAX, Place, label
from convert.adapters.paths import find_adapter, split_strength
from convert.adapters.stacked import stack, unstack
from convert.tables import Table, show
from erase.compose import fusion
from erase.report import card
from erase.runtime.memory import explains_memory
from flux_jax.errors import InputError, say
from flux_jax.system.files import read_text
from flux_jax.tree import flatten, nest

MENDS = "To save memory: fewer --prompts"


@dataclass(frozen=True)
class Part:
    """An adapter in a composition.

    Attributes:
        path: file of the adapter.
        weight: w.
        layers: layers, each with the change w * alpha / R * up @ down.
        metadata: metadata of the file.
    """

    path: Path
    weight: float
    layers: Layers
    metadata: Mapping[str, str]

    @property
    def pairs(self) -> dict[Place, Pair]:
        """The layers, which must all be low-rank, with or without biases.

        Raises:
            InputError: a layer is not low-rank.
        """
        pairs = {}
        for place, layer in self.layers.items():
            if not isinstance(layer, Pair) or layer.magnitude is not None:
                raise InputError(
                    f"{self.path}: {label(place)} is a {kind(layer)}, but only LoRA can be "
                    "composed; add the adapters to a model's weights with convert.merge"
                )
            pairs[place] = layer
        return pairs

    @property
    def rank(self) -> int:
        """The largest R."""
        return max(pair.rank for pair in self.pairs.values())

    def scaled(self, weight: float) -> dict[Place, Pair]:
        """The layers in float64, with weight * alpha / R folded into up, and weight into biases."""
        return {
            place: plain(
                pair.down.astype(np.float64),
                weight * float(pair.scale) * pair.up.astype(np.float64),
                None if pair.bias is None else weight * pair.bias.astype(np.float64),
            )
            for place, pair in self.pairs.items()
        }


def plain(
    down: Float[np.ndarray, "R I"],
    up: Float[np.ndarray, "O R"],
    bias: Float[np.ndarray, "O"] | None = None,
) -> Pair:
    """Layer with the change up @ down of scale 1, and optionally the change of the bias."""
    return Pair(down, up, np.array(len(down), np.float32), bias)


def read_part(text: str) -> Part:
    """Read a part from "PATH" or "PATH:WEIGHT".

    Raises:
        InputError: the adapter is missing or cannot be used, or the weight is not a number.
    """
    path, weight = split_strength(text)
    adapter = read_layers(find_adapter(path))
    return Part(path, weight, adapter.layers, adapter.metadata)


def check(parts: Sequence[Part]) -> None:
    """Check that adapters can be combined.

    Raises:
        InputError: there are fewer than two, two have the same file or concept, they differ in a
            layer's widths or the base model, or one has layers that are not low-rank.
    """
    if len(parts) < 2:
        raise InputError("one adapter cannot be composed: name at least two")
    first = parts[0]
    shapes: dict[str, tuple[Path, tuple[int, int]]] = {}
    for part in parts:
        for (target, block), pair in part.pairs.items():
            other, shape = shapes.setdefault(target, (part.path, pair.shape))
            if shape != pair.shape:
                raise InputError(
                    f"{part.path}: {label((target, block))} is {list(pair.shape)}, in {other} "
                    f"{list(shape)} (outputs, inputs); give adapters of one model"
                )
        bases = [each.metadata.get("base_model") for each in (first, part)]
        if None not in bases and bases[0] != bases[1]:
            raise InputError(
                f"{part.path}: made for {bases[1]}, {first.path} for {bases[0]}; give adapters of "
                "one base model"
            )
    for key in ("concept", None):
        counts = Counter(str(p.path) if key is None else p.metadata.get(key) for p in parts)
        for name, count in counts.items():
            if count > 1 and name is not None:
                raise InputError(
                    f"{'concept ' if key else ''}{name!r} appears {count} times; give each once, "
                    "with its weight after a colon"
                )


def weights(parts: Sequence[Part], method: str) -> list[float]:
    """Factor of each adapter's change.

    Raises:
        InputError: weights to normalise sum to zero.
    """
    weights_of_parts = [part.weight for part in parts]
    if method != "normalized":
        return weights_of_parts
    if not (total := math.fsum(weights_of_parts)):
        raise InputError("the weights sum to 0 and cannot be normalised; change one")
    return [weight / total for weight in weights_of_parts]


def summed(parts: Sequence[Part], factors: Sequence[float]) -> dict[Place, Pair]:
    """Exact sum of changes by concatenation: `[B_1 B_2] [A_1; A_2] = B_1 A_1 + B_2 A_2`."""
    terms: dict[Place, list[Pair]] = {}
    for part, factor in zip(parts, factors, strict=True):
        for place, pair in part.scaled(factor).items():
            terms.setdefault(place, []).append(pair)
    sums = {}
    for place, pairs in terms.items():
        biases = [pair.bias for pair in pairs if pair.bias is not None]
        sums[place] = plain(
            np.concatenate([pair.down for pair in pairs]),
            np.concatenate([pair.up for pair in pairs], axis=1),
            np.sum(biases, axis=0) if biases else None,
        )
    return sums


def leaves(layers: Layers) -> dict[str, np.ndarray]:
    """Stack layers of `plain` pairs: A [L, I, R] and B [L, R, O] by their paths."""
    lora, _ = stack(Path("composition"), layers)
    return flatten(lora)


def apart(flat: Mapping[str, np.ndarray]) -> dict[Place, Pair]:
    """Inverse of `leaves`, for layers of equal rank."""
    rank = next(leaf.shape[-1] for path, leaf in flat.items() if path.endswith("/A"))
    return unstack(Path("composition"), nest(flat), float(rank))


def even(layers: Mapping[Place, Pair]) -> dict[Place, Pair]:
    """Pad layers of `plain` pairs with zeros to the largest rank."""
    rank = max(pair.rank for pair in layers.values())
    return {
        place: plain(
            np.pad(pair.down, [(0, rank - pair.rank), (0, 0)]),
            np.pad(pair.up, [(0, 0), (0, rank - pair.rank)]),
            pair.bias,
        )
        for place, pair in layers.items()
    }


def truncated(
    layers: Mapping[Place, Pair], rank: int
) -> tuple[dict[Place, Pair], dict[str, float]]:
    """Best approximation of every layer's change by a lower rank.

    Args:
        layers: layers of `plain` pairs.
        rank: rank of the result; layers of lower rank keep theirs.

    Returns:
        The layers, and the relative error by target: ‖ΔW - ΔW_rank‖ / ‖ΔW‖ over all blocks.

    Raises:
        InputError: the rank is below 1 or above that of every layer.
    """
    most = max(min(pair.rank, *pair.shape) for pair in layers.values())
    if not 1 <= rank <= most:
        raise InputError(f"rank = {rank} must be from 1 to {most}, the largest rank of the sum")
    out: dict[Place, Pair] = {}
    lost: dict[str, list[np.ndarray]] = {}
    whole: dict[str, list[np.ndarray]] = {}
    for (target, block), pair in layers.items():
        # By two QR decompositions the SVD of the change reduces to that of a small matrix.
        left, inner = np.linalg.qr(pair.down.T)
        right, outer = np.linalg.qr(pair.up)
        u, values, v = np.linalg.svd(inner @ outer.T, full_matrices=False)
        root = np.sqrt(values[:rank])
        down, up = root[:, None] * (left @ u[:, :rank]).T, (right @ v[:rank].T) * root
        out[target, block] = plain(down, up, pair.bias)
        lost.setdefault(target, []).append(values[rank:])
        whole.setdefault(target, []).append(values)
    errors = {
        target: relative(np.concatenate(lost[target]), np.concatenate(values))
        for target, values in whole.items()
    }
    return out, errors


def relative(part: Float[np.ndarray, "..."], whole: Float[np.ndarray, "..."]) -> float:
    """‖part‖ / ‖whole‖; 0 if both are zero."""
    return float(np.linalg.norm(part) / (np.linalg.norm(whole) or 1))


def table(method: str, shares: Mapping[str, Mapping[str, float]]) -> Table:
    """Table with one row per target and one column per number."""
    out = Table("target", title=f"Composed by {method}")
    for heading in next(iter(shares.values())):
        out.add_column(heading, justify="right")
    for target, numbers in shares.items():
        out.add_row(target, *(f"{number:.3f}" for number in numbers.values()))
    return out


def write(
    parts: Sequence[Part], layers: Mapping[Place, Pair], method: str, options: Any, out: Path
) -> Path:
    """Write the adapter in diffusers' layout, with its parts and settings in the header.

    Changes of text tokens only are written in this project's layout, which pads ranks.

    Raises:
        InputError: numbers exceed the range of the file's type.
    """
    pairs, lost = {}, []
    with np.errstate(over="ignore"):
        for place, pair in layers.items():
            bias = None if pair.bias is None else pair.bias.astype(np.float32)
            single = plain(pair.down.astype(np.float32), pair.up.astype(np.float32), bias)
            held = [single.down, single.up, *([] if bias is None else [bias])]
            if not all(np.isfinite(part).all() for part in held):
                lost.append(label(place))
            pairs[place] = single
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise InputError(
            f"{', '.join(lost[:3])}{more} would exceed float32's range: give smaller weights"
        )
    rank = max(pair.rank for pair in pairs.values())
    settings = {"method": method, "rank": rank, **options}
    settings["adapters"] = [
        {"path": str(part.path), "weight": part.weight, "concept": part.metadata.get("concept")}
        for part in parts
    ]
    metadata = {
        "concept": ", ".join(part.metadata.get("concept", str(part.path)) for part in parts),
        "method": card.COMPOSED,
        "settings": json.dumps(settings),
    }
    for key in ("base_model", "version"):
        if key in parts[0].metadata:
            metadata[key] = parts[0].metadata[key]
    layout = FLAX if on_text_only(pairs) else "diffusers"
    file = write_layers(out, layout, even(pairs) if layout == FLAX else pairs, metadata)
    try:
        config = fusion.settings(str(parts[0].path), parts[0].metadata)
    except InputError as error:
        # The adapter is usable without a card.
        say(f"no model card: {error}")
    else:
        names = [part.metadata.get("concept", str(part.path)) for part in parts]
        card.of_composition(out, names, method, config)
    return file


def read_lines(file: Path) -> tuple[str, ...]:
    """Read the sentences of a file, one per line.

    Raises:
        InputError: the file cannot be read, or has no sentences.
    """
    try:
        lines = (line.strip() for line in read_text(file).splitlines())
        sentences = tuple(line for line in lines if line)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"keep = {str(file)!r} cannot be read ({error}); check the path"
        ) from error
    if not sentences:
        raise InputError(f"keep = {str(file)!r} has no sentence; write one per line")
    return sentences


def compose(parts: Sequence[Part], method: str, out: Path, options: argparse.Namespace) -> Path:
    """Combine adapters into one, write it, and print the approximation errors.

    Args:
        parts: adapters that passed `check`.
        method: one of `METHODS`.
        out: folder of the adapter.
        options: options of the command.

    Raises:
        InputError: the method cannot combine these adapters.
    """
    factors = weights(parts, method)
    rank = options.rank or max(part.rank for part in parts)
    if method == "fusion":
        changes = [leaves(part.scaled(f)) for part, f in zip(parts, factors, strict=True)]
        if biased := [
            part for part in parts for pair in part.pairs.values() if pair.bias is not None
        ]:
            raise InputError(
                f"{biased[0].path} has biases, which fusion does not support; compose by sum or svd"
            )
        headers = {str(part.path): part.metadata for part in parts}
        keep = read_lines(options.keep) if options.keep else ()
        prompts = fusion.prompts(headers, options.prompts, options.seed, keep)
        with explains_memory(MENDS):
            flat, shares = fusion.fuse(changes, prompts, rank, options.preserve, options.seed)
        show(table(method, shares))
        used = {"prompts": options.prompts, "preserve": options.preserve, "seed": options.seed}
        used |= {"keep": keep} if keep else {}
        return write(parts, apart(flat), method, used, out)
    layers = summed(parts, factors)
    if method == "svd":
        layers, errors = truncated(layers, rank)
        show(table(method, {t: {"error": error} for t, error in errors.items()}))
    return write(parts, layers, method, {}, out)
