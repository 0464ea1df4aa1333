"""Converts adapter tensors in the layouts of PyTorch programs to layers, and back.

Axis letters: I inputs, O outputs, R rank.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.joined import PartRecord
from convert.adapters.kinds import is_norm, listed, refuse_unknown, split_encoders
from convert.adapters.layers import Full, Layers, Pair, implied, number, on_text_only, same_bits
from convert.adapters.names import (
    ALPHA,
    BIAS,
    FULL,
    FULL_BIAS,
    LYCORIS,
    MAGNITUDE,
    PARTS,
    PEFT_PREFIX,
    SPLIT,
    WRITTEN,
    Key,
    Layer,
    Naming,
    Place,
    parse,
    spell,
)
from convert.adapters.parts import LOHA, LOKR, NO_ALPHA, NOT_FINITE, UnusableError, change, settled
from convert.adapters.peft import (
    DAMAGES,
    PEFT_FILE,
    PEFT_METADATA,
    Scales,
    folder_scales,
    header_scales,
)
from convert.adapters.rows import apart, together
from flux_jax.errors import InputError, counted, shortened
from flux_jax.system.json_files import parse_json
from flux_jax.weights.mapping import DAMAGED

JOINED_LAYERS = "joined_layers"
# Header entries that affect the tensors' meaning.
HEADER = (PEFT_METADATA, JOINED_LAYERS)
# Maximum length of an example in an error message.
PROBLEM = 160
MEND = "give a file that holds one adapter of FLUX.1's transformer, whole and in one layout"


# Each layer's first key and its tensors by part, by the layer's name in the file.
Stems = dict[str, tuple[Key, dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Found:
    """An adapter read from a file's tensors.

    Attributes:
        layout: one of `convert.adapters.names.LAYOUTS`, or "xlabs".
        layers: each layer's change.
        notes: what was skipped or assumed, one line each.
        described: name of the layout for display.
        alphas: the file's alphas that are not positive, which `settled` replaced in the pairs.
    """

    layout: str
    layers: Layers
    notes: tuple[str, ...]
    described: str
    alphas: Mapping[Place, np.ndarray]


def from_torch(file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Found:
    """Converts tensors to layers.

    Args:
        file: their file, for messages and for PEFT's configuration beside it.
        tensors: by their names in the file.
        metadata: the file's header.

    Raises:
        InputError: names of no layout, or of several; changes that are incomplete, do not fit or
            are not supported; numbers that are not finite.
    """
    rest, encoders = split_encoders(tensors)
    notes = []
    if encoders:
        if not rest:
            raise InputError(
                f"{file}: contains only {encoders}, and nothing of FLUX.1's transformer"
            )
        notes.append(f"left out {encoders}; only the transformer is adapted")
    zeros = [name for name in rest if is_norm(name) and _is_zero_difference(name, tensors[name])]
    if zeros:
        notes.append(f"left out {counted(len(zeros), 'difference')} of norms, all zeros")
    keys = {name: key for name in rest if (key := parse(name))}
    refuse_unknown(
        file, [name for name in rest if name not in keys and name not in zeros], len(keys)
    )
    layout = _one_layout(file, keys)
    scales = folder_scales(file)
    if scales is None:
        scales = header_scales(file, metadata)
        first = next(iter(keys.values()))
        if file.name == PEFT_FILE and first.naming.prefix.startswith(PEFT_PREFIX):
            notes.append("no adapter_config.json beside it, so alpha is taken to be the rank")

    stems = _by_layer(keys, tensors)
    layers, alphas, unchanged = _changes(file, stems, _part_records(file, metadata), scales)
    if scales.dora and all(each.magnitude is None for each in layers.values()):
        raise InputError(f"{file}: use_dora is set but no layer has magnitudes; save it again")
    if not layers:
        every = f"all {len(stems)} layers have" if len(stems) > 1 else "its only layer has"
        raise InputError(f"{file}: changes nothing: {every} an alpha of 0, or only zeros")
    if unchanged:
        notes.append(f"left out {counted(unchanged, 'layer')} with an alpha of 0 or only zeros")
    described = _described(next(iter(keys.values())).naming, (parts for _, parts in stems.values()))
    return Found(layout, layers, tuple(notes), described, alphas)


def _changes(
    file: Path, stems: Stems, records: Mapping[str, list[PartRecord | None]], scales: Scales
) -> tuple[dict[Place, Pair | Full], dict[Place, np.ndarray], int]:
    """The layers' changes, their non-positive alphas, and the number of layers without change.

    Raises:
        InputError: some layers cannot be used.
    """
    layers: dict[Place, Pair | Full] = {}
    alphas: dict[Place, np.ndarray] = {}
    bad: list[str] = []
    unchanged = 0
    for stem, (key, tensors_of) in stems.items():
        name = key.layer.in_block(key.block)
        try:
            _refuse_flux_2(file, stem, key.layer, tensors_of)
            raw = change(tensors_of, name, key.layer.targets, scales)
            change_of_layer = settled(raw) if isinstance(raw, Pair) else raw
            if change_of_layer is None:
                unchanged += 1
            else:
                parts = apart(key.layer, key.block, change_of_layer, records.get(name))
                if parts.keys() & layers.keys():
                    raise UnusableError("is changed twice, on its own and in a joined layer")
                layers |= parts
                if isinstance(raw, Pair) and number(raw.alpha) <= 0:
                    alphas |= dict.fromkeys(parts, raw.alpha)
        except UnusableError as error:
            bad.append(f"{shortened(stem)} {_form(tensors_of)}{error}")
    refuse(file, bad)
    return layers, alphas, unchanged


def refuse(file: Path, bad: list[str]) -> None:
    """Raises one `InputError` for layers that cannot be used, if there are any."""
    if bad:
        said = f"{file}: {counted(len(bad), 'layer')} cannot be used"
        damaged = all(NOT_FINITE in problem or NO_ALPHA in problem for problem in bad)
        raise listed(said, bad, DAMAGED if damaged else MEND, PROBLEM)


def to_torch(
    file: Path, layout: str, layers: Layers
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Converts layers to the tensors of a layout, with the header entries that they need.

    Args:
        file: destination, for messages.
        layout: "diffusers", "kohya" or "original".
        layers: each layer's change.

    Raises:
        InputError: the layout does not support such changes, or layers that it joins do not fit
            each other.
    """
    _refuse_unheld(file, layout, layers)
    held: dict[str, Pair | Full] = {}
    records: dict[str, Any] = {}
    bad: list[str] = []
    blocks = sorted({block for _, block in layers if block is not None})
    for layer in WRITTEN[layout].layers:
        for block in (None, *blocks):
            parts = [layers.get(place) for place in layer.places(block)]
            if not any(parts):
                continue
            name = layer.in_block(block)
            try:
                made, before = together(layer, parts)
            except ValueError as error:
                bad.append(f"{name} {error}")
                continue
            held[spell(layout, layer, block, "")] = made
            if before:
                records[name] = [each and each.as_json() for each in before]
    refuse(file, bad)
    pairs = [each for each in held.values() if isinstance(each, Pair)]
    every = layout != "diffusers" or any(
        not same_bits(pair.alpha, implied(pair.down)) for pair in pairs
    )
    biased = any(pair.bias is not None for pair in pairs)
    tensors: dict[str, np.ndarray] = {}
    for stem, each in held.items():
        if isinstance(each, Full):
            tensors[stem + FULL] = each.delta
        else:
            tensors |= {
                stem + PARTS[layout]["down"]: each.down,
                stem + PARTS[layout]["up"]: each.up,
            }
            if every:
                tensors[stem + ALPHA] = each.alpha
            if each.magnitude is not None:
                tensors[stem + MAGNITUDE] = each.magnitude
            if layout == "diffusers" and biased:
                tensors[stem + BIAS] = _own_bias(each)
        if layout != "diffusers" and each.bias is not None:
            tensors[stem + FULL_BIAS] = each.bias
    return tensors, {JOINED_LAYERS: json.dumps(records)} if records else {}


