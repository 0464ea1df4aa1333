"""What a method of erasing is: what it prepares, its steps, and what it exports.

Axis letter: B batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from jaxtyping import PRNGKeyArray, PyTree

from erase.config.schema import AdamW, Config
from erase.data.bank import Bank
from erase.data.plan import Needs, Plan
from erase.data.words.irrelevant import Words
from erase.methods.parts.compiled import SettingsT, StepContext
from erase.methods.parts.samples import Counts, Places, sample_places
from erase.methods.parts.step import (
    Losses,
    TrainStep,
    Update,
    adamw,
    gradient_of,
    jit_over_runs,
)
from erase.methods.settings.base import MethodFields
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

AdamWT = TypeVar("AdamWT", bound=AdamW)
# Losses by name, each with its key.
Parts = Mapping[str, tuple[Losses[SettingsT], PRNGKeyArray]]
# What a part of a step samples from: trajectories or pictures; and the places there.
Drawn = Mapping[str, tuple[str, Places]]


def on_trajectories(key: PRNGKeyArray, context: StepContext[object], counts: Counts) -> Drawn:
    """What a step samples that calls `sample_latents` once, with its own key."""
    return {
        "": (
            "trajectories",
            sample_places(counts.trajectories, key, context.batch_size, counts.steps),
        )
    }


@dataclass(frozen=True)
class Step(Generic[SettingsT]):
    """One of the steps that make an iteration.

    Attributes:
        update: the training step of all runs at once, see `erase.methods.parts.step`.
        start: what the state holds for it besides the adapter, by name; from a fresh adapter's tree
            and the configuration.
        losses: what it makes smaller, by name, for those who look at single gradients
            (`erase.training.replay`); each with the key that the step gives it. From the step's
            key, and from what the state holds besides the adapter.
        drawn: which places of its bank a run samples with a key.
    """

    update: TrainStep[SettingsT]
    start: Callable[[PyTree, Config], dict[str, PyTree]]
    losses: Callable[[PRNGKeyArray, Mapping[str, PyTree]], Parts[SettingsT]]
    drawn: Callable[[PRNGKeyArray, StepContext[SettingsT], Counts], Drawn] = on_trajectories


def _itself(settings: AdamWT) -> AdamWT:
    return settings


@overload
def adamw_step(
    name: str,
    losses: Losses[AdamWT],
    of: Callable[[Config], AdamW],
    *,
    drawn: Callable[[PRNGKeyArray, StepContext[AdamWT], Counts], Drawn] = ...,
) -> Step[AdamWT]: ...


@overload
def adamw_step(
    name: str,
    losses: Losses[SettingsT],
    of: Callable[[Config], AdamW],
    compiled: Callable[[SettingsT], AdamW],
    drawn: Callable[[PRNGKeyArray, StepContext[SettingsT], Counts], Drawn] = ...,
) -> Step[SettingsT]: ...


def adamw_step(
    name: str,
    losses: Losses[Any],
    of: Callable[[Config], AdamW],
    compiled: Callable[[Any], AdamW] = _itself,
    drawn: Callable[[PRNGKeyArray, StepContext[Any], Counts], Drawn] = on_trajectories,
) -> Step[Any]:
    """The step that makes a loss smaller, by AdamW with settings of its own.

    Args:
        name: of the step.
        losses: of one run.
        of: the optimiser's settings in a configuration.
        compiled: the same in what is compiled in; by default that is the settings themselves.
        drawn: see `Step`.
    """
    update = Update(name, gradient_of(losses), lambda settings: adamw(compiled(settings)), name)
    return Step(
        jit_over_runs(update),
        lambda lora, config: {name: adamw(of(config)).init(lora)},
        lambda key, own: {name: (losses, key)},
        drawn,
    )


def _bank_as_made(config: Config, pipe: Pipeline, planned: Plan, bank: Bank) -> Bank:
    del config, pipe, planned
    return bank


def _adapter_as_trained(
    config: Config, pipe: Pipeline, planned: Plan, bank: Bank | None, adapter: Adapter
) -> Adapter:
    del config, pipe, planned, bank
    return adapter


@dataclass(frozen=True)
class Method(Generic[SettingsT]):
    """All that the rest of the program asks of a method.

    Attributes:
        title: what cards and tables call it.
        fields: its settings, and what configurations need to know of them.
        needs: what its bank is made of, besides the concept's sentences; there is no pipeline where
            only its size is asked for.
        steps: its steps by name, in the order of an iteration; none where nothing is trained.
        compiled: what of a configuration is compiled into the steps.
        weights: what each metric counts in the sum that checkpoints are compared by.
        wants_synonyms: whether synonyms are looked up where the configuration names none; also for
            the evaluation, which counts them.
        irrelevant_words: the fewest different words for other things that do; 0 asks no language
            model for any.
        completes: what the method adds to a run's bank once it is made.
        exports: builds the final adapter from the trained one; a closed-form method gets a fresh
            adapter and no bank. None where the method has no weights and silences the concept's
            tokens.
    """

    title: str
    fields: MethodFields
    needs: Callable[[Config, Words, Pipeline | None], Needs]
    steps: Callable[[Config], Mapping[str, Step[SettingsT]]]
    compiled: Callable[[Config], SettingsT]
    weights: Callable[[Config], Mapping[str, float]]
    wants_synonyms: Callable[[Config], bool] = lambda config: True
    irrelevant_words: Callable[[Config], int] = lambda config: 1
    completes: Callable[[Config, Pipeline, Plan, Bank], Bank] = _bank_as_made
    exports: Callable[[Config, Pipeline, Plan, Bank | None, Adapter], Adapter] | None = (
        _adapter_as_trained
    )
