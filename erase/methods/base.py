"""Definition of an erasing method: what it prepares, its training steps, and its export.

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
# By part of a step: what it samples from (trajectories or pictures), and the sampled places.
Drawn = Mapping[str, tuple[str, Places]]


def on_trajectories(key: PRNGKeyArray, context: StepContext[object], counts: Counts) -> Drawn:
    """Return the places sampled by a step that calls `sample_latents` once with the step's key."""
    return {
        "": (
            "trajectories",
            sample_places(counts.trajectories, key, context.batch_size, counts.steps),
        )
    }


@dataclass(frozen=True)
class Step(Generic[SettingsT]):
    """One of the steps of an iteration.

    Attributes:
        update: the training step of all runs at once, see `erase.methods.parts.step`.
        start: returns the step's entries of `State.own` by name, from a fresh adapter's tree and
            the configuration.
        losses: returns the losses that the step minimises by name, each with its random key, from
            the step's key and `State.own`. `erase.training.replay` computes their gradients.
        drawn: returns the places of its bank that a run samples with a key.
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
    """Return a step that minimises a loss with AdamW.

    Args:
        name: name of the step.
        losses: losses of one run.
        of: returns the optimiser's settings in a configuration.
        compiled: returns them in the compiled settings; by default these are the settings.
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
    """Interface of a method to the rest of the program.

    Attributes:
        title: name of the method on cards and in tables.
        fields: its settings and their checks.
        needs: returns the contents of its bank, besides the concept's sentences; the pipeline is
            None if only the bank's size is needed.
        steps: returns its steps by name, in the order of an iteration; empty if nothing is trained.
        compiled: returns the settings that are compiled into the steps.
        weights: returns the weight of each metric in the sum by which checkpoints are compared.
        wants_synonyms: whether synonyms are looked up if the configuration names none; the
            evaluation uses them too.
        irrelevant_words: returns the smallest number of different words for other things that the
            method needs; with 0, no language model is asked for words.
        completes: adds the method's own arrays to a run's computed bank.
        exports: builds the final adapter from the trained one; a closed-form method gets a fresh
            adapter and no bank. None if the method has no weights and mutes the concept's tokens.
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