def _own_bias(pair: Pair) -> np.ndarray:
    """A pair's bias before its scale; zeros if it has none, since PEFT requires all or none."""
    if pair.bias is None:
        return np.zeros(len(pair.up), pair.up.dtype)
    return pair.bias / pair.bias.dtype.type(pair.scale)


def _is_zero_difference(name: str, tensor: np.ndarray) -> bool:
    return name.endswith((".diff", ".diff_b", ".w_norm", ".b_norm")) and not tensor.any()


def _form(parts: Mapping[str, np.ndarray]) -> str:
    """The kind of a layer's adapter, for messages; "" for plain LoRA."""
    forms = {"lokr": "LoKr", "hada": "LoHa", "magnitude": "DoRA", "diff": "full difference"}
    return next((f"({forms[p]}) " for part in parts for p in forms if part.startswith(p)), "")


def _described(naming: Naming, layers: Iterable[Mapping[str, np.ndarray]]) -> str:
    """Name of a layout for display; LyCORIS's files use the layer names of other programs."""
    names = naming.layout
    if naming.flat and naming.layers is SPLIT:
        names += ", with underscores for dots"
    parts = {part for layer in layers for part in layer}
    kinds = [form for form, its in (("LoKr", LOKR), ("LoHa", LOHA)) if its & parts]
    if kinds or naming.prefix == LYCORIS:
        return f"LyCORIS ({' and '.join(kinds) or 'LoRA'}), layers named as in {names}"
    return names


