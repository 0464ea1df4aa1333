"""Fréchet distance of two folders of pictures, on the features of a small model's judge.

It is FID's formula with other features, so that it needs no download and suits small pictures. It
says nothing beside an FID: features, and so the scale, are others.

Axis letters: N pictures, F features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from erase.evaluation.judge import Judge, open_judge
from erase.evaluation.statistics import frechet_distance
from erase.judges.protocol import Figure
from erase.model.digest import records, summary
from flux_jax.errors import InputError, note
from flux_jax.system.pictures import read_picture

NAME = "Fréchet distance"
# Pictures read at once.
BATCH = 64


@dataclass(frozen=True)
class JudgeFrechet:
    """Fréchet distance of a judge's features.

    Attributes:
        judge: the judge.
        folder: its folder's name and the digest of its files.
        known: features of each folder so far, by its path; the reference is read once.
    """

    judge: Judge
    folder: str
    known: dict[Path, Float[np.ndarray, "N F"]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> "JudgeFrechet":
        """Open the judge.

        Raises:
            InputError: the folder cannot be used.
        """
        try:
            judge = open_judge(folder)
        except InputError as error:
            said = str(error).removeprefix("judge = ").removeprefix("judge: ")
            raise InputError(f"reference_judge = {said}") from error
        files = records({each.name: each for each in Path(folder).iterdir() if each.is_file()})
        return cls(judge, f"{Path(folder).name} {summary(files)[:12]}")

    @property
    def description(self) -> Mapping[str, str | float]:
        """The judge's files and features."""
        features = "before the heads, averaged over the picture"
        return {"judge": NAME, "folder": self.folder, "features": features}

    def check(self, folder: Path) -> None:
        """Check, before pictures are drawn, that a folder of them can be compared.

        Raises:
            InputError: there is no such folder, or it has fewer than two pictures.
        """
        self._files(folder)

    def between(self, pictures: Path, reference: Path) -> Figure:
        """Compute the distance of two folders; a note on stderr where pictures are too few.

        Args:
            pictures: folder of PNG files; folders in it are not read.
            reference: another one, whose features are kept for further calls.

        Returns:
            The figure, without an interval; `pictures` is the smaller number of both.

        Raises:
            InputError: a folder has fewer than two pictures, or a picture cannot be read or is not
                of the judge's size.
        """
        if reference not in self.known:
            self.known[reference] = self.features(reference)
        ours, theirs = self.features(pictures), self.known[reference]
        if min(len(ours), len(theirs)) <= ours.shape[1]:
            note(
                f"{NAME}: {len(ours)} pictures and {len(theirs)} reference pictures, no more than "
                f"the {ours.shape[1]} features: the number is too large, and differs from draw to "
                "draw"
            )
        least = min(len(ours), len(theirs))
        return Figure(NAME, frechet_distance(ours, theirs), "", None, None, least)

    def _files(self, folder: Path) -> list[Path]:
        """Return a folder's pictures, in the order of their names.

        Raises:
            InputError: there is no such folder, or it has fewer than two pictures.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; the {NAME} compares two folders")
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".png")
        if len(files) < 2:
            raise InputError(
                f"{folder}: {len(files)} pictures (.png) directly in it; the {NAME} needs at least "
                "two, better more than features"
            )
        return files

    def features(self, folder: Path) -> Float[np.ndarray, "N F"]:
        """Return the features of a folder's pictures, in the order of their names.

        Raises:
            InputError: see `between`.
        """
        files = self._files(folder)
        parts = []
        for start in range(0, len(files), BATCH):
            rows = [self._read(file) for file in files[start : start + BATCH]]
            parts.append(self.judge.features(np.stack(rows)))
        return np.concatenate(parts)

    def _read(self, file: Path) -> np.ndarray:
        picture = read_picture(file, "draw it again, or remove it")
        size = self.judge.size
        if size is not None and picture.shape[:2] != (size, size):
            raise InputError(
                f"{file} has {picture.shape[0]} x {picture.shape[1]} pixels; the judge takes "
                f"{size} x {size}"
            )
        return picture
