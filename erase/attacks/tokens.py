"""Discrete prompt search: words of T5's vocabulary that make the erased model draw the concept.

As in P4D (Chin et al. 2024) and UnlearnDiffAtk (Zhang et al. 2024), by projected gradients:
continuous embeddings are projected to the nearest words in each step, the gradient of the error is
computed at the words, and Adam applies it to the embeddings. The words of every step are rated at
held-out noise. The texts of the best are then rated once more as both text encoders read them.
UnlearnDiffAtk steps by the gradient's sign on a relaxed choice of words instead.
Axis letters: R restarts, K tokens, V vocabulary, E text width, N steps, B points of a step.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from erase.attacks.families import TokensBudget
from erase.attacks.inversion import random_words
from erase.attacks.points import Points, make_points
from erase.attacks.protocol import Attempt, Target
from erase.attacks.search import run_search
from erase.attacks.slots import TokenModel, slot_prompts
from erase.attacks.vocabulary import allowed_tokens, spells
from erase.data.words.templates import phrase
from erase.methods.parts.losses import squared_error
from erase.runtime.cache import Cache
from flux_jax import programs, sharding
from flux_jax.errors import RunError

# Texts that are rated as both text encoders read them.
RATED = 8
# Held-out points at which the words of a step are rated.
CHECKED = 16


class State(flax.struct.PyTreeNode):
    """State of the search.

    Attributes:
        tokens: the continuous embeddings.
        optimiser: Adam's state.
        ids: words of every step so far.
        errors: their errors at held-out noise; infinite for steps to come.
    """

    tokens: Float[Array, "R K E"]
    optimiser: PyTree
    ids: Int[Array, "N R K"]
    errors: Float[Array, "N R"]


def project(
    tokens: Float[Array, "K E"], table: Float[Array, "V E"], allowed: Bool[Array, "V"]
) -> Int[Array, "K"]:
    """Return the allowed word nearest to each embedding, by Euclidean distance.

    Args:
        tokens: the embeddings.
        table: embeddings of the vocabulary.
        allowed: the words to choose from.
    """
    # |e - w|² without |e|², which is the same for all words.
    distances = jnp.sum(jnp.square(table), axis=-1) - 2 * tokens @ table.T
    return jnp.argmin(jnp.where(allowed, distances, jnp.inf), axis=-1)


@functools.partial(jax.jit, static_argnames=("rate", "batch"))
def advance(
    model: TokenModel,
    parts: tuple[Points, Points, Bool[Array, "V"]],
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
        parts: points to search with, those held out, and the words to choose from.
        key: random key of the search.
        state: state before the first of these steps.
        span: the first step, and the one after the last.
        rate: learning rate of Adam.
        batch: B.
    """
    (points, held_out, allowed), optimiser, table = parts, optax.adam(rate), model.table
    checked = jnp.arange(min(CHECKED, len(held_out.times)))

    def one(tokens: Array, optimiser_state: PyTree, key: Key[Array, ""]) -> tuple:
        ids = project(tokens, table, allowed)
        rows = jax.random.randint(key, (batch,), 0, len(points.times))
        gradient = jax.grad(model.error)(table[ids], points, rows)
        changes, optimiser_state = optimiser.update(gradient, optimiser_state)
        error = model.error(table[ids], held_out, checked)
        return optax.apply_updates(tokens, changes), optimiser_state, ids, error

    def step(index: Int[Array, ""], state: State) -> State:
        keys = jax.random.split(jax.random.fold_in(key, index), len(state.tokens))
        tokens, following, ids, errors = jax.vmap(one)(state.tokens, state.optimiser, keys)
        return State(
            tokens, following, state.ids.at[index].set(ids), state.errors.at[index].set(errors)
        )

    return jax.lax.fori_loop(*span, step, state)


def candidates(
    ids: Int[np.ndarray, "N R K"], errors: Float[np.ndarray, "N R"]
) -> Iterator[Sequence[int]]:
    """Return the different words of all steps and restarts, those with the least error first."""
    order = np.argsort(errors, axis=None, kind="stable")
    yield from dict.fromkeys(tuple(row) for row in ids.reshape(-1, ids.shape[-1])[order].tolist())


