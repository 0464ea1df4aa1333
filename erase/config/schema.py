"""Configuration of a run: fields, defaults and ranges. `erase.runs` reads configuration files.

These fields are shared by all methods. The settings of each method are in
`erase.methods.settings`; `erase.runs.RunConfig` combines both.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

from erase.config.fields import choice, number
from flux_jax.settings import STORAGE, TEXT_QUERY_KEY

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
else:
    # Exists only for static type checkers; run-time checkers look up this name.
    DataclassInstance = object

Settings = TypeVar("Settings", bound="DataclassInstance")
PARTS_OF_SPEECH = ("noun", "adjective", "verb")
KINDS = ("entity", "style", "relation")


@dataclass(frozen=True)
class Model:
    """The frozen model.

    Attributes:
        path: folder in diffusers' layout or with Black Forest Labs' files, the transformer's
            single file in such a folder, or the name of a repository on the Hugging Face hub.
        dtype: type of weights and matrix products; by default float32 on CPU, else bfloat16.
        quantize: storage type of the large kernels in the transformer's blocks, to save memory:
            "int8", or "fp8", which also quantises the inputs of their products; by default `dtype`.
        remat: whether backward passes recompute each block: less memory, more time.
    """

    path: str = "models/emoji-flux"
    dtype: str | None = choice(None, "float32", "bfloat16")
    quantize: str | None = choice(None, *STORAGE)
    remat: bool = False


@dataclass(frozen=True)
class MeshConfig:
    """Device mesh. Axes left at None are chosen from the workload (`erase.runtime.mesh.make_mesh`).

    Attributes:
        data: devices among which the samples of an update are divided.
        fsdp: devices over which every large frozen weight is split; they also share the samples
            where there are enough.
    """

    data: int | None = number(None, least=1)
    fsdp: int | None = number(None, least=1)


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA that is trained.

    Attributes:
        rank: R, the rank.
        alpha: scales the change, alpha / R * (x A) B; by default R.
        targets: stacked dense layers of the transformer to adapt.
    """

    rank: int = number(8, least=1)
    alpha: float | None = number(None, above=0)
    targets: tuple[str, ...] = TEXT_QUERY_KEY


@dataclass(frozen=True)
class AdamW:
    """Settings of AdamW. A method's settings inherit them and may change the defaults.

    Attributes:
        learning_rate: learning rate of the adapter.
        weight_decay: weight decay of the adapter.
        clip: largest norm of a gradient; larger ones are scaled down to it. None does not clip.
    """

    learning_rate: float = number(1e-3, above=0)
    weight_decay: float = number(0.01, least=0)
    clip: float | None = number(None, above=0)


@dataclass(frozen=True)
class BankConfig:
    """Data that is computed once before training, and sampled from during training.

    Attributes:
        sentences: number of prompts with the concept, each in several forms.
        shuffled: share of these prompts whose words are put into random order.
        trajectories: number of denoising runs of the frozen model, from noise to picture.
        batch: batch size for encoding prompts and computing trajectories.
        teacher: how updates get the frozen model's velocities on its trajectories: "stored"
            computes each velocity that the run will sample once, before training, and updates look
            it up; "computed" runs the frozen model in each update. By default the one that needs
            fewer forward passes. Updates on the adapted model's trajectories always compute them.
    """

    sentences: int = number(32, least=1)
    shuffled: float = number(1.0, least=0, most=1)
    trajectories: int = number(32, least=1)
    batch: int = number(8, least=1)
    teacher: str | None = choice(None, "stored", "computed")


@dataclass(frozen=True)
class EarlyStop:
    """Early stopping by a judge, on pictures that the evaluation does not use.

    Attributes:
        every: iterations between two checks; 0 disables early stopping.
        pictures: pictures generated for a check, from `prompts` in turn.
        share: training stops when the judge finds the concept in at most this share of them.
        seed: seed of the first picture.
    """

    every: int = number(0, least=0)
    pictures: int = number(32, least=1)
    share: float = number(0.0, least=0, most=1)
    seed: int = number(3_000_000, least=0)


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints from which a run can resume.

    Attributes:
        every: iterations between checkpoints.
        last: number of newest checkpoints to keep.
        best: number of further checkpoints to keep, those with the lowest mean of the weighted
            losses since the previous checkpoint.
        adapter: whether the last or the best checkpoint becomes the adapter.
    """

    every: int = number(100, least=1)
    last: int = number(2, least=1)
    best: int = number(1, least=1)
    adapter: str = choice("last", "last", "best")


@dataclass(frozen=True)
class Guard:
    """Handling of non-finite updates, diverging losses and hanging iterations.

    Attributes:
        skips: updates with a non-finite loss or gradient are skipped; the run ends after this many
            in a row.
        divergence: warn when the median of a loss's last 20 values exceeds the median of all its
            values by this factor.
        hung: warn when an iteration takes longer than the median of the previous ones by this
            factor, and at least a minute.
        patience: seconds after which the process of a hanging iteration ends, to be restarted.
    """

    skips: int = number(5, least=1)
    divergence: float = number(20.0, above=1)
    hung: float = number(10.0, above=1)
    patience: float = number(1800.0, above=0)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation after training.

    Attributes:
        pictures: pictures per cell; 0 skips the evaluation.
        templates: prompts with "{}" in place of the word.
        others: concepts that should stay; by default all others that the judge knows.
        judge: folder of the judge; without one there are pictures but no numbers.
        seed: seed of the first picture and of the choice of other concepts.
        steps: denoising steps.
        guidance: distilled guidance scale.
        strength: strength of the adapter.
        batch: pictures generated at once.
        examples: pictures per cell in the report.
        attention_examples: pictures in the report with attention maps.
    """

    pictures: int = number(64, least=0)
    templates: tuple[str, ...] = ("a photo of a {}",)
    others: tuple[str, ...] = ()
    judge: str | None = None
    seed: int = number(1_000_000, least=0)
    steps: int = number(28, least=1)
    guidance: float = number(3.5, least=0)
    strength: float = 1.0
    batch: int = number(16, least=1)
    examples: int = number(8, least=1)
    attention_examples: int = number(4, least=0)


