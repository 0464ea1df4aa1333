"""Discrete prompt search: words of T5's vocabulary that make the erased model draw the concept.

As in P4D (Chin et al. 2024) and UnlearnDiffAtk (Zhang et al. 2024), by projected gradients: the
gradient of the error through the encoder and the attacked transformer, at the embeddings of the
words so far, leads to a point that is projected to nearby words. A single projection is often no
better, since the error is far from linear over the distance between two words. So each step rates
several candidates at held-out noise, as in GCG (Zou et al. 2023): a random one of the words,
replaced by one of the nearest to the point, at a random length of the step. The best is kept if its
error is lower. The texts of the best are rated once more as both text encoders read them.
Axis letters: R restarts, K tokens, V vocabulary, E text width, N steps, B points of a step,
C candidates of a step, M nearest words.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from erase.attacks.families import TokensBudget
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
# Held-out points at which candidates are rated.
CHECKED = 4
# Words among which a candidate's is chosen, and lengths of a step relative to an embedding's.
NEAREST, LENGTHS = 32, (0.5, 100.0)
TINY = 1e-12


class State(flax.struct.PyTreeNode):
    """State of the search.

    Attributes:
        best: the best words so far.
        error: their error at held-out noise.
        ids: the best candidate of every step so far.
        errors: their errors; infinite for steps to come.
    """

    best: Int[Array, "R K"]
    error: Float[Array, "R"]
    ids: Int[Array, "N R K"]
    errors: Float[Array, "N R"]


def project(
    point: Float[Array, "E"], table: Float[Array, "V E"], allowed: Bool[Array, "V"], count: int
) -> Int[Array, "M"]:
    """Return the allowed words nearest to a point by Euclidean distance, the nearest first.

    Args:
        point: any embedding.
        table: embeddings of the vocabulary.
        allowed: the words to choose from.
        count: M.
    """
    # |e - w|² without |e|², which is the same for all words.
    distances = jnp.sum(jnp.square(table), axis=-1) - 2 * table @ point
    return jax.lax.top_k(jnp.where(allowed, -distances, -jnp.inf), count)[1]


def propose(
    ids: Int[Array, "K"],
    gradient: Float[Array, "K E"],
    table: Float[Array, "V E"],
    allowed: Bool[Array, "V"],
    key: Key[Array, ""],
) -> Int[Array, "K"]:
    """Return the words with one of them replaced, by a projected step along the gradient.

    Args:
        ids: the words so far.
        gradient: of the error, at their embeddings.
        table: embeddings of the vocabulary.
        allowed: the words to choose from.
        key: random key.
    """
    at_key, length_key, which_key = jax.random.split(key, 3)
    at = jax.random.randint(at_key, (), 0, len(ids))
    low, high = np.log(LENGTHS)
    length = jnp.exp(jax.random.uniform(length_key, (), minval=low, maxval=high))
    size = jnp.linalg.norm(table[ids[at]]) / (jnp.linalg.norm(gradient[at]) + TINY)
    point = table[ids[at]] - length * size * gradient[at]
    others = allowed & (jnp.arange(len(table)) != ids[at])
    near = project(point, table, others, min(NEAREST, len(table)))
    chosen = near[jax.random.randint(which_key, (), 0, len(near))]
    # With few allowed words, the last of the nearest are others.
    return ids.at[at].set(jnp.where(others[chosen], chosen, near[0]))


@functools.partial(jax.jit, static_argnames=("batch", "count"))
def advance(
    model: TokenModel,
    parts: tuple[Points, Points, Bool[Array, "V"]],
    key: Key[Array, ""],
    state: State,
    span: tuple[int | Int[Array, ""], int | Int[Array, ""]],
    *,
    batch: int,
    count: int,
) -> State:
    """Return the state after the steps of a span, of all restarts at once.

    Args:
        model: the attacked model.
        parts: points to search with, those held out, and the words to choose from.
        key: random key of the search.
        state: state before the first of these steps.
        span: the first step, and the one after the last.
        batch: B.
        count: C.
    """
    (points, held_out, allowed), table = parts, model.table
    checked = jnp.arange(min(CHECKED, len(held_out.times)))

    def rate(ids: Array) -> Array:
        return model.error(table[ids], held_out, checked)

    def one(best: Array, error: Array, key: Key[Array, ""]) -> tuple[Array, ...]:
        rows_key, key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (batch,), 0, len(points.times))
        gradient = jax.grad(model.error)(table[best], points, rows)
        tried = jax.vmap(lambda each: propose(best, gradient, table, allowed, each))(
            jax.random.split(key, count)
        )
        errors = jax.vmap(rate)(tried)
        found, least = tried[jnp.argmin(errors)], jnp.min(errors)
        better = least < error
        return jnp.where(better, found, best), jnp.where(better, least, error), found, least

    def step(index: Int[Array, ""], state: State) -> State:
        keys = jax.random.split(jax.random.fold_in(key, index), len(state.best))
        best, error, ids, errors = jax.vmap(one)(state.best, state.error, keys)
        return State(best, error, state.ids.at[index].set(ids), state.errors.at[index].set(errors))

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
        state = State(
            jax.random.choice(start, jnp.flatnonzero(allowed), shape),
            jnp.full(budget.restarts, jnp.inf),
            jnp.zeros((budget.steps, *shape), jnp.int32),
            jnp.full((budget.steps, budget.restarts), jnp.inf),
        )
        state = sharding.gather(pipe.mesh, state)
        parts = points, held_out, jnp.asarray(allowed)
        with jax.set_mesh(pipe.mesh):
            state = run_search(
                lambda state, *span: advance(
                    model, parts, key, state, span, batch=budget.batch, count=budget.candidates
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
