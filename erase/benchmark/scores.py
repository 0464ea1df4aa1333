"""Scores of a judge in a file of JSON lines, one for each picture, so that judging resumes."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erase.judges.protocol import Scores
from erase.runtime.files import write
from flux_jax.errors import InputError, names_file
from flux_jax.system.files import read_text
from flux_jax.system.json_files import parse_json

# Bytes of a file that is read.
MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class ScoreFile:
    """Scores on disk.

    Attributes:
        path: the file.
        by_number: scores by the picture's number.
    """

    path: Path
    by_number: dict[int, Scores] = field(default_factory=dict)

    @classmethod
    def opened(cls, path: Path, description: Mapping[str, str | float]) -> "ScoreFile":
        """Open the scores of a judge; those of a judge with another description are discarded.

        An incomplete last line, as a killed process leaves, is removed.

        Args:
            path: the file.
            description: what the judge's scores depend on; the file's first line.

        Raises:
            InputError: the file is damaged.
        """
        first = json.dumps(dict(description), sort_keys=True)
        text = ""
        if path.is_file():
            try:
                text = read_text(path, most=MOST_BYTES)
            except (UnicodeDecodeError, OSError):
                raise InputError(f"{path} cannot be read; remove it to judge again") from None
        whole, newline, torn = text.rpartition("\n")
        lines = whole.split("\n")
        if lines[0] != first:
            write(path, first + "\n")
            return cls(path)
        scores = dict(_read(path, number, line) for number, line in enumerate(lines[1:], start=2))
        if torn:
            write(path, whole + newline)
        return cls(path, scores)

    def add(self, scores: Mapping[int, Scores]) -> None:
        """Append the scores of pictures, by their numbers."""
        lines = [json.dumps({"picture": n, "scores": dict(s)}) + "\n" for n, s in scores.items()]
        with names_file(self.path), self.path.open("a") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self.by_number.update(scores)


def _read(path: Path, number: int, line: str) -> tuple[int, Scores]:
    """Read a line.

    Raises:
        InputError: it is damaged.
    """
    try:
        content: Any = parse_json(line)
        picture, scores = content["picture"], content["scores"]
        finite = all(type(v) in (int, float) and math.isfinite(v) for v in scores.values())
        if type(picture) is not int or not finite:
            raise ValueError("no score")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path}: line {number} is damaged; remove the file to judge again"
        ) from None
    return picture, {name: float(value) for name, value in scores.items()}
