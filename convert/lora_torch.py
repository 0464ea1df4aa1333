"""Adapters' tensors in the layouts of PyTorch programs: to layers, and back.

Axis letters: I inputs, O outputs, R rank.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from convert.errors import InputError
from convert.lora_joined import Told, join, split, untold
from convert.lora_layers import ALPHAS, Layers, Pair, implied, number, same_bits, typed
from convert.lora_tables import ALPHA, MODEL, PARTS, WRITTEN, Key, Layer, Place, parse, spell
from convert.mapping import is_finite, refuse

PEFT_METADATA = "lora_adapter_metadata"
TOLD = "joined_layers"
# What JSON of another form than expected gives rise to.
DAMAGES = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
# Header entries that say something about the tensors.
HEADER = (PEFT_METADATA, TOLD)
MEND = "give a file that holds one adapter of FLUX's transformer, whole and in one layout"


def from_torch(
    file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> tuple[str, dict[Place, Pair]]:
    """The layout of these tensors, and their layers.

    Args:
        file: where they come from, for messages.
        tensors: by their names in the file.
        metadata: the file's header.

    Raises:
        InputError: names that no layout has, or of several; pairs that are incomplete or do not
            fit; numbers that are not finite; an alpha of 0. Lists every one.
    """
    keys = {name: key for name in tensors if (key := parse(name))}
    _one_layout(file, tensors, keys)
    bad = [
        f"unknown: {name} {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name not in keys
    ]
    stems: dict[str, tuple[Layer, int | None]] = {}
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name, key in keys.items():
        stem = key.naming.spelled(key.layer).format(i=key.block)
        stems[stem] = key.layer, key.block
        halves.setdefault(stem, {})[key.part] = tensors[name]
    first = next(iter(keys.values()))
    called = next((key.parts for key in keys.values() if key.parts), PARTS[first.naming.layout])

    given = _peft_alphas(file, metadata)
    told = _told(file, metadata)
    layers: dict[Place, Pair] = {}
    for stem, (layer, block) in stems.items():
        lost = [f"missing: {stem}{called[part]}" for part in called if part not in halves[stem]]
        if lost:
            bad += lost
            continue
        pair = _pair(halves[stem], given(layer.in_block(block)))
        wrong = problems(stem, pair, layer)
        bad += wrong
        if not wrong:
            layers |= _apart(layer, block, pair, told.get(layer.in_block(block)))
    refuse(file, MEND, bad)
    return first.naming.layout, layers


def to_torch(
    file: Path, layout: str, layers: Layers
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors of a layout, and what the file's header must say about them.

    Args:
        file: where they go, for messages.
        layout: "diffusers", "kohya" or "original".
        layers: each layer's pair.

    Raises:
        InputError: layers that the layout joins do not fit each other; lists every one.
    """
    held: dict[str, Pair] = {}
    told: dict[str, Any] = {}
    bad: list[str] = []
    blocks = sorted({block for _, block in layers if block is not None})
    for layer in WRITTEN[layout].layers:
        for block in (None, *blocks):
            parts = [layers.get(place) for place in layer.places(block)]
            if not any(parts):
                continue
            name = layer.in_block(block)
            try:
                pair, before = _together(layer, parts)
            except ValueError as error:
                bad.append(f"{name}: {error}")
                continue
            held[spell(layout, layer, block, "")] = pair
            if before:
                told[name] = [each and each.as_json() for each in before]
    refuse(file, MEND, bad)
    tensors = {}
    every = layout != "diffusers" or any(
        not same_bits(pair.alpha, implied(pair.down)) for pair in held.values()
    )
    for stem, pair in held.items():
        tensors |= {stem + PARTS[layout]["down"]: pair.down, stem + PARTS[layout]["up"]: pair.up}
        if every:
            tensors[stem + ALPHA] = pair.alpha
    return tensors, {TOLD: json.dumps(told)} if told else {}


def problems(name: str, pair: Pair, layer: Layer | None = None) -> list[str]:
    """What is wrong with a layer's pair, a line each.

    Args:
        name: of the layer, for the lines.
        pair: as it was read.
        layer: tells how wide a joined pair must be.
    """
    lines = []
    for part in ("down", "up"):
        tensor = getattr(pair, part)
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            lines.append(f"type: {name} has {part} of {tensor.dtype.name}, expected floats")
        elif not is_finite(tensor):
            lines.append(f"not finite: {name} has infinities or what is no number in {part}")
    if pair.alpha.size != 1:
        lines.append(f"misshapen: alpha of {name} is {list(pair.alpha.shape)}, expected []")
    # At an alpha below 0, diffusers' reading of kohya's layout does not end.
    elif not ALPHAS[0] <= (alpha := number(pair.alpha)) <= ALPHAS[1]:
        lines.append(f"alpha: {name} has {alpha}; it must be a finite number above 0")
    shapes = [list(pair.down.shape), list(pair.up.shape)]
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or shapes[0][0] != shapes[1][1]:
        lines.append(
            f"misshapen: {name} is {shapes[0]} down and {shapes[1]} up, expected [R, I] and [O, R]"
        )
    elif layer and len(layer.targets) > 1:
        rows, wanted = len(pair.up), sum(layer.widths(pair.down.shape[1]))
        if rows != wanted:
            lines.append(f"misshapen: {name} has {rows} outputs, expected {wanted}")
    return lines