@dataclass(frozen=True)
class Samples:
    """Pictures by the adapter so far, drawn while it trains: one with the concept, one without.

    Attributes:
        every: iterations between them; 0 draws none. By default a tenth of `iterations` with
            `--watch`, and none without it.
        steps: denoising steps.
        seed: seed of the first picture; the second one has the next.
    """

    every: int | None = number(None, least=0)
    steps: int = number(12, least=1)
    seed: int = number(2_000_000, least=0)


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        concept: the concept to erase.
        prompts: sentences with the concept, or templates with "{}" in its place.
        more_prompts: number of sentences with the concept that a language model adds; see
            `erase.data.words.sentences`.
        kind: kind of the concept; by default the kind in the model's `erase.json`, see
            `erase.runs.defaults`, else an entity.
        synonyms: other words for the concept; if none are given, WordNet's, see
            `erase.data.words.synonyms`.
        part_of_speech: part of speech of the concept, for WordNet.
        sense: sense of the concept in WordNet, by number (from 1) or name (`turtle.n.02`); by
            default the nearest to things that the model can draw.
        irrelevant: words for other things; attention to the concept is trained to resemble theirs.
        language_model: whether a language model names these words instead; see
            `erase.data.words.irrelevant`.
        model: the frozen model.
        mesh: the device mesh.
        height: height of the pictures in pixels.
        width: width of the pictures in pixels.
        text_tokens: length of T5's input; by default the tokenizer's limit.
        steps: denoising steps of the trajectories.
        guidance: distilled guidance scale in training.
        method: erasing method, a name in `erase.methods`; see `erase.methods.settings`.
        iterations: training iterations; each runs every update of the method once.
        batch_size: samples per update.
        seed: seed of everything random in training.
        adapter: the LoRA to train.
        bank: data computed before training.
        early_stop: early stopping by a judge.
        checkpoints: checkpoints from which a run can resume.
        guard: handling of non-finite updates, diverging losses and hanging iterations.
        samples: pictures by the adapter so far, drawn while it trains.
        evaluation: evaluation after training.
    """

    concept: str
    prompts: tuple[str, ...] = ("a photo of a {}",)
    more_prompts: int = number(0, least=0)
    kind: str | None = choice(None, *KINDS)
    synonyms: tuple[str, ...] = ()
    part_of_speech: str = choice("noun", *PARTS_OF_SPEECH)
    sense: str | None = None
    irrelevant: tuple[str, ...] = ()
    language_model: bool = False
    model: Model = Model()
    mesh: MeshConfig = MeshConfig()
    height: int = number(512, least=1)
    width: int = number(512, least=1)
    text_tokens: int | None = number(None, least=2)
    steps: int = number(28, least=1)
    guidance: float = number(3.5, least=0)
    method: str = "erase_anything"
    iterations: int = number(1000, least=1)
    batch_size: int = number(1, least=1)
    seed: int = number(0, least=0)
    adapter: AdapterConfig = AdapterConfig()
    bank: BankConfig = BankConfig()
    early_stop: EarlyStop = EarlyStop()
    checkpoints: Checkpoints = Checkpoints()
    guard: Guard = Guard()
    samples: Samples = Samples()
    evaluation: Evaluation = Evaluation()

    def method_settings(self, kind: type[Settings]) -> Settings:
        """Settings of a method; the defaults if this is a `Config` without fields of methods.

        Args:
            kind: the method's dataclass of settings. `erase.runs.RunConfig` has either an instance
                of it as a field, or its fields.
        """
        if isinstance(self, kind):
            return replace(kind(), **{spec.name: getattr(self, spec.name) for spec in fields(kind)})
        parts = (getattr(self, spec.name) for spec in fields(self))
        return next((part for part in parts if isinstance(part, kind)), kind())
