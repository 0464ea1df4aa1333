"""Words, plan, bank shapes, step context and initial state of a configuration, by its method.

Axis letter: P points of the trajectories.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data import bank
from erase.data.bank import Bank
from erase.data.plan import Plan, plan_bank
from erase.data.words import irrelevant, synonyms
from erase.data.words.irrelevant import Words, listed
from erase.methods import method_of
from erase.methods.parts.compiled import StepContext
from erase.methods.parts.keys import run_keys, update_keys
from erase.methods.parts.samples import Counts, Places
from erase.methods.parts.step import State
from flux_jax.lora import init
from flux_jax.models.transformer import FluxTransformer
from flux_jax.pipeline import Pipeline


def with_synonyms(config: Config) -> tuple[Config, str]:
    """Return the configuration with the synonyms that its method needs, and their source.

    See `erase.data.words.synonyms.resolve_synonyms`.

    Raises:
        InputError: the word has no such sense, or NLTK's database is damaged.
    """
    return synonyms.resolve_synonyms(config, wanted=method_of(config).wants_synonyms(config))


def irrelevant_words(config: Config, workdir: Path) -> Words:
    """Return words for other things, as many as the run's method needs.

    See `erase.data.words.irrelevant.gather_irrelevant`.

    Args:
        config: the run's configuration.
        workdir: the run's folder; it is only read.

    Raises:
        InputError: the saved file is damaged, or the lists are too short.
    """
    return irrelevant.gather_irrelevant(config, workdir, method_of(config).irrelevant_words(config))


def plan_of(config: Config, pipe: Pipeline, words: Words) -> Plan:
    """Plan the bank of a run; see `erase.data.plan.plan_bank`.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        words: words for other things.

    Raises:
        InputError: a prompt or a size cannot be used.
    """
    return plan_bank(config, pipe, method_of(config).needs(config, words, pipe))


def shapes_of(
    config: Config, transformer: FluxTransformer, image_tokens: int, text_tokens: int
) -> Bank:
    """Return the shapes and types of one run's bank; see `erase.data.bank.bank_shapes`.

    A language model's words are not known yet; there are at most as many as are listed.
    """
    needs = method_of(config).needs(config, listed(config), None)
    return bank.bank_shapes(config, transformer, image_tokens, text_tokens, needs)


def context_of(config: Config, transformer: FluxTransformer, mesh: Mesh) -> StepContext[object]:
    """Return the static arguments of the runs' training step.

    Args:
        config: configuration of any of the runs.
        transformer: the model.
        mesh: device mesh, from `erase.runtime.mesh.make_mesh`.
    """
    return StepContext.of(config, method_of(config).compiled(config), transformer, mesh)


def sampled_points(config: Config, pipe: Pipeline, plan: Plan) -> Int[np.ndarray, "P 2"] | None:
    """Return the points at which a run's bank stores velocities; None if it stores none.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        plan: plan of the bank.

    Returns:
        Trajectory and step of each point that the run samples, in the order of first use.
    """
    if not plan.velocities:
        return None
    context, steps = (
        context_of(config, pipe.transformer, pipe.mesh),
        method_of(config).steps(config),
    )
    shape = config.bank.trajectories, config.steps
    counts = Counts(shape[0], len(plan.shown), jnp.zeros(config.steps))
    key = run_keys(config.seed)[1][None]

    def places(iteration: Int[Array, ""]) -> Places:
        keys = update_keys(key, iteration, list(steps))
        drawn = {
            part or name: at
            for name, step in steps.items()
            for part, (_, at) in step.drawn(keys[name][0], context, counts).items()
        }
        return drawn[plan.velocities]

    found = jax.jit(jax.vmap(places))(jnp.arange(1, config.iterations + 1))
    flat = np.ravel_multi_index([np.asarray(each).ravel() for each in found], shape)
    _, first = np.unique(flat, return_index=True)
    return np.stack(np.unravel_index(flat[np.sort(first)], shape), axis=1)


def start(key: PRNGKeyArray, params: PyTree, config: Config) -> State:
    """Return the state before the first step: an adapter that changes nothing, fresh optimisers.

    Args:
        key: random key.
        params: the transformer's parameters (or their shapes).
        config: the run's configuration.

    Raises:
        InputError: a target is not a layer of the model.
    """
    lora = init(key, params, config.adapter.targets, config.adapter.rank)
    opt_states = {}
    for step in method_of(config).steps(config).values():
        opt_states |= step.start(lora, config)
    return State(lora=lora, own=opt_states, active=jnp.ones((), bool))
