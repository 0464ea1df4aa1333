"""A run's configuration: its fields with their defaults and ranges; see `erase.runs` for reading.

These are the fields that all methods share. Each method's own settings are in
`erase.methods.settings`; `erase.runs.RunConfig` has both.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

from erase.config.fields import choice, number
from flux_jax.settings import TEXT_QUERY_KEY

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
else:
    # It exists for type checkers alone; those at run time look it up here.
    DataclassInstance = object

Settings = TypeVar("Settings", bound="DataclassInstance")
PARTS_OF_SPEECH = ("noun", "adjective", "verb")
KINDS = ("entity", "style", "relation")


@dataclass(frozen=True)
class Model:
    """The frozen model.

    Attributes:
        path: folder in diffusers' layout or with Black Forest Labs' own files, the transformer's
            single file there, or the name of a repository on the Hugging Face hub.
        dtype: of weights and products; by default float32 on CPU, else bfloat16.
        quantize: type that the large kernels of the transformer's blocks are kept in, to save
            memory; by default `dtype`.
        remat: whether backward passes compute each block anew: less memory, more time.
    """

    path: str = "models/emoji-flux"
    dtype: str | None = choice(None, "float32", "bfloat16")
    quantize: str | None = choice(None, "int8")
    remat: bool = False


@dataclass(frozen=True)
class MeshConfig:
    """How devices share the work; what is not said follows it, see `erase.runtime.mesh.make_mesh`.

    Attributes:
        data: devices that share the samples of an update.
        fsdp: devices that share the frozen weights, each holding a part of every large one; they
            share samples too, where there are enough.
    """

    data: int | None = number(None, least=1)
    fsdp: int | None = number(None, least=1)


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA that is trained.

    Attributes:
        rank: R.
        alpha: the change is alpha / R * (x A) B; by default R.
        targets: stacked dense layers of the transformer that are adapted.
    """

    rank: int = number(8, least=1)
    alpha: float | None = number(None, above=0)
    targets: tuple[str, ...] = TEXT_QUERY_KEY


@dataclass(frozen=True)
class AdamW:
    """Settings of AdamW; a method's settings inherit them, and give defaults of their own.

    Attributes:
        learning_rate: of the adapter.
        weight_decay: of the adapter.
        clip: largest norm of a gradient, longer ones are shortened to it; None shortens none.
    """

    learning_rate: float = number(1e-3, above=0)
    weight_decay: float = number(0.01, least=0)
    clip: float | None = number(None, above=0)


@dataclass(frozen=True)
class BankConfig:
    """What is prepared before training, and then drawn from.

    Attributes:
        sentences: prompts with the concept, each in several forms.
        shuffled: share of them whose words are put into a random order.
        trajectories: denoising runs of the frozen model, from noise to picture.
        batch: prompts encoded, and trajectories made, at once.
    """

    sentences: int = number(32, least=1)
    shuffled: float = number(1.0, least=0, most=1)
    trajectories: int = number(32, least=1)
    batch: int = number(8, least=1)


@dataclass(frozen=True)
class EarlyStop:
    """When a run has erased enough: a judge looks at pictures that evaluation does not draw.

    Attributes:
        every: iterations between two looks; 0 trains all iterations.
        pictures: drawn at a look, of `prompts` in turn.
        share: the run stops where the judge finds the concept in no larger a share of them.
        seed: of the first picture.
    """

    every: int = number(0, least=0)
    pictures: int = number(32, least=1)
    share: float = number(0.0, least=0, most=1)
    seed: int = number(3_000_000, least=0)


@dataclass(frozen=True)
class Checkpoints:
    """What a run can go on from.

    Attributes:
        every: iterations between checkpoints.
        last: the newest that are kept.
        best: those that are kept besides, by the mean of the weighted losses since the one before.
        adapter: which of them becomes the adapter.
    """

    every: int = number(100, least=1)
    last: int = number(2, least=1)
    best: int = number(1, least=1)
    adapter: str = choice("last", "last", "best")


@dataclass(frozen=True)
class Guard:
    """What is done about numbers that leave their range and iterations that do not end.

    Attributes:
        skips: updates with a loss or gradient that is no finite number are left out; a run ends
            with so many in a row.
        divergence: a warning is given where the median of a loss's last 20 values is so many times
            that of all.
        hung: a warning is given where an iteration takes so many times the median of those before,
            and a minute at least.
        patience: seconds after which the process then ends, to be started again.
    """

    skips: int = number(5, least=1)
    divergence: float = number(20.0, above=1)
    hung: float = number(10.0, above=1)
    patience: float = number(1800.0, above=0)


@dataclass(frozen=True)
class Evaluation:
    """What is drawn and counted after training.

    Attributes:
        pictures: pictures a cell; 0 leaves evaluation out.
        templates: prompts with "{}" where the word goes.
        others: concepts that should stay; by default all others that the judge knows.
        judge: folder of the judge; without one there are pictures, but no numbers.
        seed: of the first picture and of the choice of others.
        steps: denoising steps.
        guidance: distilled guidance scale.
        strength: of the adapter.
        batch: pictures drawn at once.
        examples: pictures a cell that the report shows.
        attention_examples: pictures whose attention maps it shows.
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
class Config:
    """A run.

    Attributes:
        concept: what is erased.
        prompts: sentences with the concept, or templates with "{}" in its place.
        more_prompts: sentences with the concept that a language model adds; see
            `erase.data.words.sentences`.
        kind: what the concept is; by default what the model's own words say, see
            `erase.runs.defaults`, else an entity.
        synonyms: other words for the concept; with none, WordNet's, see
            `erase.data.words.synonyms`.
        part_of_speech: of the concept, for WordNet.
        sense: of the concept in WordNet, as a number from 1 on or by its name (`turtle.n.02`); by
            default the nearest to things that the model draws.
        irrelevant: words for other things, whose attention the concept's is to resemble.
        language_model: whether a language model names those words instead; see
            `erase.data.words.irrelevant`.
        model: the frozen model.
        mesh: the devices.
        height: pixels.
        width: pixels.
        text_tokens: length of T5's input; by default the tokenizer's limit.
        steps: denoising steps of the trajectories.
        guidance: distilled guidance scale in training.
        method: how it is erased: a name in `erase.methods`, see `erase.methods.settings`.
        iterations: each makes the method's updates once.
        batch_size: samples an update.
        seed: of everything random in training.
        adapter: the LoRA.
        bank: what is prepared.
        early_stop: when training ends before that.
        checkpoints: what a run can go on from.
        guard: what is done about numbers out of range and hung iterations.
        evaluation: what follows training.
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
    evaluation: Evaluation = Evaluation()

    def method_settings(self, kind: type[Settings]) -> Settings:
        """A method's settings; their defaults where this is a `Config` without methods' fields.

        Args:
            kind: the method's dataclass of them. `erase.runs.RunConfig` has an instance as one of
                its fields, or the fields themselves.
        """
        if isinstance(self, kind):
            return replace(kind(), **{spec.name: getattr(self, spec.name) for spec in fields(kind)})
        parts = (getattr(self, spec.name) for spec in fields(self))
        return next((part for part in parts if isinstance(part, kind)), kind())