@dataclass(frozen=True)
class Tokens:
    """The attack; see the module."""

    needs_model: bool = True

    def __call__(
        self, target: Target, budget: TokensBudget, saved: Cache | None
    ) -> dict[str, Attempt]:
        """See `erase.attacks.protocol.Attack`."""
        pipe, config = target.pipe, target.config
        barred = () if budget.own_words else target.words
        size = pipe.text_encoder_2.config.vocab_size
        allowed = allowed_tokens(pipe.tokenizer_2, size, barred)
        # Evaluated prompts must have room for the tokens too.
        slot_prompts(pipe, config.evaluation.templates, budget.tokens)
        prompts = slot_prompts(pipe, target.templates, budget.tokens)
        points, held_out = make_points(target, budget.examples, saved)
        model = TokenModel.of(pipe, target.denoiser(), prompts)
        start, key = jax.random.split(jax.random.key(config.evaluation.seed))
        shape = budget.restarts, budget.tokens
        tokens = random_words(model.table, np.flatnonzero(allowed).tolist(), shape, start)
        rate = budget.rate * float(jnp.std(model.table))
        state = State(
            tokens,
            jax.vmap(optax.adam(rate).init)(tokens),
            jnp.zeros((budget.steps, *shape), jnp.int32),
            jnp.full((budget.steps, budget.restarts), jnp.inf),
        )
        state = sharding.gather(pipe.mesh, state)
        parts = points, held_out, jnp.asarray(allowed)
        with jax.set_mesh(pipe.mesh):
            state = run_search(
                lambda state, *span: advance(
                    model, parts, key, state, span, rate=rate, batch=budget.batch
                ),
                state,
                budget.steps,
                f"token search {target.title}",
                saved,
            )
        ranked = candidates(np.asarray(state.ids), np.asarray(state.errors))
        texts = readable(pipe.tokenizer_2.decode, ranked, barred, RATED)
        errors = [text_error(target, model, held_out, text) for text in texts]
        best = int(np.argmin(errors))
        notes = {"text": texts[best], "held_out_error": errors[best]}
        prompts = [phrase(each, texts[best]) for each in config.evaluation.templates]
        return {"tokens": Attempt(prompts, [target.adapters], notes)}


def readable(
    decode: Callable[[list[int]], Any],
    ranked: Iterator[Sequence[int]],
    barred: Sequence[str],
    most: int,
) -> list[str]:
    """Return the texts of the first candidates that do not spell a barred word.

    Args:
        decode: returns the text of ids.
        ranked: ids of the candidates, the best first.
        barred: words that a text must not spell.
        most: number of texts.

    Raises:
        RunError: every candidate spells one.
    """
    texts: dict[str, None] = {}
    for ids in ranked:
        text = str(decode(list(ids))).strip()
        if text and not spells(text, barred):
            texts[text] = None
        if len(texts) == most:
            break
    if not texts:
        raise RunError(
            "the search found only texts that spell the concept or a synonym; give more --steps or "
            "--restarts, or --own_words to allow them"
        )
    return list(texts)


def text_error(target: Target, model: TokenModel, points: Points, text: str) -> float:
    """Return the error of a text in the concept's place, as both text encoders read it."""
    pipe = target.pipe
    texts = [phrase(template, text) for template in target.templates]
    pipe.remember(texts, len(texts), cut=True)
    conditioning = jax.tree.map(jnp.asarray, pipe.recall(texts))
    errors = []
    for start in range(0, len(points.times), CHECKED):
        rows = points[start : start + CHECKED]
        velocity = programs.velocity(
            model.denoiser, rows.latents, conditioning[rows.prompts], rows.times
        )
        errors.append(float(squared_error(velocity, rows.targets)) * len(rows.times))
    return sum(errors) / len(points.times)


ATTACK = Tokens()
