"""The methods of erasing, by the name that `--config.method` chooses them with."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data import bank
from erase.data import plan as plan_module
from erase.data.bank import Bank
from erase.data.plan import Plan
from erase.data.words.irrelevant import Words, listed
from erase.methods import (
    attention_erasure,
    concept_ablation,
    eap,
    erase_anything,
    esd,
    mace,
    meta_unlearning,
    uce,
)
from erase.methods.base import Method
from erase.methods.parts.compiled import Setup
from erase.methods.parts.updates import State
from flux_jax.lora import init
from flux_jax.models.transformer import FluxTransformer
from flux_jax.pipeline import Pipeline

METHODS: Mapping[str, Method] = {
    "erase_anything": erase_anything.METHOD,
    "concept_ablation": concept_ablation.METHOD,
    "esd": esd.METHOD,
    "uce": uce.METHOD,
    "mace": mace.METHOD,
    "eap": eap.METHOD,
    "meta_unlearning": meta_unlearning.METHOD,
    "attention_erasure": attention_erasure.METHOD,
}


def method_of(config: Config) -> Method:
    """The method of a run."""
    return METHODS[config.method]


def plan(config: Config, pipe: Pipeline, words: Words) -> Plan:
    """What the bank of a run is to be made of; see `erase.data.plan.plan`.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        words: for other things.

    Raises:
        InputError: a prompt or a size cannot be used.
    """
    return plan_module.plan(config, pipe, method_of(config).needs(config, words, pipe))


def bank_shapes(
    config: Config, transformer: FluxTransformer, image_tokens: int, text_tokens: int
) -> Bank:
    """Shapes and types of the bank of one run; see `erase.data.bank.shapes`.

    What a language model would name is not known yet; it is no more than what is listed.
    """
    needs = method_of(config).needs(config, listed(config), None)
    return bank.shapes(config, transformer, image_tokens, text_tokens, needs)


def setup_of(config: Config, transformer: FluxTransformer, mesh: Mesh) -> Setup:
    """What is compiled into the updates of runs.

    Args:
        config: of any of the runs.
        transformer: the model.
        mesh: devices, from `erase.runtime.mesh.make_mesh`.
    """
    return Setup.of(config, method_of(config).compiled(config), transformer, mesh)


def start(key: PRNGKeyArray, params: PyTree, config: Config) -> State:
    """The state before the first update: an adapter that changes nothing, fresh optimisers.

    Args:
        key: random key.
        params: the transformer's parameters (or their shapes).
        config: the run's configuration.

    Raises:
        InputError: a target is not a layer of the model.
    """
    lora = init(key, params, config.adapter.targets, config.adapter.rank)
    own = {}
    for step in method_of(config).steps(config).values():
        own |= step.start(lora, config)
    return State(lora=lora, own=own, active=jnp.ones((), bool))
