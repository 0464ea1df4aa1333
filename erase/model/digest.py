"""Digests of the files that a run reads, to notice when one is changed in place.

Up to `WHOLE` bytes in all, every byte counts, and times do not: a folder may be moved or copied.
Above, reading everything would take minutes, and samples are compared: blocks at even distances,
and both ends and the middle of every tensor in a safetensors file.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydantic

from erase.config.schema import Config
from erase.data.captioned_folder import SUFFIXES
from erase.runtime.cache import digest_of
from flux_jax.lora import Adapter
from flux_jax.tree import flatten
from flux_jax.weights.hub import find_model
from flux_jax.weights.source import SCHEDULER, TorchSource, open_source, root_of
from flux_jax.weights.tables import COMPONENTS

# Bytes in all up to which every byte is read.
WHOLE = 1 << 28
# Size of a sampled block, and distance between blocks, in bytes.
BLOCK, DISTANCE = 4096, 1 << 24
# Longest header of a safetensors file, in bytes, whose tensors are sampled.
HEADER = 1 << 26
# Small files of a pipeline besides the weights.
TOKENIZERS = ("tokenizer", "tokenizer_2")
TEXTS = (".json", ".txt", ".model")
# Pictures to preserve, and their captions.
READ = (*SUFFIXES, ".txt")


@dataclass(frozen=True)
class FileRecord:
    """What is known about a file.

    Attributes:
        size: in bytes.
        modified: time of its last modification, in seconds since 1970.
        sha256: of all bytes or of the samples.
        sampled: whether only samples were read.
    """

    size: int
    modified: float
    sha256: str
    sampled: bool


# By their folder, "model", "judge" or "upper.folder", and their path in it.
FileRecords = dict[str, FileRecord]
RECORDS = pydantic.TypeAdapter(FileRecords)


def of_runs(configs: Mapping[str, Config], *, evaluation: bool = False) -> dict[str, FileRecords]:
    """Return records of the files that runs read, by the run's name.

    Training reads the model and pictures to preserve, and with early stopping the judge; an
    evaluation reads the model and the judge.

    Args:
        configs: configurations of the runs, by name.
        evaluation: whether the files are those of an evaluation, instead of training.

    Raises:
        InputError: there is no such model, or it cannot be used.
    """
    read: dict[tuple[str, str], FileRecords] = {}

    def of(kind: str, path: str | None) -> FileRecords:
        if path is None:
            return {}
        if (kind, path) not in read:
            files = FILES[kind](path).items()
            read[kind, path] = records({f"{kind}/{name}": file for name, file in files})
        return read[kind, path]

    found = {}
    for name, config in configs.items():
        judge = config.evaluation.judge if evaluation or config.early_stop.every else None
        # A field of some methods.
        folder = None if evaluation else getattr(getattr(config, "upper", None), "folder", None)
        found[name] = of("model", config.model.path) | of("judge", judge) | of(FOLDER, folder)
    return found


def summary(files: Mapping[str, FileRecord]) -> str:
    """Return one digest of records, without the times, which a copy changes."""
    return digest_of({name: [each.size, each.sha256] for name, each in files.items()})


def of_adapter(adapter: Adapter) -> str:
    """Return a digest of an adapter's numbers."""
    digest = hashlib.sha256(repr(float(adapter.alpha)).encode())
    for name, leaf in sorted(flatten(adapter.lora).items()):
        values = np.asarray(leaf)
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def model_files(model: str) -> dict[str, Path]:
    """Return the files that are read of a model, by their names in its folder.

    Raises:
        InputError: there is no such model, or it cannot be used.
    """
    path = find_model(model)
    root = root_of(path)
    found: list[Path] = [root / "model_index.json", root / SCHEDULER]
    for name in COMPONENTS:
        source = open_source(path, name)
        found.append(root / name / "config.json")
        if isinstance(source, TorchSource):
            found += source.files
        else:
            found += [file for _, file in _files_in(source.where)]
    for name in TOKENIZERS:
        found += [file for _, file in _files_in(root / name) if file.suffix in TEXTS]
    return {_name(file, root): file for file in found if file.is_file()}


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _judge_files(folder: str) -> dict[str, Path]:
    return dict(_files_in(Path(folder)))


def _pictures(folder: str) -> dict[str, Path]:
    return {name: file for name, file in _files_in(Path(folder)) if file.suffix.lower() in READ}


def _files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the regular files in a folder, with their names in it, without hidden ones."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), file


# The field of some methods with a folder of pictures to preserve.
FOLDER = "upper.folder"
FILES: Mapping[str, Callable[[str], dict[str, Path]]] = {
    "model": model_files,
    "judge": _judge_files,
    FOLDER: _pictures,
}


def records(files: Mapping[str, Path]) -> FileRecords:
    """Return a record of each file."""
    stats = {name: path.stat() for name, path in files.items()}
    sampled = sum(each.st_size for each in stats.values()) > WHOLE
    return {
        name: FileRecord(
            size=each.st_size,
            modified=each.st_mtime,
            sha256=_sha256(files[name], sampled and each.st_size > BLOCK),
            sampled=sampled and each.st_size > BLOCK,
        )
        for name, each in sorted(stats.items())
        if stat.S_ISREG(each.st_mode)
    }


def _sha256(path: Path, sampled: bool) -> str:
    with path.open("rb") as file:
        if not sampled:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, size = hashlib.sha256(), os.fstat(file.fileno()).st_size
        for place in sorted(_places(file, size)):
            file.seek(place)
            digest.update(file.read(BLOCK))
        return digest.hexdigest()


def _places(file: BinaryIO, size: int) -> set[int]:
    """Return where to sample a file: at even distances, its end, and three in every tensor."""
    places = {*range(0, size, DISTANCE), max(0, size - BLOCK)}
    start = int.from_bytes(file.read(8), "little")
    if start > min(HEADER, size):
        return places
    try:
        tensors = json.loads(file.read(start))
        for name, each in tensors.items():
            if name == "__metadata__":
                continue
            first, end = (8 + start + int(each) for each in each["data_offsets"])
            places |= {first, (first + end) // 2, max(first, end - BLOCK)}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        # Not a safetensors file.
        return places
    return {place for place in places if 0 <= place < size}


def copied(there: Mapping[str, FileRecord], now: Mapping[str, FileRecord]) -> list[str]:
    """Return the names of sampled files whose time alone has changed."""
    return [
        name
        for name in sorted(there.keys() & now.keys())
        if now[name].sampled and there[name].modified != now[name].modified
    ]


def differing(there: Mapping[str, FileRecord], now: Mapping[str, FileRecord]) -> list[str]:
    """Return the names of the files that are missing, new or have other content."""
    return [
        name
        for name in sorted(there.keys() | now.keys())
        if name not in there
        or name not in now
        or (there[name].size, there[name].sha256) != (now[name].size, now[name].sha256)
    ]
