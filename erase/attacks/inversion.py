"""Concept inversion: a new token whose embedding makes the erased model draw the concept.

Pham et al. 2023, at the input of T5. The embedding is trained by Adam through the encoder and the
attacked transformer, so that the velocity for prompts with the token is the wanted one at the
concept's pictures with noise; see `erase.attacks.points`. CLIP does not have the token: it reads
the prompts without the concept.
Axis letters: R restarts, E text width, B points of a step.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from erase.attacks.families import InversionBudget
from erase.attacks.points import Points, make_points
from erase.attacks.protocol import Attempt, Target
from erase.attacks.search import run_search
from erase.attacks.slots import TokenModel, held_out_errors, slot_prompts
from erase.data.words.templates import SLOT
from erase.runtime.cache import Cache
from flux_jax import sharding

# How prompts with the token are shown.
SHOWN = "<new token>"


class State(flax.struct.PyTreeNode):
    """State of the search.

    Attributes:
        tokens: the embeddings.
        optimiser: Adam's state.
    """

    tokens: Float[Array, "R 1 E"]
    optimiser: PyTree


@functools.partial(jax.jit, static_argnames=("rate", "batch"))
def advance(
    model: TokenModel,
    points: Points,
    key: Key[Array, ""],
    state: State,
    span: tuple[int | Int[Array, ""], int | Int[Array, ""]],
    *,
    rate: float,
    batch: int,
) -> State:
    """Return the state after the steps of a span, of all restarts at once.

    Args:
        model: the attacked model.
        points: where the velocity is wanted.
        key: random key of the search.
        state: state before the first of these steps.
        span: the first step, and the one after the last.
        rate: learning rate of Adam.
        batch: B.
    """
    optimiser = optax.adam(rate)

    def one(state: State, key: Key[Array, ""]) -> State:
        rows = jax.random.randint(key, (batch,), 0, len(points.times))
        gradient = jax.grad(model.error)(state.tokens, points, rows)
        changes, following = optimiser.update(gradient, state.optimiser)
        tokens = cast(Array, optax.apply_updates(state.tokens, changes))
        return State(tokens, following)

    def step(index: Int[Array, ""], state: State) -> State:
        keys = jax.random.split(jax.random.fold_in(key, index), len(state.tokens))
        return jax.vmap(one)(state, keys)

    return jax.lax.fori_loop(*span, step, state)


def random_words(
    table: Float[Array, "V E"], among: Sequence[int], shape: tuple[int, int], key: Key[Array, ""]
) -> Float[Array, "R K E"]:
    """Return embeddings of random words of the vocabulary, to start from.

    Args:
        table: embeddings of the vocabulary.
        among: ids of the words.
        shape: R, K.
        key: random key.
    """
    return table[jax.random.choice(key, jnp.asarray(among), shape)]


@dataclass(frozen=True)
class Inversion:
    """The attack; see the module."""

    needs_model: bool = True

    def __call__(
        self, target: Target, budget: InversionBudget, saved: Cache | None
    ) -> dict[str, Attempt]:
        """See `erase.attacks.protocol.Attack`."""
        pipe, config = target.pipe, target.config
        points, held_out = make_points(target, budget.examples, saved)
        model = TokenModel.of(pipe, target.denoiser(), slot_prompts(pipe, target.templates, 1))
        start, key = jax.random.split(jax.random.key(config.evaluation.seed))
        tokens = random_words(
            model.table, range(len(pipe.tokenizer_2)), (budget.restarts, 1), start
        )
        rate = budget.rate * float(jnp.std(model.table))
        state = State(tokens, jax.vmap(optax.adam(rate).init)(tokens))
        state = sharding.gather(pipe.mesh, state)
        with jax.set_mesh(pipe.mesh):
            state = run_search(
                lambda state, *span: advance(
                    model, points, key, state, span, rate=rate, batch=budget.batch
                ),
                state,
                budget.steps,
                f"inversion {target.title}",
                saved,
            )
            errors = np.asarray(held_out_errors(model, held_out, jnp.asarray(state.tokens)))
        best = int(errors.argmin())
        prompts = show_token(target, model, jnp.asarray(state.tokens[best]))
        notes = {"held_out_error": float(errors[best])}
        return {"inversion": Attempt(prompts, [target.adapters], notes)}


def show_token(target: Target, model: TokenModel, token: Float[Array, "1 E"]) -> list[str]:
    """Encode the evaluation's prompts with a token, and let the pipeline remember them.

    Returns:
        Their names in `Pipeline.remembered`.
    """
    pipe, templates = target.pipe, list(target.config.evaluation.templates)
    encoded = jax.jit(model.encode)(slot_prompts(pipe, templates, 1), token)
    names = [template.replace(SLOT, SHOWN) for template in templates]
    encoded = jax.tree.map(np.asarray, encoded)
    pipe.remembered.update({name: encoded[row] for row, name in enumerate(names)})
    return names


ATTACK = Inversion()
