"""Weights in files and in trees: lazy reading, atomic writing, and the walk of a table either way.

Axis letters: L blocks stacked along a leading axis.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from convert.errors import InputError
from convert.tables import Row, Shape, Table

# File names without suffix: diffusers, transformers, this project.
TORCH_STEMS = ("diffusion_pytorch_model", "model")
FLAX_STEM = "flax_model"
SHARD_BYTES = 5_000_000_000

Params = Mapping[str, Any]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; `np.asarray` reads it."""

    file: Any
    name: str
    shape: Shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads the tensor (bfloat16 as ml_dtypes has it)."""
        tensor = self.file.get_tensor(self.name)
        return tensor if dtype is None else tensor.astype(dtype)


@dataclass(frozen=True)
class _Slot:
    """One expected PyTorch tensor: its row, the leaves it fills and which block of them."""

    name: str
    shape: Shape
    row: Row
    leaves: tuple[str, ...]
    leaf_shapes: tuple[Shape, ...]
    block: int | None


def flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries, under their paths joined by "/"."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def placeholders(name: str) -> set[str]:
    """The names in braces."""
    return set(re.findall(r"\{(\w+)\}", name))


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    """A regular expression that finds the numbers at a name's placeholders."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(name)))


def match(template: str, name: str) -> dict[str, str] | None:
    """The numbers at a template's placeholders in `name`, or None if it does not fit."""
    found = _pattern(template).fullmatch(name)
    return found.groupdict() if found else None


