"""Adapter files: diffusers' layout (PEFT keys, one pair a block) and Flax's (stacked), both ways.

    python -m convert.lora SRC DST

A file in one layout is written in the other; its keys tell which it is. Axis letters: L blocks,
I inputs, O outputs, R rank.

The layer's change is alpha / R * (x A) B. Diffusers' layout holds alpha as `<layer>.alpha`, only
where it differs from the rank: pipelines of every diffusers version and other programs honour
these keys. (`FluxTransformer2DModel.load_lora_adapter`, called without a pipeline, does not.) The
header entry that newer diffusers writes instead is understood when reading.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from convert.errors import InputError, exits_cleanly
from convert.mapping import (
    Row,
    Table,
    differences,
    flatten,
    match,
    nest,
    placeholders,
    refuse,
    to_flax,
    to_torch,
)
from convert.rules import LINEAR
from convert.tables import TRANSFORMER
from convert.tensors import open_safetensors, read_file, write_file

TORCH_FILE = "pytorch_lora_weights.safetensors"
FLAX_FILE = "flax_lora.safetensors"
PEFT_METADATA = "lora_adapter_metadata"
MODEL = "transformer."
KERNEL = "/kernel"
MEND = "every target needs A and B of one rank in every block"

Lora = Mapping[str, Any]


def _adapter_table(base: Table) -> Table:
    """Names of the A and B of every stacked dense layer, derived from the layers' own names."""
    rows = []
    for row in base.rows:
        for leaf in row.flax:
            if leaf.endswith(KERNEL) and placeholders(row.torch) - placeholders(leaf):
                layer, target = row.torch.removesuffix(".weight"), leaf.removesuffix(KERNEL)
                for part in "AB":
                    name = f"{MODEL}{layer}.lora_{part}.weight"
                    rows.append(Row(name, (f"{target}/{part}",), LINEAR))
    return Table(tuple(rows))


