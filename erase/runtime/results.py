"""What JSON files hold: a run's configuration, its words, and results.

`erase.runtime.run_folder` names the files. Objects that earlier versions wrote may lack the keys
that are not required.
"""

from collections.abc import Mapping
from typing import Any, Literal, Required, TypedDict

Cell = Literal["Acc_e", "Acc_g", "Acc_ir"]
# What tables show of an evaluation.
Measure = Literal["Acc_e", "Acc_g", "Acc_ir", "H"]
Side = Literal["before", "after"]


class Share(TypedDict):
    """A share with its Wilson interval at 95 %.

    Attributes:
        found: pictures in which the judge finds what it looks for.
        of: pictures.
        share: found / of.
        low: the interval's lower end.
        high: its upper end.
    """

    found: int
    of: int
    share: float
    low: float
    high: float


# By side: "before" and "after"; of attacks "silenced" too.
Sides = dict[str, Share]
# By cell: `Cell`, or families of attacks.
Cells = dict[str, Sides]
# H by side.
Means = dict[str, float]


class ModelRecord(TypedDict, total=False):
    """The frozen model of a run."""

    path: Required[str]


class AdapterRecord(TypedDict):
    """The layers that a run trains."""

    rank: int
    targets: list[str]


class EvaluationRecord(TypedDict, total=False):
    """How a run's pictures are drawn."""

    templates: Required[list[str]]
    strength: Required[float]
    steps: Required[int]
    guidance: Required[float]


class RunRecord(TypedDict, total=False):
    """What `config.json` holds, as far as reports read it: fields of `Config`, and two more.

    Attributes:
        command: how the run was started.
        synonyms_from: where the synonyms come from, in words.
    """

    concept: Required[str]
    model: Required[ModelRecord]
    adapter: Required[AdapterRecord]
    evaluation: Required[EvaluationRecord]
    iterations: Required[int]
    height: Required[int]
    width: Required[int]
    text_tokens: Required[int | None]
    method: str
    prompts: list[str]
    synonyms: list[str]
    irrelevant: list[str]
    command: str
    synonyms_from: str


class SentencesRecord(TypedDict, total=False):
    """What `sentences.json` holds: sentences of a language model, and where they come from."""

    concept: str
    sentences: list[str]
    source: str


class IrrelevantRecord(TypedDict, total=False):
    """What `irrelevant.json` holds: words for other things, and where they come from."""

    concept: str
    pools: list[list[str]]
    source: str


class SynonymCounts(TypedDict):
    """Pictures of a synonym in which the judge finds the concept."""

    concept: str
    word: str
    before: int
    after: int
    of: int
    left_out: bool


class ConceptCounts(TypedDict):
    """Pictures of a concept that should stay in which the judge finds it."""

    concept: str
    before: int
    after: int
    of: int


class Counts(TypedDict, total=False):
    """What a judge adds to an evaluation's result.

    Attributes:
        kind: of the concept.
        cells: shares by cell and side.
        synonyms: counts for each.
        concepts: counts for each concept that should stay.
        H: by side; see `erase.evaluation.statistics.harmonic_mean`.
    """

    kind: str
    cells: Cells
    synonyms: list[SynonymCounts]
    concepts: list[ConceptCounts]
    H: Means


class Example(TypedDict):
    """A prompt whose pictures are kept: fields of `EvalPrompt`, and by side the file and the hit.

    Attributes:
        cell: what it counts for.
        prompt: what was drawn.
        seed: of the noise.
        sought: the concept that the judge looked for.
        word: what the prompt calls it, where its cell has several words.
        before: the base's picture, from the run's folder.
        found_before: whether the judge finds the concept there; None without a judge.
        after: the picture with the adapter.
        found_after: whether the judge finds the concept there; None without a judge.
    """

    cell: str
    prompt: str
    seed: int
    sought: str
    word: str
    before: str
    found_before: bool | None
    after: str
    found_after: bool | None


class AttentionExample(TypedDict):
    """A prompt whose attention maps are kept, and its pictures' files."""

    prompt: str
    seed: int
    before: str
    after: str


