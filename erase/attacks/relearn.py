"""Relearning: further training of the erased model on the concept's pictures.

The frozen model draws the pictures from noise that erasing did not use. The adapter is trained on
them by flow matching; a control is the same training on harmless pictures, since any training may
bring a concept back. Without an adapter, a fresh one is trained.
Axis letter: R runs.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from erase.attacks.families import RelearnBudget
from erase.attacks.protocol import Attempt, Target
from erase.attacks.search import run_search
from erase.config.schema import Config
from erase.data.words.irrelevant import listed
from erase.data.words.templates import phrase
from erase.methods import meta_unlearning
from erase.methods.parts.compiled import StepContext
from erase.methods.parts.keys import keys_of
from erase.methods.parts.step import State, TrainStep, Update, adamw, gradient_of, jit_over_runs
from erase.methods.planning.configured import plan_of
from erase.runtime.cache import Cache
from erase.training import loop
from erase.training.make_adapters import banks_of
from erase.training.prepare import runs_with_synonyms
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

# Added to a run's seed, so that relearning uses other pictures than erasing.
APART = 1000
Settings = meta_unlearning.Settings
TEACH = jit_over_runs(Update("teach", gradient_of(meta_unlearning.teaching), adamw, "teach"))
# On the pictures that Meta-Unlearning preserves, which are of other things.
CONTROL = jit_over_runs(Update("control", gradient_of(meta_unlearning.keeping), adamw, "teach"))


@dataclass(frozen=True)
class Lessons:
    """Everything that the training uses.

    Attributes:
        training: pictures, keys and fresh adapters of the runs.
        context: static arguments of the training step.
    """

    training: loop.Training
    context: StepContext[Settings]

    @staticmethod
    def of(
        erased: Mapping[str, Config], pipe: Pipeline, rate: float, alpha: float | None = None
    ) -> "Lessons":
        """Draw the pictures.

        Args:
            erased: the runs' configurations.
            pipe: the frozen model.
            rate: learning rate of AdamW.
            alpha: of the adapters that are trained, if not that of the configurations.
        """
        # The bank and the compiled settings are Meta-Unlearning's, whichever method erased.
        configs = {
            name: replace(
                config,
                method="meta_unlearning",
                seed=config.seed + APART,
                # Of that method's losses, the one that looks velocities up is not used.
                bank=replace(config.bank, teacher="computed"),
            )
            for name, config in runs_with_synonyms(erased).items()
        }
        plans = {name: plan_of(config, pipe, listed(config)) for name, config in configs.items()}
        training = loop.place_on_devices(configs, pipe, banks_of(configs, pipe, plans), plans)
        settings = training.context.settings
        assert isinstance(settings, Settings), "the method's own"
        settings = replace(settings, learning_rate=rate, weight_decay=0.0, clip=None)
        context = cast(
            StepContext[Settings],
            replace(training.context, settings=settings, alpha=alpha or training.context.alpha),
        )
        return Lessons(replace(training, context=context), context)

    def start(self, loras: Sequence[PyTree]) -> State:
        """Return the state before the first step, from the trees of the runs' adapters."""
        lora = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loras)
        opt_states = {"teach": jax.vmap(adamw(self.context.settings).init)(lora)}
        return self.context.divided(State(lora, opt_states, jnp.ones(len(loras), bool)))

    def advance(self, state: State, start: int, stop: int, train: TrainStep[Settings]) -> State:
        """Return the state after the steps `start` to `stop - 1`, counted from 0; donates it."""
        training = self.training
        for step in range(start + 1, stop + 1):
            keys = keys_of(training.keys, step, 1)[:, 0]
            state, _ = train(state, training.params, training.bank, keys, context=self.context)
        return state

    def adapters(self, state: State) -> dict[str, Adapter]:
        """Return the runs' adapters, by name."""
        return {name: self.training.adapter(name, state) for name in self.training.configs}


def teach(
    adapters: Mapping[str, Adapter],
    erased: Mapping[str, Config],
    pipe: Pipeline,
    stops: Sequence[int],
    rate: float,
) -> Iterator[tuple[int, dict[str, Adapter]]]:
    """Train adapters on pictures of their concepts.

    Args:
        adapters: by run.
        erased: the runs' configurations.
        pipe: the frozen model.
        stops: numbers of steps.
        rate: learning rate of AdamW.

    Yields:
        Each number of steps, and the adapters after that many.
    """
    lessons = Lessons.of(erased, pipe, rate)
    state, done = lessons.start([adapters[name].lora for name in erased]), 0
    for stop in stops:
        state, done = lessons.advance(state, done, stop, TEACH), stop
        yield stop, lessons.adapters(state)


@dataclass(frozen=True)
class Relearn:
    """The attack; see the module."""

    needs_model: bool = True

    def __call__(
        self, target: Target, budget: RelearnBudget, saved: Cache | None
    ) -> dict[str, Attempt]:
        """See `erase.attacks.protocol.Attack`."""
        pipe, config = target.pipe, target.config
        # In the adapter's tree its strength and scale are folded in.
        lora = pipe.adapted(target.adapters) if target.adapters else None
        alpha = Adapter(lora, 1.0).rank if lora else None
        lessons = Lessons.of(_configs(config, budget), pipe, budget.rate, alpha)
        prompts = [phrase(each, config.concept) for each in config.evaluation.templates]
        found = {}
        for name, train in (("relearn", TEACH), ("relearn, harmless pictures", CONTROL)):

            def advance(state: State, start: int, stop: int) -> State:
                placed = lessons.context.divided(state)
                return lessons.advance(placed, start, stop, train)  # noqa: B023

            state = lessons.start(_loras(lessons, lora, budget.restarts))
            part = saved and saved.part(name)
            state = run_search(advance, state, budget.steps, f"{name}, {target.title}", part)
            adapters = lessons.adapters(state).values()
            found[name] = Attempt(prompts, [[(adapter, 1.0)] for adapter in adapters])
        return found


def _loras(lessons: Lessons, lora: PyTree | None, restarts: int) -> list[PyTree]:
    """The tree to start from, for every restart; copies, since the training donates them."""
    if lora is None:
        fresh = lessons.training.state.lora
        return [jax.tree.map(lambda leaf: jnp.copy(leaf[r]), fresh) for r in range(restarts)]  # noqa: B023
    return [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), lora)] * restarts


def _configs(config: Config, budget: RelearnBudget) -> dict[str, Config]:
    """A configuration for every restart, with its own pictures."""
    bank = replace(config.bank, trajectories=budget.examples)
    own = {
        spec.name: replace(getattr(config, spec.name), pictures=budget.examples)
        for spec in dataclasses.fields(config)
        if isinstance(getattr(config, spec.name), Settings)
    }
    return {
        str(row): replace(config, bank=bank, seed=config.seed + row, **own)
        for row in range(budget.restarts)
    }


ATTACK = Relearn()
