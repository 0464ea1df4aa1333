r"""Merge adapters into a model's weights, for programs that do not support adapters.

    erase-anything convert merge models/emoji-flux runs/soccer-ball:0.8 runs/merged

MODEL is a pipeline folder in diffusers' layout, one with Black Forest Labs' own files, the
transformer's single file, or a name on the hub. OUT has the same layout, types and shards: a
complete folder for a folder, a file for a file. Everything that no adapter changes stays identical,
byte for byte.

The change of a weight is the sum over the adapters of strength * alpha / R * (B A), or of what
their full differences or DoRA add; biases of adapters are added in the same way. It is computed and
added in float32, or in the tensor's type if that is wider, and the sum is rounded once.
Tensors are read, changed and written one by one.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.changes import (
    Adapter,
    Changes,
    changes_in,
    changes_of,
    merged,
    read_adapters,
    refuse_all,
)
from convert.adapters.stacked import extents
from convert.arguments import Parser
from convert.pipeline import WEIGHTS, copy_rest, whole
from flux_jax import progress
from flux_jax.errors import InputError, counted, exits_cleanly, say
from flux_jax.weights import layouts, mapping
from flux_jax.weights.hub import check_shipped, find_model
from flux_jax.weights.mapping import Slot
from flux_jax.weights.quantized.formats import quantisation
from flux_jax.weights.safetensors_files import (
    SUFFIXES,
    is_float,
    open_safetensors,
    read_file,
    write_file,
)
from flux_jax.weights.source import TorchSource, open_source

NAME = "transformer"
# Suffixes of the files that can be written.
WRITTEN = (".safetensors", ".sft")
# Entry of the written files' headers.
MERGED = "merged_adapters"
PICKLES = r"\.(bin|ckpt|pt|pth)(:[^/]*)?$"


def merge(model: str, adapters: Sequence[str], target: Path) -> None:
    """Writes a model with merged adapters; the target appears only when it is complete.

    Args:
        model: pipeline folder, the transformer's single file, or a name on the hub.
        adapters: "PATH" or "PATH:STRENGTH" each.
        target: folder to create, or file if `model` is one.

    Raises:
        InputError: the target exists, the model or an adapter cannot be used, or a sum overflows
            its tensor's type.
    """
    if target.exists():
        raise InputError(f"{target} exists; choose another OUT or remove it")
    _refuse_pickles([model, *adapters])
    read = read_adapters(adapters)
    path = find_model(model)
    _check_target(path, target)
    source = open_source(path, NAME)
    if not isinstance(source, TorchSource):
        raise InputError(
            f"{source.where} is in this project's own layout, which cannot be merged into; "
            f"convert it to diffusers' layout first: erase-anything convert pipeline {model} DST"
        )
    if path.is_file() and source.where != path:
        raise InputError(
            f"{path} is one of {counted(len(source.files), 'file')} of the transformer; give the "
            f"folder {source.where}"
        )
    if stored_as := quantisation(source.tensors):
        raise InputError(
            f"{source.where} is quantised ({stored_as}), and merging keeps the file's types; "
            f"dequantise it first: erase-anything convert pipeline {model} DST --to diffusers"
        )
    changes = changes_of(read)
    slots = _checked_slots(source, read, changes)
    with whole(target) as partial:
        files = {path: partial}
        if path.is_dir():
            files = {file: partial / file.relative_to(path) for file in source.files}
            copy_rest(path, partial, _left_behind(path, source), _link_or_copy)
        title = {"desc": "merging", "total": source.nbytes, "unit": "B", "unit_scale": True}
        problems: list[str] = []
        with progress.bar(**title) as bar:
            for old, new in files.items():
                tensors = _merged_file(old, source.names, slots, changes, problems, bar.update)
                write_file(new, tensors, _metadata(old, read))
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise InputError(
                f"{source.where}: not finite after merging: {', '.join(problems[:3])}{more}; "
                "use smaller strengths, or the model in a wider type; if it fails with any "
                "adapter, fetch the model again"
            )


def _refuse_pickles(given: Sequence[str]) -> None:
    pickles = [text for text in given if re.search(PICKLES, text)]
    if pickles:
        raise InputError(
            f"{', '.join(pickles)}: pickles can run arbitrary code when they are read, so they "
            "are not supported; save as safetensors with the program that wrote them"
        )


def _check_target(path: Path, target: Path) -> None:
    if path.is_file() and target.suffix not in WRITTEN:
        raise InputError(
            f"{target}: {path} is one file, so OUT must be one; end its name in {WRITTEN[0]}"
        )
    if path.is_dir() and target.suffix in WRITTEN:
        raise InputError(
            f"{target}: {path} is a folder, so OUT must be one; name it without {target.suffix}, "
            "or give the transformer's single file itself"
        )
    if path.is_dir() and target.resolve().is_relative_to(path.resolve()):
        raise InputError(f"{target} is inside MODEL; choose an OUT outside of {path}")


def _checked_slots(
    source: TorchSource, adapters: Sequence[Adapter], changes: Changes
) -> dict[str, Slot]:
    """Checks that the adapters fit the model; returns the slots of its tensors by name.

    Raises:
        InputError: an adapter or the model does not fit.
    """
    from flux_jax.lora import check_extents
    from flux_jax.weights.loading import abstract_params

    shapes = abstract_params(NAME, source.config)
    mapping.check(source.table, source.tensors, shapes, source=source.where)
    problems = []
    for adapter in adapters:
        try:
            needed = extents(Path(adapter.name), adapter.layers)
            check_extents(needed, shapes, adapter.name)
        except InputError as error:
            problems.append(str(error))
    slots = {slot.name: slot for slot in mapping.slots(source.table, shapes)}
    for name, slot in slots.items():
        dtype = source.tensors[name].dtype
        if any(changes_in(slot, changes)) and not is_float(dtype):
            problems.append(f"{source.where}: {name} is {dtype}; take the model in bfloat16")
    refuse_all(problems)
    return slots


def _left_behind(root: Path, source: TorchSource) -> Callable[[Path], bool]:
    """Makes a predicate: which files of the folder are the transformer's weights, in any layout."""
    index = None if source.found in source.files else source.found

    def left_behind(path: Path) -> bool:
        if path.parent in (root / NAME, source.where):
            return path.name.endswith(WEIGHTS) and path != index
        return path.parent == root and path.suffix in SUFFIXES and _holds_transformer(path)

    return left_behind