def to_flax(
    table: Table,
    tensors: Mapping[str, Any],
    shapes: Params,
    *,
    source: str | os.PathLike[str] = "weights",
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Builds a Flax tree from PyTorch tensors, which are read one at a time.

    Args:
        table: names of the component.
        tensors: arrays, or anything with `.shape` that `np.asarray` reads (`StoredTensor`,
            `torch.Tensor`), by PyTorch name.
        shapes: nested dictionaries of objects with `.shape`: the tree to fill.
        source: what error messages call the tensors' origin.
        progress: wraps the loop over tensors, for instance `tqdm`.

    Returns:
        Nested dictionaries of arrays with the given shapes and the tensors' own dtypes.

    Raises:
        InputError: tensors are missing, surplus or misshapen; lists every one.
    """
    flat_shapes = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    slots, problems = _slots(table, flat_shapes)
    tensors, surplus = _canonical(table, tensors, {slot.name for slot in slots})
    for slot in slots:
        if slot.name not in tensors:
            problems.append(f"missing: {slot.name} {list(slot.shape)}")
        elif tuple(tensors[slot.name].shape) != slot.shape:
            got = list(tensors[slot.name].shape)
            problems.append(f"misshapen: {slot.name} is {got}, expected {list(slot.shape)}")
    problems += [f"surplus: {name} {list(tensor.shape)}" for name, tensor in surplus.items()]
    _refuse(source, problems)

    flat: dict[str, np.ndarray] = {}
    for slot in progress(slots):
        parts = slot.row.rule.to_flax(np.asarray(tensors[slot.name]), slot.leaf_shapes)
        for path, part in zip(slot.leaves, parts, strict=True):
            if path not in flat:
                flat[path] = np.empty(flat_shapes[path], part.dtype)
            if flat[path].dtype != part.dtype:
                problems.append(
                    f"mixed types: {slot.name} is {part.dtype}, other blocks {flat[path].dtype}"
                )
            elif slot.block is None:
                flat[path][...] = part
            else:
                flat[path][slot.block] = part
    _refuse(source, problems)
    return nest(flat)


def to_torch(table: Table, params: Params) -> dict[str, np.ndarray]:
    """Names a Flax tree's contents as PyTorch does; the arrays are views wherever possible.

    Args:
        table: names of the component.
        params: nested dictionaries of arrays.

    Returns:
        Arrays of the leaves' dtypes by PyTorch name, in the table's order of leaves.

    Raises:
        InputError: the table has no name for a leaf; lists every one.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    slots, problems = _slots(table, {path: leaf.shape for path, leaf in flat.items()})
    _refuse("parameters", problems)
    tensors = {}
    for slot in slots:
        leaves = [flat[path] for path in slot.leaves]
        if slot.block is not None:
            leaves = [leaf[slot.block] for leaf in leaves]
        tensors[slot.name] = slot.row.rule.to_torch(leaves)
    return tensors


def _slots(table: Table, shapes: Mapping[str, Shape]) -> tuple[list[_Slot], list[str]]:
    """The PyTorch tensors that a tree of these shapes holds, and the leaves without a name."""
    slots, problems = [], []
    named = set()
    for path in shapes:
        for row in table.rows:
            numbers = match(row.flax[0], path)
            if numbers is not None:
                break
        else:
            continue
        leaves = tuple(template.format(**numbers) for template in row.flax)
        absent = [
            f"missing: {leaf}, the partner of {path}" for leaf in leaves if leaf not in shapes
        ]
        problems += absent
        if absent:
            continue
        named |= set(leaves)
        counter = placeholders(row.torch) - set(numbers)
        leaf_shapes = tuple(shapes[leaf] for leaf in leaves)
        blocks: Iterable[int | None] = [None]
        if counter:
            blocks = range(leaf_shapes[0][0])
            leaf_shapes = tuple(shape[1:] for shape in leaf_shapes)
        shape = row.rule.torch_shape(leaf_shapes)
        for block in blocks:
            name = row.torch.format(**numbers, **dict.fromkeys(counter, block))
            slots.append(_Slot(table.prefix + name, shape, row, leaves, leaf_shapes, block))
    problems += [f"surplus: {path} {list(shapes[path])}" for path in shapes if path not in named]
    return slots, problems


def _canonical(
    table: Table, tensors: Mapping[str, Any], expected: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors under the table's names, and those that it does not want."""
    known: dict[str, Any] = {}
    surplus: dict[str, Any] = {}
    copies: dict[str, Any] = {}
    for name, tensor in tensors.items():
        full = name if name.startswith(table.prefix) else table.prefix + name
        if full in table.ignored:
            continue
        if full in table.copies:
            copies[full] = tensor
        elif full in expected and full not in known:
            known[full] = tensor
        else:
            surplus[name] = tensor
    for name, tensor in copies.items():
        original = known.setdefault(table.copies[name], tensor)
        if original is not tensor and not np.array_equal(original, tensor):
            raise InputError(
                f"{name} differs from {table.copies[name]}; this model shares them, so the file "
                "belongs to another architecture"
            )
    return known, surplus


def _refuse(source: str | os.PathLike[str], problems: Sequence[str]) -> None:
    if problems:
        listing = "\n  ".join(problems)
        raise InputError(
            f"{source}: {len(problems)} tensors do not fit the model that config.json describes; "
            f"give weights and config.json of one model:\n  {listing}"
        )


def open_safetensors(path: Path) -> Any:
    """Opens a safetensors file for lazy reading.

    Raises:
        InputError: the file is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: truncated or not a safetensors file ({error}); copy or download it again"
        ) from error


def read_file(path: Path) -> dict[str, StoredTensor]:
    """All tensors of one safetensors file, unread.

    Raises:
        InputError: see `open_safetensors`.
    """
    file = open_safetensors(path)
    return {
        name: StoredTensor(file, name, tuple(file.get_slice(name).get_shape()))
        for name in file.keys()  # noqa: SIM118 (safe_open is no dictionary)
    }


def read_component(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model's folder, unread: one file, or the shards that an index lists.

    Raises:
        InputError: no weights, a shard or one of its tensors is missing, a file is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for stem in (*TORCH_STEMS, FLAX_STEM):
        single = folder / f"{stem}.safetensors"
        index = folder / f"{stem}.safetensors.index.json"
        if single.is_file():
            return read_file(single)
        if index.is_file():
            return _read_shards(index)
    names = " or ".join(f"{stem}.safetensors" for stem in TORCH_STEMS)
    raise InputError(
        f"{folder}: no weights; expected {names}, or the like with .index.json and its shards "
        "(.bin files: save the model again with safe_serialization=True)"
    )


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{index}: not an index of shards ({error!r}); copy or download it again"
        ) from error
    files = sorted(set(places.values()))
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        raise InputError(
            f"{index}: missing shards {', '.join(absent)}; copy or download them beside the index"
        )
    shards = {file: read_file(index.parent / file) for file in files}
    lost = [f"{name} ({file})" for name, file in places.items() if name not in shards[file]]
    if lost:
        raise InputError(
            f"{index}: these tensors are not in their shards; copy or download index and shards "
            f"again:\n  " + "\n  ".join(lost)
        )
    return {name: shards[file][name] for name, file in places.items()}


def write_file(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes one safetensors file; it appears under its name only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    # safetensors writes the memory behind an array as it lies, so views must be made contiguous.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    try:
        save_file(contiguous, partial, dict(metadata))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_component(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    stem: str,
    metadata: Mapping[str, str],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model's weights as one file, or as shards and an index if they are larger.

    Args:
        folder: made if absent; older weights of the same stem in it are replaced.
        tensors: arrays by name.
        stem: file name without suffix, for instance `diffusion_pytorch_model`.
        metadata: the files' metadata; PyTorch's readers want {"format": "pt"}.
        shard_bytes: most bytes a file, unless one tensor alone is larger.
    """
    shards = list(_shards(tensors, shard_bytes))
    suffix = ".safetensors"
    names = [f"{stem}{suffix}"]
    if len(shards) > 1:
        names = [f"{stem}-{n:05}-of-{len(shards):05}{suffix}" for n in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, {key: tensors[key] for key in shard}, metadata)
    if len(shards) > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        names.append(f"{stem}{suffix}.index.json")
        partial = folder / f".{names[-1]}.partial"
        partial.write_text(json.dumps(index, indent=2) + "\n")
        os.replace(partial, folder / names[-1])
    for stale in (*folder.glob(f"{stem}-*-of-*{suffix}"), *folder.glob(f"{stem}{suffix}*")):
        if stale.name not in names:
            stale.unlink()


def _shards(tensors: Mapping[str, np.ndarray], limit: int) -> Iterator[list[str]]:
    """Names, in order, in groups of at most `limit` bytes."""
    group: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if group and size + tensor.nbytes > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor.nbytes
    yield group
