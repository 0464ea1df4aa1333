"""Ring-A-Bell: prompts near the concept in the text encoder's space, without the erased model.

Tsai et al. 2024, with T5. The concept's direction is the mean difference between the encodings of
prompts with and without it. A prompt's encoding plus eta times the direction is the target, and a
genetic search looks for the tokens whose encoding is nearest to it. The found prompts are the same
for every model.
Axis letters: R searches, P population, K tokens, T text tokens, E text width, A allowed tokens.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from erase.attacks.families import RingABellBudget
from erase.attacks.protocol import Attempt, Target
from erase.attacks.search import run_search
from erase.attacks.tokens import readable
from erase.attacks.vocabulary import allowed_tokens
from erase.data.words.templates import phrase
from erase.runtime.cache import Cache
from flux_jax import sharding
from flux_jax.errors import InputError
from flux_jax.models.t5 import T5Encoder

# Distance of every candidate of a population [P, K] to the target.
Distances = Callable[[Int[Array, "P K"]], Float[Array, "P"]]


def following_generation(
    population: Int[Array, "P K"],
    distances: Float[Array, "P"],
    allowed: Int[Array, "A"],
    mutation: float,
    key: Key[Array, ""],
) -> Int[Array, "P K"]:
    """Return the next generation: the nearer half, and children of random pairs of it.

    A child has the first tokens of one parent and the last of the other.

    Args:
        population: the candidates.
        distances: of each to the target.
        allowed: ids to mutate to.
        mutation: probability that a token of a child is replaced by a random one.
        key: random key.
    """
    size, tokens = population.shape
    kept = population[jnp.argsort(distances)[: size // 2]]
    children = size - len(kept)
    pairs_key, cut_key, where_key, what_key = jax.random.split(key, 4)
    first, second = kept[jax.random.randint(pairs_key, (2, children), 0, len(kept))]
    cuts = jax.random.randint(cut_key, (children, 1), 1, max(tokens, 2))
    born = jnp.where(jnp.arange(tokens) < cuts, first, second)
    mutates = jax.random.bernoulli(where_key, mutation, born.shape)
    born = jnp.where(mutates, jax.random.choice(what_key, allowed, born.shape), born)
    return jnp.concatenate([kept, born])


def evolve(
    distances: Distances,
    population: Int[Array, "P K"],
    allowed: Int[Array, "A"],
    mutation: float,
    keys: Key[Array, "N"],
) -> Int[Array, "P K"]:
    """Return the population after as many generations as there are keys."""

    def generation(population: Array, key: Array) -> tuple[Array, None]:
        now = distances(population)
        return following_generation(population, now, allowed, mutation, key), None

    return jax.lax.scan(generation, population, keys)[0]


def distances_to(
    encoder: T5Encoder, params: PyTree, wanted: Float[Array, "T E"], eos: int, pad: int
) -> Distances:
    """Return a function for the mean squared distance of candidates' encodings to a target.

    Args:
        encoder: T5's encoder.
        params: its parameters.
        wanted: the target.
        eos: id of the end-of-text token, which follows a candidate.
        pad: id of the padding after that.
    """

    def distances(population: Int[Array, "P K"]) -> Float[Array, "P"]:
        size, tokens = population.shape
        tail = jnp.full((size, len(wanted) - tokens), pad, population.dtype).at[:, 0].set(eos)
        encoded = encoder.apply({"params": params}, jnp.concatenate([population, tail], axis=1))
        error = jnp.square(jnp.asarray(encoded, jnp.float32) - wanted)
        return jnp.mean(error, axis=(1, 2))

    return distances


@functools.partial(jax.jit, static_argnames=("encoder", "mutation", "ends"))
def advance(
    encoder: T5Encoder,
    params: PyTree,
    wanted: Float[Array, "R T E"],
    allowed: Int[Array, "A"],
    keys: Key[Array, "R N"],
    population: Int[Array, "R P K"],
    *,
    mutation: float,
    ends: tuple[int, int],
) -> Int[Array, "R P K"]:
    """Return the populations of all searches after N generations.

    Args:
        encoder: T5's encoder.
        params: its parameters.
        wanted: each search's target.
        allowed: ids to mutate to.
        keys: random keys.
        population: the candidates.
        mutation: see `following_generation`.
        ends: ids of the end-of-text token and of padding.
    """

    def one(wanted: Array, population: Array, keys: Array) -> Array:
        distances = distances_to(encoder, params, wanted, *ends)
        return evolve(distances, population, allowed, mutation, keys)

    return jax.vmap(one)(wanted, population, keys)


def direction(target: Target) -> tuple[Float[np.ndarray, "T E"], Float[np.ndarray, "M T E"]]:
    """Return the concept's direction in T5's space, and the encodings of prompts without it."""
    pipe, concept = target.pipe, target.config.concept
    having = [phrase(template, concept) for template in target.templates]
    lacking = [phrase(template, "") for template in target.templates]
    pipe.remember([*having, *lacking], target.config.bank.batch)
    with_it, without = (
        np.asarray(pipe.recall(texts).text, np.float32) for texts in (having, lacking)
    )
    return (with_it - without).mean(axis=0), without


@dataclass(frozen=True)
class RingABell:
    """The attack; see the module."""

    needs_model: bool = False

    def __call__(
        self, target: Target, budget: RingABellBudget, saved: Cache | None
    ) -> dict[str, Attempt]:
        """See `erase.attacks.protocol.Attack`."""
        pipe, tokenizer = target.pipe, target.pipe.tokenizer_2
        limit = tokenizer.model_max_length
        if budget.tokens >= limit:
            raise InputError(f"tokens = {budget.tokens} must be below the text's limit of {limit}")
        barred = () if budget.own_words else target.words
        encoder = pipe.text_encoder_2
        allowed = np.flatnonzero(allowed_tokens(tokenizer, encoder.config.vocab_size, barred))
        added, without = direction(target)
        rows = np.arange(budget.restarts) % len(without)
        wanted = jnp.asarray(without[rows] + budget.eta * added)
        start, key = jax.random.split(jax.random.key(target.config.evaluation.seed))
        shape = budget.restarts, budget.population, budget.tokens
        population = jax.random.choice(start, jnp.asarray(allowed, jnp.int32), shape)
        population = sharding.gather(pipe.mesh, population)
        ends = tuple(cast(int, each) for each in (tokenizer.eos_token_id, tokenizer.pad_token_id))
        params = pipe.params["text_encoder_2"]

        def part(population: Array, start: int, stop: int) -> Array:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(start, stop))
            keys = jax.vmap(lambda each: jax.random.split(each, budget.restarts), out_axes=1)(keys)
            return advance(
                encoder, params, wanted, jnp.asarray(allowed, jnp.int32), keys, population,
                mutation=budget.mutation, ends=ends,
            )  # fmt: skip

        population = run_search(part, population, budget.generations, "genetic search", saved)
        prompts, errors = [], []
        for row in range(budget.restarts):
            found = jax.jit(distances_to(encoder, params, wanted[row], *ends))
            away = np.asarray(found(jnp.asarray(population[row])))
            order = np.argsort(away, kind="stable")
            errors.append(float(away.min()))
            ranked = iter(np.asarray(population[row])[order].tolist())
            prompts += readable(tokenizer.decode, ranked, barred, 1)
        notes = {"texts": prompts, "distances": errors}
        return {"ring_a_bell": Attempt(prompts, [target.adapters], notes)}


ATTACK = RingABell()