class EvaluationResult(Counts, total=False):
    """What `evaluation.json` holds; without a judge a note and no counts.

    Attributes:
        pictures: the examples that were written: their prompts, files and hits.
        attention: those whose attention maps are in `attention.npz`.
        attention_times: at which they were taken.
    """

    concept: Required[str]
    model: Required[str]
    strength: Required[float]
    steps: Required[int]
    guidance: Required[float]
    height: Required[int]
    width: Required[int]
    adapter_parameters: Required[int]
    note: str
    pictures: list[Example]
    attention: list[AttentionExample]
    attention_times: list[float]


class AttackResult(TypedDict):
    """What `attacks.json` holds: shares by family and side, and each family's prompts."""

    concept: str
    kind: str
    model: str
    strength: float
    seed: int
    cells: Cells
    prompts: dict[str, list[str]]


# What a command counts of one run.
Result = EvaluationResult | AttackResult


class CalibrationResult(TypedDict):
    """What `calibration.json` holds.

    Attributes:
        strength: the smallest that is enough, to the tolerance.
        measure: what was measured at each strength.
        wanted: what it must come down to.
        pictures: that were drawn at each strength.
        tried: `strength`, in rising order, and under the measure's name what was measured there.
    """

    concept: str
    model: str
    strength: float
    measure: Literal["share", "similarity"]
    wanted: float
    pictures: int
    tried: list[dict[str, float]]


class Sums(TypedDict, total=False):
    """Cells of several concepts as one; `erase.evaluation.statistics.cells_of` has all of them.

    Families of attacks stand beside these keys.

    Attributes:
        Acc_e: of the concepts.
        Acc_g: of their synonyms.
        Acc_ir: of what should stay.
        H: by side, where there is what it is the mean of.
        concepts: how many there are; in summaries.
    """

    Acc_e: Sides
    Acc_g: Sides
    Acc_ir: Sides
    H: Means
    concepts: int


class RunCounts(TypedDict, total=False):
    """A run in a summary: what is kept of its result."""

    kind: Required[str]
    concept: Required[str]
    cells: Required[Cells]
    synonyms: list[SynonymCounts]
    H: Means
    concepts: list[ConceptCounts]


class Worst(TypedDict):
    """The run whose cell is furthest from where it should be."""

    run: str
    share: float


class Summary(TypedDict):
    """What `summary.json` holds.

    Attributes:
        kinds: sums by kind.
        all: sums of all kinds together.
        worst: by cell.
        runs: what is kept of each run's result, by name.
    """

    kinds: dict[str, Sums]
    all: Sums
    worst: dict[str, Worst]
    runs: dict[str, RunCounts]


class ComparedRow(TypedDict, total=False):
    """A run in a comparison of methods.

    Attributes:
        name: of the run, with its seed.
        attacks: those that succeed.
    """

    name: str
    concept: Required[str]
    kind: str
    seed: int
    cells: Required[Cells]
    synonyms: list[SynonymCounts]
    attacks: Required[Share]


class Distances(TypedDict):
    """Fréchet's distance between pictures before and after, of each seed and their mean."""

    mean: float
    seeds: list[float]


class AdapterSize(TypedDict):
    """Trainable parameters of an adapter, and bytes on disk."""

    parameters: int
    bytes: int


class MethodRecord(TypedDict, total=False):
    """A method in a file of results that is gone on with: the settings of its first run."""

    settings: Mapping[str, Any]


class MethodResult(MethodRecord, total=False):
    """A method in a comparison.

    Attributes:
        title: what tables call it.
        cells: of all its runs as one.
        intervals: by cell, "H" and "attacks"; see `erase.evaluation.statistics.over_concepts`.
        attacks: those that succeed.
        frechet: how far pictures of what should stay have moved.
        parameters: trainable ones, of one adapter.
        bytes: on disk, of one adapter.
        seconds: of training, for a concept.
        memory: bytes that a device needs.
        rows: its runs.
    """

    title: Required[str]
    cells: Required[Sums]
    intervals: Required[Mapping[str, list[float]]]
    attacks: Required[Share]
    frechet: Required[Distances]
    parameters: Required[int]
    bytes: Required[int]
    seconds: Required[float]
    memory: Required[int]
    rows: Required[list[ComparedRow]]


class Comparison(TypedDict, total=False):
    """What a comparison's file holds.

    Attributes:
        runs: the concept of each, by name.
        pictures: of each cell.
        attacks: pictures of each family.
        methods: by name.
    """

    runs: dict[str, str]
    pictures: int
    attacks: int
    model: str
    device: str
    jax: str
    methods: Required[dict[str, MethodResult]]
