"""Types of a benchmark's `results.json`, and of the record of settings beside pictures."""

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from flux_jax.errors import InputError
from flux_jax.system.json_files import read_typed

FORMAT = "erase-anything benchmark 1"
# Names in a benchmark's folder; each row has a folder with its settings, pictures and scores.
RESULTS, SETTINGS, PICTURES = "results.json", "settings.json", "pictures"
TABLE_STEM = "table"
MEND = "run the benchmark again"


class FigureRecord(TypedDict):
    """A number of the table; see `erase.judges.protocol.Figure`."""

    name: str
    value: float
    unit: str
    low: float | None
    high: float | None
    pictures: int


class JudgeRecord(TypedDict):
    """What a judge found in a row's pictures.

    Attributes:
        judge: its name on the command line.
        description: what its figures depend on.
        figures: over all pictures.
        groups: over the pictures of each group of the prompt set, if it has groups.
    """

    judge: str
    description: dict[str, str | float]
    figures: list[FigureRecord]
    groups: dict[str, list[FigureRecord]]


class RowRecord(TypedDict):
    """A row of the table.

    Attributes:
        title: adapters as given on the command line; "base model" without any.
        adapters: each adapter as given on the command line.
        pictures: number of pictures.
        judges: figures by judge.
    """

    title: str
    adapters: list[str]
    pictures: int
    judges: list[JudgeRecord]


class BenchmarkResult(TypedDict):
    """Content of `results.json`.

    Attributes:
        format: `FORMAT`.
        model: the model as given on the command line.
        prompts: name of the prompt set's file.
        settings: sampling settings and digests.
        notes: lines on the prompt set.
        rows: the base model or adapters.
    """

    format: str
    model: str
    prompts: str
    settings: dict[str, Any]
    notes: list[str]
    rows: list[RowRecord]


def read_result(path: Path) -> BenchmarkResult:
    """Read a `results.json`.

    Raises:
        InputError: it is missing, damaged, or of another program.
    """
    result = read_typed(BenchmarkResult, path, mend=MEND)
    if result["format"] != FORMAT:
        raise InputError(
            f"{path}: format = {result['format']!r:.60} is not {FORMAT!r}; name a {RESULTS} of "
            "erase-anything benchmark"
        )
    return result
