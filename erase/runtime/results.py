"""Types of the JSON files: a run's configuration, its words, and results.

`erase.runtime.run_folder` has the names of the files. In files of earlier versions, keys that are
not required may be missing.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, Required

from typing_extensions import TypedDict

Cell = Literal["Acc_e", "Acc_g", "Acc_ir"]
# Columns of an evaluation in tables.
Measure = Literal["Acc_e", "Acc_g", "Acc_ir", "H"]
Side = Literal["before", "after"]


class Share(TypedDict):
    """A share with its Wilson interval at 95 %.

    Attributes:
        found: number of pictures in which the judge finds the concept it looks for.
        of: number of pictures.
        share: found / of.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    found: int
    of: int
    share: float
    low: float
    high: float


# By side: "before" and "after"; for attacks also "silenced".
Sides = dict[str, Share]
# By cell: a `Cell`, or a family of attacks.
Cells = dict[str, Sides]
# H by side.
Means = dict[str, float]


class ModelRecord(TypedDict, total=False):
    """The frozen model of a run."""

    path: Required[str]


class AdapterRecord(TypedDict):
    """Layers that a run trains."""

    rank: int
    targets: list[str]


class EvaluationRecord(TypedDict, total=False):
    """Sampling settings of a run's evaluation."""

    templates: Required[list[str]]
    strength: Required[float]
    steps: Required[int]
    guidance: Required[float]


class RunRecord(TypedDict, total=False):
    """Content of `config.json` that reports read: fields of `Config`, and three more.

    Attributes:
        command: command that started the run.
        synonyms_from: source of the synonyms, in words.
        inputs: digests of the files that the run reads, see `erase.model.digest`; absent in
            records of earlier versions.
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
    inputs: dict[str, Any]


class SentencesRecord(TypedDict, total=False):
    """Content of `sentences.json`: sentences from a language model, and their source."""

    concept: str
    sentences: list[str]
    source: str


class IrrelevantRecord(TypedDict, total=False):
    """Content of `irrelevant.json`: words for other things, and their source."""

    concept: str
    pools: list[list[str]]
    source: str


class SynonymCounts(TypedDict):
    """Number of pictures of a synonym in which the judge finds the concept."""

    concept: str
    word: str
    before: int
    after: int
    of: int
    left_out: bool


class ConceptCounts(TypedDict):
    """Number of pictures of a concept that should stay in which the judge finds it."""

    concept: str
    before: int
    after: int
    of: int


class Counts(TypedDict, total=False):
    """Counts that a judge adds to an evaluation's result.

    Attributes:
        kind: kind of the concept.
        cells: shares by cell and side.
        synonyms: counts for each synonym.
        concepts: counts for each concept that should stay.
        H: by side; see `erase.evaluation.statistics.harmonic_mean`.
    """

    kind: str
    cells: Cells
    synonyms: list[SynonymCounts]
    concepts: list[ConceptCounts]
    H: Means


class Example(TypedDict):
    """A prompt with saved pictures: fields of `EvalPrompt`, and the file and hit of each side.

    Attributes:
        cell: cell that it counts for.
        prompt: text prompt.
        seed: seed of the noise.
        sought: concept that the judge looks for.
        word: word for it in the prompt, if the cell has several words.
        before: path of the base model's picture, relative to the run's folder.
        found_before: whether the judge finds the concept there; None without a judge.
        after: path of the picture with the adapter.
        found_after: whether the judge finds the concept there; None without a judge.
    """

    cell: str
    prompt: str
    seed: int
    sought: str
    word: NotRequired[str]
    before: str
    found_before: bool | None
    after: str
    found_after: bool | None


class AttentionExample(TypedDict):
    """A prompt with saved attention maps, and the files of its pictures."""

    prompt: str
    seed: int
    before: str
    after: str


class EvaluationResult(Counts, total=False):
    """Content of `evaluation.json`; without a judge it has a note instead of counts.

    Attributes:
        pictures: the saved examples: prompts, files and hits.
        attention: the examples with attention maps in `attention.npz`.
        attention_times: timesteps of the attention maps.
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
    """Content of `attacks.json`: shares by family and side, and each family's prompts.

    Attributes:
        cells: by family; those that search have the sides "before" and "after" only.
        prompts: prompts of the pictures, by family.
        access: what the attacker has, by family.
        budgets: by family: number of judged pictures, and the budget of its search.
        found: what searches found, by family and side: text, error at held-out points, prompts.
    """

    concept: str
    kind: str
    model: str
    strength: float
    seed: int
    cells: Cells
    prompts: dict[str, list[str]]
    access: dict[str, str]
    budgets: dict[str, dict[str, float]]
    found: dict[str, dict[str, dict[str, Any]]]


