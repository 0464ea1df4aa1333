"""Record of a run's finished results: what each was computed from, and its files.

A command whose results are all finished ends at once. The record holds digests, so that a result
counts as finished only with the same inputs and with unchanged files.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from erase.runtime import processes
from erase.runtime.files import read_json, write
from erase.runtime.run_folder import FINISHED

# Largest record that is read, in bytes.
MOST = 1 << 24


@dataclass(frozen=True)
class FinishedResult:
    """A finished result.

    Attributes:
        inputs: digest of everything that it was computed from.
        files: SHA-256 of its files, by their paths in the run's folder.
    """

    inputs: str
    files: dict[str, str]


RECORD = pydantic.TypeAdapter(dict[str, FinishedResult])


def is_finished(folder: Path, result: str, inputs: str) -> bool:
    """Whether a result is finished and its files are unchanged.

    Args:
        folder: the run's folder.
        result: name of the result, for instance "evaluation".
        inputs: digest of everything that it is computed from.
    """
    entry = _read(folder).get(result)
    if entry is None or entry.inputs != inputs:
        return False
    return all(sha256(folder / name) == digest for name, digest in entry.files.items())


def read(folder: Path, result: str, inputs: str, file: str) -> Any:
    """Return the content of a finished result's JSON file; None if it is not finished.

    Args:
        folder: the run's folder.
        result: name of the result.
        inputs: digest of everything that it is computed from.
        file: the file's path in the folder.
    """

    def content() -> dict[str, Any] | None:
        return read_json(folder / file) if is_finished(folder, result, inputs) else None

    return processes.from_first(content, dict[str, Any] | None)


def finish(folder: Path, result: str, inputs: str, files: Iterable[str]) -> None:
    """Record that a result is finished; call this after its files are written.

    Args:
        folder: the run's folder.
        result: name of the result.
        inputs: digest of everything that it was computed from.
        files: paths of its files in the folder.
    """
    if not processes.first():
        return
    digests = {name: digest for name in files if (digest := sha256(folder / name))}
    record = _read(folder) | {result: FinishedResult(inputs=inputs, files=digests)}
    content = RECORD.dump_json(dict(sorted(record.items())), indent=1)
    write(folder / FINISHED, content + b"\n")


def sha256(path: Path) -> str | None:
    """Return the SHA-256 of a regular file in hexadecimal; None if there is no such file."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _read(folder: Path) -> dict[str, FinishedResult]:
    """Read a folder's record; empty if it is missing or damaged: then nothing is finished."""
    path = folder / FINISHED
    try:
        if not path.is_file() or path.stat().st_size > MOST:
            return {}
        return RECORD.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
