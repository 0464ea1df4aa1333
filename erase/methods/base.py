"""What a method of erasing is: what it prepares, its updates, and what it exports.

Axis letter: B batch.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import PRNGKeyArray, PyTree

from erase.config.schema import AdamW, Config
from erase.data.bank import Bank
from erase.data.plan import Needs, Plan
from erase.data.words.irrelevant import Words
from erase.methods.parts.compiled import Setup
from erase.methods.parts.samples import Counts, Places, draw_places
from erase.methods.parts.updates import Losses, descent, in_every_run, optimiser
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Losses by name, each with its key.
Parts = Mapping[str, tuple[Losses, PRNGKeyArray]]
# Of what a part of an update draws from: trajectories or pictures; and the places there.
Drawn = Mapping[str, tuple[str, Places]]


def on_trajectories(key: PRNGKeyArray, setup: Setup, counts: Counts) -> Drawn:
    """What an update draws that asks `draw_latents` for one sample each, with its own key."""
    return {"": ("trajectories", draw_places(counts.trajectories, key, setup, counts.steps))}


@dataclass(frozen=True)
class Step:
    """One of the updates that make an iteration.

    Attributes:
        update: jitted, of all runs at once: (state, params, bank, keys, setup=...) gives the next
            state and metrics [R]; see `erase.methods.parts.updates`.
        start: what the state holds for it besides the adapter, by name; from a fresh adapter's tree
            and the configuration.
        losses: what it descends, by name, for those who look at single gradients
            (`erase.training.replay`); each with the key that the update gives it. From the update's
            key, and from what the state holds besides the adapter.
        drawn: which places of its bank a run draws with a key.
    """

    update: Any
    start: Callable[[PyTree, Config], dict[str, PyTree]]
    losses: Callable[[PRNGKeyArray, Mapping[str, PyTree]], Parts]
    drawn: Callable[[PRNGKeyArray, Setup, Counts], Drawn] = on_trajectories


def descending(
    name: str,
    losses: Losses,
    of: Callable[[Config], AdamW],
    compiled: Callable[[Any], AdamW] = lambda settings: settings,
    drawn: Callable[[PRNGKeyArray, Setup, Counts], Drawn] = on_trajectories,
) -> Step:
    """The step that makes a loss smaller, by AdamW with settings of its own.

    Args:
        name: of the step.
        losses: of one run.
        of: the optimiser's settings in a configuration.
        compiled: the same in what is compiled in.
        drawn: see `Step`.
    """
    return Step(
        in_every_run(descent(name, losses, compiled)),
        lambda lora, config: {name: optimiser(of(config)).init(lora)},
        lambda key, own: {name: (losses, key)},
        drawn,
    )


def _as_made(config: Config, pipe: Pipeline, planned: Plan, bank: Bank) -> Bank:
    del config, pipe, planned
    return bank


def _as_trained(
    config: Config, pipe: Pipeline, planned: Plan, bank: Bank | None, adapter: Adapter
) -> Adapter:
    del config, pipe, planned, bank
    return adapter


@dataclass(frozen=True)
class Method:
    """All that the rest of the program asks of a method.

    Attributes:
        title: what cards and tables call it.
        settings: dataclass of its own settings, the configuration's part of the method's name
            (`esd.eta`); None where there are none.
        needs: what its bank is made of, besides the concept's sentences; there is no pipeline where
            only its size is asked for.
        steps: its updates by name, in the order of an iteration; none where nothing is trained.
        compiled: what of a configuration is compiled into the updates.
        weights: what each metric counts in the sum that checkpoints are compared by.
        top_level: whether those settings are fields of the configuration itself instead
            (`lower.attn`).
        per_run: paths of settings that runs which train at once may differ in; what they say is
            not compiled.
        wants_synonyms: whether synonyms are looked up where the configuration names none; also for
            the evaluation, which counts them.
        irrelevant_words: the fewest different words for other things that do; 0 asks no language
            model for any.
        problems: what is wrong between a configuration's fields, a line each.
        completes: what the method adds to a run's bank once it is made.
        exports: the adapter that the method makes of what was trained; of a fresh one and no bank,
            where nothing was. None where it has no weights, and silences the concept's tokens.
    """

    title: str
    settings: "type[DataclassInstance] | None"
    needs: Callable[[Config, Words, Pipeline | None], Needs]
    steps: Callable[[Config], Mapping[str, Step]]
    compiled: Callable[[Config], Any]
    weights: Callable[[Config], Mapping[str, float]]
    top_level: bool = False
    per_run: tuple[str, ...] = ()
    wants_synonyms: Callable[[Config], bool] = lambda config: True
    irrelevant_words: Callable[[Config], int] = lambda config: 1
    problems: Callable[[Config], Iterable[str]] = lambda config: ()
    completes: Callable[[Config, Pipeline, Plan, Bank], Bank] = _as_made
    exports: Callable[[Config, Pipeline, Plan, Bank | None, Adapter], Adapter] | None = _as_trained