# Result of a command for one run.
Result = EvaluationResult | AttackResult


class CalibrationResult(TypedDict):
    """Content of `calibration.json`.

    Attributes:
        strength: the smallest strength that erases enough, within the tolerance.
        measure: quantity measured at each strength.
        wanted: value that it must fall to.
        pictures: pictures generated per strength.
        tried: each `strength` in rising order, and the value of the measure under its name.
    """

    concept: str
    model: str
    strength: float
    measure: Literal["share", "similarity"]
    wanted: float
    pictures: int
    tried: list[dict[str, float]]


class Sums(TypedDict, total=False):
    """Cells summed over several concepts; `erase.evaluation.statistics.cells_of` has all of them.

    Families of attacks are further keys.

    Attributes:
        Acc_e: shares for the concepts.
        Acc_g: shares for their synonyms.
        Acc_ir: shares for concepts that should stay.
        H: harmonic mean by side, if the shares that it needs are present.
        concepts: number of concepts; in summaries.
    """

    Acc_e: Sides
    Acc_g: Sides
    Acc_ir: Sides
    H: Means
    concepts: int


class RunCounts(TypedDict, total=False):
    """A run in a summary: the part of its result that is saved."""

    kind: Required[str]
    concept: Required[str]
    cells: Required[Cells]
    synonyms: list[SynonymCounts]
    H: Means
    concepts: list[ConceptCounts]


class Worst(TypedDict):
    """The run with the worst value of a cell."""

    run: str
    share: float


class Summary(TypedDict):
    """Content of `summary.json`.

    Attributes:
        kinds: sums by kind.
        all: sums over all kinds.
        worst: worst run by cell.
        runs: the saved part of each run's result, by name.
    """

    kinds: dict[str, Sums]
    all: Sums
    worst: dict[str, Worst]
    runs: dict[str, RunCounts]


class ComparedRow(TypedDict, total=False):
    """A run in a comparison of methods.

    Attributes:
        name: name of the run, with its seed.
        attacks: share of attacks that succeed.
    """

    name: str
    concept: Required[str]
    kind: str
    seed: int
    cells: Required[Cells]
    synonyms: list[SynonymCounts]
    attacks: Required[Share]


class Distances(TypedDict):
    """Fréchet distance between pictures before and after: of each seed, and the mean."""

    mean: float
    seeds: list[float]


class AdapterSize(TypedDict):
    """Number of trainable parameters of an adapter, and its bytes on disk."""

    parameters: int
    bytes: int


class MethodRecord(TypedDict, total=False):
    """A method in a results file that can be resumed: the settings of its first run."""

    settings: Mapping[str, Any]


class MethodResult(MethodRecord, total=False):
    """A method in a comparison.

    Attributes:
        title: name in tables.
        cells: cells summed over all its runs.
        intervals: by cell, "H" and "attacks"; see `erase.evaluation.statistics.over_concepts`.
        attacks: share of attacks that succeed.
        frechet: distance between pictures of concepts that should stay, before and after.
        parameters: trainable parameters of one adapter.
        bytes: bytes of one adapter on disk.
        seconds: training time per concept.
        memory: bytes needed on a device.
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
    """Content of a comparison's file.

    Attributes:
        inputs: SHA-256 of the files that its runs read, by name; see `erase.model.digest`.
        runs: concept of each run, by name.
        pictures: pictures per cell.
        attacks: pictures per family of attacks.
        methods: results by name of the method.
    """

    inputs: dict[str, str]
    runs: dict[str, str]
    pictures: int
    attacks: int
    model: str
    device: str
    jax: str
    methods: Required[dict[str, MethodResult]]