TABLE = _adapter_table(TRANSFORMER)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as a file holds it.

    Attributes:
        layout: "torch" (diffusers' keys) or "flax".
        lora: {"dual_blocks": {"attn": {"add_q_proj": {"A": [L, I, R], "B": [L, R, O]}}}}, ...
        alpha: the change is alpha / R * (x A) B.
        metadata: what else the file's header says.
    """

    layout: str
    lora: dict[str, Any]
    alpha: float
    metadata: dict[str, str]


def read_adapter(path: str | Path) -> AdapterFile:
    """Reads an adapter in either layout.

    Args:
        path: a safetensors file, or a folder with one under its usual name.

    Raises:
        InputError: the file is missing or damaged, of another layout, or incomplete.
    """
    file = _existing(Path(path))
    metadata = open_safetensors(file).metadata() or {}
    tensors = read_file(file)
    if any("/" in name for name in tensors):
        adapter = _from_flax(file, tensors, metadata)
    elif any(_named(name) for name in tensors):
        adapter = _from_torch(file, tensors, metadata)
    else:
        example = TABLE.rows[0].torch.format(i=0)
        raise InputError(
            f"{file}: no known adapter layout; expected diffusers' keys ({example}) or this "
            f"project's, got {', '.join(sorted(tensors)[:3]) or 'an empty file'}"
        )
    return adapter


def read_lora(path: str | Path) -> tuple[dict[str, Any], float]:
    """Tree and alpha of an adapter in either layout; see `read_adapter`."""
    adapter = read_adapter(path)
    return adapter.lora, adapter.alpha


def write_lora(
    path: str | Path, lora: Lora, alpha: float, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes diffusers' layout, for `FluxPipeline.load_lora_weights`.

    Args:
        path: a file that ends in .safetensors, or a folder.
        lora: tree of A [L, I, R] and B [L, R, O].
        alpha: the change is alpha / R * (x A) B.
        metadata: entries for the file's header.

    Raises:
        InputError: the tree lacks a partner, mixes ranks or has targets that no layer bears.
    """
    file = _named_file(Path(path), TORCH_FILE)
    flat = {name: np.asarray(leaf) for name, leaf in flatten(lora).items()}
    rank = _check(file, flat)
    tensors = to_torch(TABLE, nest(flat))
    if alpha != rank:
        for name in [name for name in tensors if name.endswith("lora_A.weight")]:
            tensors[_alpha_name(name)] = np.array(alpha, np.float32)
    write_file(file, tensors, {**(metadata or {}), "format": "pt"})


def write_flax_lora(
    path: str | Path, lora: Lora, alpha: float, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes this project's layout: stacked arrays under paths, alpha in the header.

    Arguments and errors are those of `write_lora`.
    """
    file = _named_file(Path(path), FLAX_FILE)
    flat = {name: np.asarray(leaf) for name, leaf in flatten(lora).items()}
    _check(file, flat)
    write_file(file, flat, {**(metadata or {}), "format": "flax", "alpha": repr(float(alpha))})


def _named_file(path: Path, name: str) -> Path:
    return path if path.suffix == ".safetensors" else path / name


def _existing(path: Path) -> Path:
    if path.is_dir():
        for name in (TORCH_FILE, FLAX_FILE):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path}: no adapter; expected {TORCH_FILE} or {FLAX_FILE} in the folder")
    return path


def _alpha_name(name: str) -> str:
    return name.removesuffix("lora_A.weight") + "alpha"


def _named(name: str) -> tuple[str, int] | None:
    """The leaf's path and the block of a diffusers key."""
    for row in TABLE.rows:
        numbers = match(row.torch, name)
        if numbers is not None:
            (block,) = numbers.values()
            return row.flax[0], int(block)
    return None


def _from_flax(file: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> AdapterFile:
    _check(file, tensors)
    try:
        alpha = float(metadata["alpha"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{file}: alpha = {metadata.get('alpha')!r} in the header must be a number; "
            "write the file again with convert.lora"
        ) from error
    lora = nest({name: np.asarray(tensor) for name, tensor in tensors.items()})
    return AdapterFile("flax", lora, alpha, _rest(metadata))


def _from_torch(file: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> AdapterFile:
    places = {name: _named(name) for name in tensors}
    seen = [
        (place[0], (place[1] + 1, *reversed(tensors[name].shape)))
        for name, place in places.items()
        if place
    ]
    shapes, rank = _expected(file, seen)
    pairs = {_alpha_name(name) for name in places if name.endswith("lora_A.weight")}
    weights = {name: tensor for name, tensor in tensors.items() if name not in pairs}
    alphas = {name: tensor for name, tensor in tensors.items() if name in pairs}
    abstract = {path: SimpleNamespace(shape=shape) for path, shape in shapes.items()}
    lora = to_flax(TABLE, weights, nest(abstract), source=file, mend=MEND)
    alpha = _torch_alpha(file, alphas, len(pairs), metadata, rank)
    return AdapterFile("torch", lora, alpha, _rest(metadata))


def _torch_alpha(
    file: Path, alphas: Mapping[str, Any], pairs: int, metadata: Mapping[str, str], rank: int
) -> float:
    """The one alpha of all layers: from keys, from diffusers' own metadata, or the rank."""
    if alphas:
        # str gives the shortest decimal of a float32, so that 0.1 comes back as 0.1.
        values = {float(str(np.float32(np.asarray(tensor)))) for tensor in alphas.values()}
        if len(values) > 1 or len(alphas) < pairs:
            raise InputError(
                f"{file}: alpha = {sorted(values)} on {len(alphas)} of {pairs} "
                "layers; only one alpha for all layers is supported: scale B and drop the keys"
            )
        return values.pop()
    if PEFT_METADATA not in metadata:
        return float(rank)
    try:
        config = json.loads(metadata[PEFT_METADATA])
        alpha = float(config.get(f"{MODEL}lora_alpha", rank))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: {PEFT_METADATA} in the header is damaged ({error}); save the adapter again"
        ) from error
    for name in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora"):
        if config.get(MODEL + name):
            raise InputError(
                f"{file}: {name} = {config[MODEL + name]} in {PEFT_METADATA} is not supported; "
                "save the adapter with one rank and one alpha"
            )
    return alpha


def _rest(metadata: Mapping[str, str]) -> dict[str, str]:
    """Header entries that say nothing about the layout."""
    return {k: v for k, v in metadata.items() if k not in ("format", "alpha", PEFT_METADATA)}


def _expected(
    source: Path, seen: Sequence[tuple[str, tuple[int, ...]]]
) -> tuple[dict[str, tuple[int, int, int]], int]:
    """Shapes that a complete adapter of these targets has, and its rank, by majority.

    Args:
        source: the file, for messages.
        seen: paths with stacked shapes; a path may come several times, with different L.
    """
    depth: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    widths: dict[str, Counter[int]] = {}
    for path, shape in seen:
        if len(shape) == 3:
            stack = path.split("/")[0]
            depth[stack] = max(depth[stack], shape[0])
            rank, width = (shape[2], shape[1]) if path.endswith("/A") else (shape[1], shape[2])
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
        shapes[path] = (depth[path.split("/")[0]], *last)
    return shapes, rank


def _check(source: Path, flat: Mapping[str, Any]) -> int:
    """The rank of a stacked tree; refuses one that is incomplete, uneven or of unknown targets."""
    known = {row.flax[0] for row in TABLE.rows}
    seen = [(path, tuple(leaf.shape)) for path, leaf in flat.items() if path in known]
    shapes, rank = _expected(source, seen) if seen else ({}, 0)
    refuse(source, MEND, differences(flat, shapes))
    if not seen:
        raise InputError(f"{source}: no target at all; {MEND}")
    return rank


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m convert.lora", description=__doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="file or folder to read")
    parser.add_argument("target", metavar="DST", type=Path, help="file or folder to write")
    options = parser.parse_args(arguments)
    adapter = read_adapter(options.source)
    to_flax_layout = adapter.layout == "torch"
    file = _named_file(options.target, FLAX_FILE if to_flax_layout else TORCH_FILE)
    if file.exists():
        raise InputError(f"{file} exists; choose another DST or remove it")
    write = write_flax_lora if to_flax_layout else write_lora
    write(file, adapter.lora, adapter.alpha, adapter.metadata)
    print(file)


if __name__ == "__main__":
    main()
