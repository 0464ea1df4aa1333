"""Judges: classifiers that decide whether a picture shows a concept.

Evaluation, attacks, calibration, early stopping and comparisons use only the protocol `Judge`. The
small model's judge is a network (`erase.evaluation.emoji_judge`). To add another, such as CLIP or a
detector:

1. Write a class with the attributes and methods of `Judge`, and a class method `load(folder)`.
2. Register it: `JUDGES["clip"] = "my_judges.clip:ClipJudge"`, here or in your configuration file.
3. Create a folder with `{"type": "clip"}` in its `config.json`, and the files that `load` reads.
4. Set `evaluation.judge` to the folder: `--config.evaluation.judge=FOLDER`.

A judge for one kind of concepts returns that kind for every label, and no labels of other kinds. A
judge that accepts any word returns it unchanged from `label`; then name the concepts to preserve in
`evaluation.others`.
Axis letters: B pictures, h w picture sides, F features.
"""

import functools
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from erase.runtime.files import read_json
from flux_jax.errors import InputError

Kind = Literal["entity", "style", "relation"]


CONFIG = "config.json"


# The class of each type of judge, "module:class". The default type is "network".
JUDGES = {
    "network": "erase.evaluation.emoji_judge:NetworkJudge",
    "persons": "erase.judges.person_finder:PersonFinder",
}


@runtime_checkable
class Judge(Protocol):
    """Protocol of judges; pictures are in uint8."""

    @property
    def size(self) -> int | None:
        """Height and width of the pictures that it accepts, in pixels; None accepts any size."""
        ...

    def label(self, concept: str) -> str:
        """Return the label by which a concept is judged, often the concept itself.

        Raises:
            InputError: the judge does not know the concept.
        """
        ...

    def kind(self, concept: str) -> Kind:
        """Return the kind of a concept; results are summarised by kind.

        Raises:
            InputError: the judge does not know the concept.
        """
        ...

    def labels(self, kind: Kind) -> Sequence[str]:
        """Return all labels of a kind, which are preserved if `evaluation.others` is empty."""
        ...

    def check_prompt(self, label: str, prompt: str) -> None:
        """Refuse a prompt whose pictures cannot be judged by the label; cheap.

        Raises:
            InputError: the message says what the prompt lacks.
        """
        ...

    def finds(
        self, pictures: UInt8[np.ndarray, "B h w 3"], labels: Sequence[str], prompts: Sequence[str]
    ) -> Bool[np.ndarray, "B"]:
        """Judge whether each picture shows its label.

        Args:
            pictures: pictures of `size`, if that is not None.
            labels: one label per picture, as returned by `label`.
            prompts: prompts of the pictures, for judges that need them.
        """
        ...

    def features(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[np.ndarray, "B F"]:
        """Return a feature vector per picture, for the Fréchet distance between picture sets."""
        ...


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a judge's `config.json`.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = Path(folder) / CONFIG
    if not os.path.isfile(path):
        raise InputError(f"judge = {str(folder)!r} has no {CONFIG}; check the path")
    return read_json(path)


@functools.lru_cache(maxsize=1)
def open_judge(folder: str | Path) -> Judge:
    """Open a judge's folder; the last one is cached, since consecutive runs often use the same.

    Raises:
        InputError: a file is missing or damaged, or the judge's type is unknown.
    """
    name = read_config(folder).get("type", "network")
    if not isinstance(name, str) or name not in JUDGES:
        raise InputError(
            f"{Path(folder) / CONFIG}: type = {name!r:.50} is no judge; known are "
            f"{', '.join(sorted(JUDGES))}"
        )
    return pkgutil.resolve_name(JUDGES[name]).load(folder)
