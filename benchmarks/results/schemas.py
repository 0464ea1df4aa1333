"""What files of numbers in docs/results hold, beside summaries and comparisons of methods.

Those are declared in `erase.runtime.results`. Files that earlier versions wrote may lack the keys
that are not required.
"""

from collections.abc import Mapping
from typing import Any, Required

from typing_extensions import TypedDict

from erase.runtime.results import Cells, ConceptCounts, MethodRecord, Share, Sums


class StudyRow(TypedDict, total=False):
    """A run of a study, or of an adapter that was taught again."""

    name: str
    iterations: int
    concept: Required[str]
    kind: Required[str]
    seed: Required[int]
    cells: Required[Cells]


class Variant(TypedDict, total=False):
    """A variant of a study.

    Attributes:
        changes: to the study's configurations.
        seconds: of training.
        rows: its runs.
    """

    changes: Mapping[str, Any]
    seconds: float
    rows: Required[list[StudyRow]]


class StudyResult(TypedDict, total=False):
    """A study's numbers.

    Attributes:
        question: that it answers.
        concepts: names.
        seeds: of training.
        pictures: of each cell.
        variants: by name.
        inputs: SHA-256 of the files that its runs read, by name.
    """

    inputs: dict[str, str]
    question: str
    concepts: list[str]
    seeds: Required[list[int]]
    pictures: int
    device: str
    jax: str
    variants: Required[dict[str, Variant]]


class CompositionCounts(TypedDict):
    """What a judge finds with composed adapters.

    Attributes:
        kinds: cells by kind.
        all: cells of all kinds, and H.
        concepts: counts for each concept that should stay.
    """

    kinds: dict[str, Cells]
    all: Sums
    concepts: list[ConceptCounts]


class Composition(CompositionCounts):
    """Adapters of several concepts, each composed by one method, counted together.

    Attributes:
        strength: at which they were counted.
    """

    strength: float


class CompositionsResult(TypedDict, total=False):
    """Compositions by the number of concepts in one adapter, and by method.

    Attributes:
        counts: by number, as text, and method.
        pictures: of each erased concept and cell.
        preserve: weight of what should stay, in fusion.
        wanted: the share that a strength was to leave at most.
    """

    counts: Required[dict[str, dict[str, Composition]]]
    pictures: int
    preserve: float
    wanted: float
    device: str
    jax: str


class ConcurrentRuns(TypedDict):
    """Concepts that train at once: seconds of compiling, milliseconds of an iteration of all."""

    concepts: int
    compile_s: float
    iteration_ms: float


class ConcurrencyResult(TypedDict, total=False):
    """Times of concepts that train at once."""

    device: str
    jax: str
    iterations: int
    runs: Required[list[ConcurrentRuns]]


class RelationShares(TypedDict):
    """Pictures that show the relation itself, and those that show its converse."""

    own: Share
    converse: Share


class RelationsResult(TypedDict, total=False):
    """Shares by relation, and by what was taken from its converse's sentence."""

    seed: int
    relations: Required[dict[str, dict[str, RelationShares]]]


class FullSizeRecord(TypedDict, total=False):
    """A method at full size: its numbers, or the error that it ended with.

    Attributes:
        whole_s: seconds of the whole command.
        updates: how many there were.
        update_s: median seconds of one; None where there are none.
        memory: greatest number of bytes in use on a device; 0 where it is not known.
    """

    title: Required[str]
    error: str
    device: str
    jax: str
    parameters: int
    whole_s: float
    updates: int
    update_s: float | None
    memory: float


class FullSizeResult(TypedDict, total=False):
    """Methods at full size, by name."""

    height: int
    width: int
    batch: int
    model: str
    iterations: int
    methods: Required[dict[str, FullSizeRecord]]


class TaughtMethod(MethodRecord, total=False):
    """A method whose adapters were taught again.

    Attributes:
        title: what tables call it.
        steps: the runs by number of steps, as text.
    """

    title: Required[str]
    steps: Required[dict[str, list[StudyRow]]]


class RelearningResult(TypedDict, total=False):
    """Methods by name, counted after numbers of steps that teach again.

    Attributes:
        runs: the concept of each, by name.
        rate: of learning.
        stops: the numbers of steps.
        pictures: of each cell.
    """

    runs: dict[str, str]
    rate: float
    stops: Required[list[int]]
    pictures: int
    device: str
    methods: Required[dict[str, TaughtMethod]]