def _one_layout(file: Path, tensors: Mapping[str, Any], keys: Mapping[str, Key]) -> None:
    """Refuses names of which no layout has any, or of more than one layout."""
    if not keys:
        raise InputError(
            f"{file}: no known adapter layout; expected {_example('diffusers')}, "
            f"{_example('kohya')} or the like, got {', '.join(sorted(tensors)) or 'an empty file'}"
        )
    namings = {(key.naming.layout, key.naming.prefix): name for name, key in keys.items()}
    called = {str(key.parts): name for name, key in keys.items() if key.parts}
    for examples in (namings, called):
        if len(examples) > 1:
            raise InputError(
                f"{file}: mixed layouts, for instance {' and '.join(examples.values())}; {MEND}"
            )


def _example(layout: str) -> str:
    """A key of this layout, for messages."""
    layer = next(layer for layer in WRITTEN[layout].layers if "attn" in layer.name)
    return spell(layout, layer, 0, PARTS[layout]["down"])


def _pair(half: Mapping[str, np.ndarray], alpha: float | None) -> Pair:
    """A layer's tensors; alpha is what the header says, if anything."""
    down, up = half["down"], half["up"]
    if "alpha" in half:
        given = half["alpha"]
        if given.size == 1:
            given = given.reshape(())
            if not jnp.issubdtype(given.dtype, jnp.floating):
                given = typed(float(given), down.dtype)
    else:
        given = implied(down) if alpha is None else typed(alpha, down.dtype)
    return Pair(down, up, given)


def _apart(
    layer: Layer, block: int | None, pair: Pair, told: list[Told | None] | None
) -> dict[Place, Pair]:
    """The layers of the model that a layout's layer holds."""
    if len(layer.targets) == 1:
        pairs: list[Pair | None] = [_swapped(pair) if layer.swapped else pair]
    else:
        pairs = split(pair, layer.widths(pair.down.shape[1]), told)
    places = zip(layer.places(block), pairs, strict=True)
    return {place: each for place, each in places if each is not None}


def _together(layer: Layer, parts: list[Pair | None]) -> tuple[Pair, list[Told | None] | None]:
    """The inverse of `_apart`.

    Raises:
        ValueError: the layers do not fit each other; says how.
    """
    first = next(pair for pair in parts if pair is not None)
    if len(layer.targets) == 1:
        return _swapped(first) if layer.swapped else first, None
    inputs = first.down.shape[1]
    widths = layer.widths(inputs)
    for pair, width in zip(parts, widths, strict=True):
        if pair and (pair.down.shape[1], len(pair.up)) != (inputs, width):
            raise ValueError(
                f"has a part of {pair.down.shape[1]} inputs and {len(pair.up)} outputs, expected "
                f"{inputs} and {width}"
            )
    joined = join(parts, widths)
    return joined, untold(parts, joined, widths)


def _swapped(pair: Pair) -> Pair:
    """The pair with the halves of its outputs in the other order."""
    return Pair(pair.down, np.roll(pair.up, len(pair.up) // 2, axis=0), pair.alpha)


def _told(file: Path, metadata: Mapping[str, str]) -> dict[str, list[Told | None]]:
    """What the header tells of joined layers, by their names."""
    try:
        entries = json.loads(metadata.get(TOLD, "{}"))
        return {name: [Told.parse(each) for each in parts] for name, parts in entries.items()}
    except DAMAGES as error:
        raise InputError(
            f"{file}: {TOLD} in the header is damaged ({error!r}); convert the adapter again, or "
            "remove the entry"
        ) from error


def _peft_alphas(file: Path, metadata: Mapping[str, str]) -> Callable[[str], float | None]:
    """Alphas by layer's name, from diffusers' own entry in the header; None where it has none."""
    if PEFT_METADATA not in metadata:
        return lambda name: None
    try:
        config = json.loads(metadata[PEFT_METADATA])
        config = {k.removeprefix(MODEL): v for k, v in config.items() if k.startswith(MODEL)}
        general = None if config.get("lora_alpha") is None else float(config["lora_alpha"])
        patterns = {
            _pattern(text): float(alpha)
            for text, alpha in (config.get("alpha_pattern") or {}).items()
        }
    except (*DAMAGES, re.error) as error:
        raise InputError(
            f"{file}: {PEFT_METADATA} in the header is damaged ({error}); save the adapter again"
        ) from error
    for name in ("use_rslora", "use_dora"):
        if config.get(name):
            raise InputError(
                f"{file}: {name} = {config[name]} in {PEFT_METADATA} is not supported; save the "
                "adapter without it"
            )
    return lambda name: next(
        (alpha for pattern, alpha in patterns.items() if pattern.fullmatch(name)), general
    )


def _pattern(text: str) -> re.Pattern[str]:
    """A layer's name as PEFT's headers write it: a regular expression for the name's end.

    Raises:
        ValueError: it is more than names with a few repetitions; some expressions take for ever.
    """
    if not re.fullmatch(r"[\w.\\^$*+-]*", text) or len(re.findall(r"[*+]", text)) > 2:
        raise ValueError(f"alpha_pattern has {text!r}: write layers' names out")
    return re.compile(rf"(.*\.)?({text})")
