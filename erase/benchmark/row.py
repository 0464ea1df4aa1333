"""One row of a benchmark: a folder with the settings, pictures and scores of a model.

Axis letters: B pictures, h w picture sides.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from erase.benchmark.draw import Drawing
from erase.benchmark.results import PICTURES, SETTINGS, FigureRecord, JudgeRecord
from erase.benchmark.scores import ScoreFile
from erase.judges.protocol import PictureJudge, Scores
from erase.model.draw import png
from erase.runtime import processes
from erase.runtime.cache import digest_of
from erase.runtime.files import read_json, write
from flux_jax.errors import InputError, shortened
from flux_jax.system.pictures import read_picture

# Threads that compress pictures.
THREADS = 4
# Settings that name files, whose digests are compared instead.
NAMES = ("model", "prompts", "adapters", "where")


@dataclass(frozen=True)
class Row:
    """A row's folder.

    Attributes:
        folder: the folder.
        judges: judges by their texts on the command line.
        scores: files of scores, by the same.
        keep: whether pictures are kept as files.
        notes: text entries of the pictures.
    """

    folder: Path
    judges: Mapping[str, PictureJudge]
    scores: Mapping[str, ScoreFile]
    keep: bool
    notes: Mapping[str, str]

    @classmethod
    def opened(
        cls,
        folder: Path,
        settings: Mapping[str, Any],
        judges: Mapping[str, PictureJudge],
        keep: bool,
    ) -> "Row":
        """Open or create a row's folder; in the first process of a command.

        Args:
            folder: the folder.
            settings: everything that its pictures depend on, of JSON types.
            judges: judges by their texts on the command line.
            keep: whether pictures are kept as files.

        Raises:
            InputError: it has pictures of other settings, or a file is damaged.
        """
        check_settings(folder, settings)
        write(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
        scores = {
            text: ScoreFile.opened(folder / scores_name(text, judge.description), judge.description)
            for text, judge in judges.items()
        }
        shown = {name: settings[name] for name in ("model", "steps", "adapters")}
        return cls(folder, judges, scores, keep, {"settings": json.dumps(shown)})

    def picture(self, number: int) -> Path:
        """Return the file of a picture."""
        return self.folder / PICTURES / f"{number:06}.png"

    def done(self, every: Sequence[Drawing]) -> frozenset[int]:
        """Return the numbers of pictures that need not be drawn; kept ones may have no scores."""
        numbers = {each.number for each in every}
        if self.keep:
            return frozenset(n for n in numbers if self.picture(n).is_file())
        judged = (set(each.by_number) for each in self.scores.values())
        return frozenset(numbers.intersection(*judged)) if self.scores else frozenset()

    def take(self, row: Sequence[Drawing], pictures: UInt8[np.ndarray, "B h w 3"]) -> None:
        """Write pictures and their scores.

        Raises:
            InputError: a judge does not take the pictures.
        """
        if self.keep:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(self._write, row, pictures))
        self._judge(row, pictures)

    def _judge(self, row: Sequence[Drawing], pictures: UInt8[np.ndarray, "B h w 3"]) -> None:
        """Add the scores that are missing."""
        for text, judge in self.judges.items():
            new = [
                i for i, each in enumerate(row) if each.number not in self.scores[text].by_number
            ]
            if new:
                scores = judge.scores(pictures[new], [row[i].prompt for i in new])
                numbers = [row[i].number for i in new]
                self.scores[text].add(dict(zip(numbers, scores, strict=True)))

    def _write(self, each: Drawing, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        own = {"prompt": each.prompt, "seed": str(each.seed), "guidance": str(each.guidance)}
        write(self.picture(each.number), png(picture, {**own, **self.notes}))

    def judge_kept(self, every: Sequence[Drawing], batch: int) -> None:
        """Judge the kept pictures without scores, as after an interruption or for a new judge.

        Raises:
            InputError: a file is damaged or has another size.
        """
        left = [
            each
            for each in every
            if self.keep
            and self.picture(each.number).is_file()
            and any(each.number not in file.by_number for file in self.scores.values())
        ]
        for size in dict.fromkeys((each.height, each.width) for each in left):
            same = [each for each in left if (each.height, each.width) == size]
            for start in range(0, len(same), batch):
                row = same[start : start + batch]
                pictures = np.stack([self._read(each) for each in row])
                self._judge(row, pictures)

    def _read(self, each: Drawing) -> UInt8[np.ndarray, "h w 3"]:
        file, mend = self.picture(each.number), "remove it to draw it again"
        picture = read_picture(file, mend)
        if picture.shape != (each.height, each.width, 3):
            raise InputError(
                f"{file} has {picture.shape[0]} x {picture.shape[1]} pixels instead of "
                f"{each.height} x {each.width}; {mend}"
            )
        return picture

    def records(self, every: Sequence[Drawing], groups: Mapping[int, str]) -> list[JudgeRecord]:
        """Return what the judges found.

        Args:
            every: the pictures that count.
            groups: group of each picture, if the prompt set has groups.
        """
        numbers = [each.number for each in every]
        names = sorted({groups[n] for n in numbers if n in groups})
        found: list[JudgeRecord] = []
        for text, judge in self.judges.items():
            of = functools.partial(_figures, judge, self.scores[text].by_number)
            found.append(
                {
                    "judge": text.partition("=")[0],
                    "description": dict(judge.description),
                    "figures": of(numbers),
                    "groups": {
                        name: of([n for n in numbers if groups.get(n) == name]) for name in names
                    },
                }
            )
        return found


def _figures(
    judge: PictureJudge, scores: Mapping[int, Scores], numbers: Sequence[int]
) -> list[FigureRecord]:
    return [cast(FigureRecord, asdict(e)) for e in judge.figures([scores[n] for n in numbers])]


def scores_name(text: str, description: Mapping[str, str | float]) -> str:
    """Return the name of a judge's file of scores: another threshold or model has another."""
    return f"scores-{text.partition('=')[0]}-{digest_of(dict(description))[:8]}.jsonl"


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check that a folder has no pictures of other settings.

    Raises:
        InputError: it has; the message names the settings.
    """
    file = folder / SETTINGS
    mend = "name another --out, or remove the folder"
    if not file.is_file():
        if any((folder / PICTURES).glob("*.png")):
            raise InputError(f"{folder} has pictures without {SETTINGS}; {mend}")
        return
    there = read_json(file, mend=mend)
    other = [n for n in settings if n not in NAMES and there.get(n) != settings[n]]
    # The reason for other prompts, if it is known; earlier versions did not write it.
    if "prompts_sha256" in other and there.get("where", []) != settings.get("where", []):
        other[other.index("prompts_sha256")] = "where"
    if other:
        each = [
            f"{name} = {_shown(there.get(name))}, now {_shown(settings.get(name))}"
            for name in other[:3]
        ]
        raise InputError(f"{folder} has pictures of other settings ({'; '.join(each)}); {mend}")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = " and ".join(map(str, value)) or "none"
    return shortened(str(value), 30)


def opened_in_first(
    folder: Path, settings: Mapping[str, Any], judges: Mapping[str, PictureJudge], keep: bool
) -> Row:
    """Open a row in the first process; the others have one that does nothing.

    Raises:
        InputError: see `Row.opened`; raised in all processes.
    """
    opened: list[Row] = []

    def check() -> None:
        opened.append(Row.opened(folder, settings, judges, keep))

    processes.from_first(check)
    return opened[0] if opened else Row(folder, {}, {}, False, {})