def _holds_transformer(file: Path) -> bool:
    try:
        return NAME in layouts.models(file, read_file(file))
    except InputError:
        return False


def _link_or_copy(old: str, new: str) -> None:
    """Hard-links a weight file if the file system can; copies all other files."""
    if old.endswith(SUFFIXES):
        with contextlib.suppress(OSError):
            # In the hub's cache, files are symbolic links.
            os.link(os.path.realpath(old), new)
            return
    shutil.copy2(old, new)


def _metadata(file: Path, adapters: Sequence[Adapter]) -> dict[str, str]:
    """A file's header entries and the list of merged adapters, after any merged earlier."""
    metadata = dict(open_safetensors(file).metadata() or {})
    earlier = [metadata[MERGED]] if MERGED in metadata else []
    return metadata | {MERGED: ", ".join([*earlier, *map(str, adapters)])}


@dataclass(frozen=True)
class _Unmade:
    """A tensor that is computed when `np.asarray` reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Computes the tensor."""
        return np.asarray(self.make(), dtype)


def _merged_file(
    file: Path,
    names: Mapping[str, str],
    slots: Mapping[str, Slot],
    changes: Changes,
    problems: list[str],
    advance: Callable[[int], Any],
) -> dict[str, _Unmade]:
    """A file's tensors, which are changed when they are read.

    Args:
        file: file to read.
        names: the table's names by the file's.
        slots: the slot of each tensor, by the table's names.
        changes: changes of the model's layers.
        problems: receives the names of tensors that are not finite after their change.
        advance: called with the number of bytes of each tensor that was read.
    """

    def unmade(name: str, tensor: np.ndarray) -> _Unmade:
        slot = slots.get(names.get(name, ""))

        def make() -> np.ndarray:
            advance(tensor.nbytes)
            if slot is None or not any(changes_in(slot, changes)):
                return tensor
            changed = merged(tensor, slot, changes)
            if not mapping.is_finite(changed):
                problems.append(name)
            return changed

        return _Unmade(tensor.shape, tensor.dtype, make)

    return {name: unmade(name, tensor) for name, tensor in read_file(file).items()}


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module's docstring."""
    parser = Parser("erase-anything convert merge", __doc__)
    parser.add_argument("model", metavar="MODEL", help="folder, file or name on the hub")
    parser.add_argument(
        "adapters",
        metavar="ADAPTER[:STRENGTH]",
        nargs="+",
        help="an adapter's file or folder; the strength is 1 by default",
    )
    parser.add_argument("target", metavar="OUT", type=Path, help="folder or file to create")
    options = parser.parse_args(arguments)
    check_shipped(options.model)
    # For JAX, which is not imported yet: only shapes are traced, so an accelerator is not needed.
    os.environ["JAX_PLATFORMS"] = "cpu"
    merge(options.model, options.adapters, options.target)
    say(options.target)


if __name__ == "__main__":
    main()