def _by_layer(keys: Mapping[str, Key], tensors: Mapping[str, np.ndarray]) -> Stems:
    """Each layer's first key and its tensors by part, by the layer's name in the file."""
    stems: Stems = {}
    for name, key in keys.items():
        stems.setdefault(key.stem, (key, {}))[1][key.part] = tensors[name]
    return stems


def _one_layout(file: Path, keys: Mapping[str, Key]) -> str:
    """The layout of all keys.

    Raises:
        InputError: there are several layouts, spellings or adapters.
    """
    namings = {(key.naming.layout, key.naming.prefix): name for name, key in keys.items()}
    called = {key.ending: name for name, key in keys.items() if key.part == "down"}
    adapters = {key.adapter: name for name, key in keys.items() if key.part in {"down", "up"}}
    places: dict[Any, str] = {}
    for name, key in keys.items():
        other = places.setdefault((key.layer.targets, key.block, key.part), name)
        if other != name:
            called[name] = name
            called.setdefault(other, other)
    for what, examples in (
        ("adapters", adapters), ("layouts", namings), ("layouts", called)
    ):  # fmt: skip
        if len(examples) > 1:
            raise listed(f"{file}: mixed {what}, for instance", list(examples.values())[:2], MEND)
    return next(iter(namings))[0]


def _refuse_flux_2(file: Path, stem: str, layer: Layer, parts: Mapping[str, np.ndarray]) -> None:
    """Refuses FLUX.2's layers with names of FLUX.1's: their MLPs are gated, hence wider."""
    if {"down", "up"} <= parts.keys() and parts["down"].ndim == parts["up"].ndim == 2:
        inputs, outputs = parts["down"].shape[1], len(parts["up"])
        gated = {"linear1": 9, "img_mlp.0": 6, "txt_mlp.0": 6}
        if gated.get(layer.name.split(".", 2)[-1]) == outputs / inputs:
            raise InputError(
                f"{file}: of another model, FLUX.2: {shortened(stem)} has {outputs} outputs for "
                f"{inputs} inputs; give one that was made for FLUX.1"
            )


def _refuse_unheld(file: Path, layout: str, layers: Layers) -> None:
    """Refuses changes that a layout has no keys for, or only keys that its programs ignore."""
    if text := on_text_only(layers):
        raise InputError(
            f"{file}: it changes {text[0]} ({counted(len(text), 'layer')} in all), which no "
            "PyTorch layout can express; use --to flax, and draw with erase-anything sample"
        )
    whole = any(isinstance(each, Full) for each in layers.values())
    lengths = [each for each in layers.values() if each.magnitude is not None]
    biases = any(each.bias is not None for each in layers.values())
    if lengths and layout != "diffusers":
        held, to = "DoRA's magnitudes", "use --to diffusers"
    elif lengths and len(lengths) < len(layers):
        held, to = "DoRA's magnitudes on some layers only", "its programs require all or none"
    elif whole and layout != "original":
        held, to = "full differences (of LoKr, LoHa, .diff)", "use --to original, for ComfyUI"
    elif biases and layout == "kohya":
        held, to = "biases", "use --to original (ComfyUI) or --to diffusers"
    else:
        return
    raise InputError(
        f"{file}: layout {layout} does not support {held}; {to}, or add the adapter to a model's "
        "weights with convert.merge"
    )


def _part_records(file: Path, metadata: Mapping[str, str]) -> dict[str, list[PartRecord | None]]:
    """Records of joined layers in the header, by layer name."""
    try:
        entries = parse_json(metadata.get(JOINED_LAYERS, "{}"))
        return {name: [PartRecord.parse(each) for each in parts] for name, parts in entries.items()}
    except DAMAGES as error:
        raise InputError(
            f"{file}: {JOINED_LAYERS} in the header is damaged ({shortened(repr(error))}); convert "
            "the adapter again, or remove the entry"
        ) from error
