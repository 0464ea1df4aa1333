"""Samples (x_t, t, prompt) drawn from a run's bank.

Axis letters: B batch, D denoising steps, K irrelevant words, S image tokens, C latent channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.data.bank import Bank
from erase.data.plan import POOL, SYNONYM
from erase.methods.parts.compiled import Setup, split_samples
from erase.methods.parts.forward import walked

# Rows of a bank, and for each which of the denoising steps.
Places = tuple[Int[Array, "B"], Int[Array, "B"]]


class Counts(NamedTuple):
    """How much there is to draw from: trajectories, kept pictures, and each denoising step's t."""

    trajectories: int
    pictures: int
    times: Float[Array, "D"]

    @property
    def steps(self) -> int:
        """D."""
        return len(self.times)


def draw_places(count: int, key: PRNGKeyArray, setup: Setup, steps: int) -> Places:
    """Draws rows of the bank and, for each, one of so many first denoising steps."""
    row_key, step_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (setup.batch_size,), 0, count)
    return rows, jax.random.randint(step_key, (setup.batch_size,), 0, steps)


def draw_latents(
    bank: Bank, key: PRNGKeyArray, setup: Setup, steps: int
) -> tuple[Float[Array, "B S C"], Float[Array, "B"], Int[Array, "B"]]:
    """Draws x_t, its t and its sentence, among the first steps of the trajectories."""
    rows, step = draw_places(len(bank.trajectories), key, setup, steps)
    latents = split_samples(setup, bank.trajectories[rows, step])
    return latents, split_samples(setup, bank.times[step]), bank.trajectory_sentences[rows]


def student_latents(
    lora: PyTree, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, "B S C"], Float[Array, "B"], Int[Array, "B"]]:
    """What `draw_latents` draws, but on the adapted model's own way from the same noise."""
    rows, steps = draw_places(len(bank.trajectories), key, setup, len(bank.times))
    sentences = bank.trajectory_sentences[rows]
    concept = split_samples(setup, bank.sentences[sentences, 0])
    latents = walked(lora, params, concept, rows, steps, bank, setup)
    return latents, split_samples(setup, bank.times[steps]), sentences


def draw_pictures(
    count: int, key: PRNGKeyArray, setup: Setup, steps: int
) -> tuple[Int[Array, "B"], Int[Array, "B"], PRNGKeyArray]:
    """Draws kept pictures, a step for each, and the key of their noise."""
    keys = jax.random.split(key, 3)
    rows = jax.random.randint(keys[0], (setup.batch_size,), 0, count)
    return rows, jax.random.randint(keys[1], (setup.batch_size,), 0, steps), keys[2]


class Noised(NamedTuple):
    """Pictures with noise mixed in: x_t = (1 - t) x_0 + t ε, t, x_0 and ε."""

    latents: Float[Array, "B S C"]
    times: Float[Array, "B"]
    clean: Float[Array, "B S C"]
    noise: Float[Array, "B S C"]


def noised(
    pictures: Float[Array, "B S C"],
    steps: Int[Array, "B"],
    key: PRNGKeyArray,
    bank: Bank,
    setup: Setup,
) -> Noised:
    """Mixes noise into pictures, as much as each one's denoising step has."""
    clean = split_samples(setup, pictures.astype(jnp.float32))
    noise = split_samples(setup, jax.random.normal(key, clean.shape))
    times = split_samples(setup, bank.times[steps])
    latents = (1 - times[:, None, None]) * clean + times[:, None, None] * noise
    return Noised(latents, times, clean, noise)


def draw_forms(
    bank: Bank, key: PRNGKeyArray, setup: Setup, count: int
) -> Int[Array, "B {count}+1"]:
    """Draws for each sample the form with a synonym, and K with different irrelevant words.

    The pools of irrelevant words give in turn, so that each has its share.
    """
    chance = jax.random.uniform(key, (setup.batch_size, len(bank.kinds)))
    synonym = jnp.argmax(jnp.where(bank.kinds == SYNONYM, chance, -1), axis=-1)
    same = bank.kinds[:, None] == bank.kinds
    before = jnp.sum(same & (chance[:, None, :] < chance[:, :, None]), axis=-1)
    turn = jnp.where(bank.kinds >= POOL, before * (len(bank.kinds) + POOL) + bank.kinds, jnp.inf)
    others = jnp.argsort(turn, axis=-1)[:, :count]
    return jnp.concatenate([synonym[:, None], others], axis=-1)
