"""Random samples (x_t, t, prompt) from a run's bank.

Axis letters: B batch, D denoising steps, V forms of a sentence, K irrelevant words or points of a
trajectory, S image tokens, C latent channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.data.plan import POOL, SYNONYM
from erase.data.velocities import mix, noise_steps
from erase.methods.parts.compiled import split_samples
from erase.methods.parts.forward import RunInputs, rollout

# Rows of a bank, and a denoising step for each.
Places = tuple[Int[Array, "B"], Int[Array, "B"]]


class Counts(NamedTuple):
    """Sizes of the bank: trajectories, pictures to preserve, and the t of each denoising step."""

    trajectories: int
    pictures: int
    times: Float[Array, "D"]

    @property
    def steps(self) -> int:
        """D."""
        return len(self.times)


def sample_places(count: int, key: PRNGKeyArray, batch: int, steps: int) -> Places:
    """Sample rows of the bank and, for each, one of the first `steps` denoising steps."""
    row_key, step_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (batch,), 0, count)
    return rows, jax.random.randint(step_key, (batch,), 0, steps)


def sample_points(
    count: int, key: PRNGKeyArray, batch: int, steps: int, points: int
) -> tuple[Int[Array, "B"], Int[Array, "B K"]]:
    """Sample rows of the bank and, for each, K different ones of the first `steps` steps.

    Args:
        count: number of rows.
        key: random key.
        batch: B.
        steps: number of steps to sample among.
        points: K, or more than `steps` for all of them.
    """
    row_key, step_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (batch,), 0, count)
    order = jnp.argsort(jax.random.uniform(step_key, (batch, steps)), axis=1)
    return rows, order[:, :points]


def sample_pictures(
    count: int, key: PRNGKeyArray, batch: int, steps: int
) -> tuple[Int[Array, "B"], Int[Array, "B"], PRNGKeyArray]:
    """Sample pictures to preserve, a denoising step for each, and the key of their noise."""
    keys = jax.random.split(key, 3)
    rows = jax.random.randint(keys[0], (batch,), 0, count)
    return rows, jax.random.randint(keys[1], (batch,), 0, steps), keys[2]


class Sample(NamedTuple):
    """Points on denoising trajectories: x_t, t, and the sentence of each."""

    latents: Float[Array, "B S C"]
    times: Float[Array, "B"]
    sentences: Int[Array, "B"]


def sample_latents(run: RunInputs[object], key: PRNGKeyArray, steps: int | None = None) -> Sample:
    """Sample x_t on the frozen model's trajectories, by default from all of their steps."""
    bank, context = run.bank, run.context
    among = len(bank.times) if steps is None else steps
    rows, step = sample_places(len(bank.trajectories), key, context.batch_size, among)
    latents = split_samples(context, bank.trajectories[rows, step])
    times = split_samples(context, bank.times[step])
    return Sample(latents, times, bank.trajectory_sentences[rows])


def stored_velocities(run: RunInputs[object], key: PRNGKeyArray) -> list[Array] | None:
    """Look up the frozen model's velocities at the points that `sample_latents` samples.

    Args:
        run: inputs of the run's losses.
        key: the key of `sample_latents`, which must sample among all steps.

    Returns:
        The velocities [B, S, C] that `anchor_velocities` computes, or None if the bank has none.
    """
    bank, context = run.bank, run.context
    if bank.velocities is None:
        return None
    rows, steps = sample_places(len(bank.trajectories), key, context.batch_size, len(bank.times))
    stored = split_samples(context, bank.velocities[rows, steps])
    return [stored[:, index] for index in range(stored.shape[1])]


def sample_student_latents(run: RunInputs[object], lora: PyTree, key: PRNGKeyArray) -> Sample:
    """Sample x_t as `sample_latents` does, but on the trained model's trajectories.

    The trained model starts from the same noise and stops at the same steps.
    """
    bank, context = run.bank, run.context
    count, among = len(bank.trajectories), len(bank.times)
    rows, steps = sample_places(count, key, context.batch_size, among)
    sentences = bank.trajectory_sentences[rows]
    concept = split_samples(context, bank.sentences[sentences, 0])
    latents = rollout(run, lora, concept, rows, steps)
    return Sample(latents, split_samples(context, bank.times[steps]), sentences)


class Noisy(NamedTuple):
    """Pictures with noise mixed in: x_t = (1 - t) x_0 + t ε, t, x_0 and ε."""

    latents: Float[Array, "B S C"]
    times: Float[Array, "B"]
    clean: Float[Array, "B S C"]
    noise: Float[Array, "B S C"]


def add_noise(
    run: RunInputs[object],
    pictures: Float[Array, "B S C"],
    steps: Int[Array, "B"],
    key: PRNGKeyArray,
) -> Noisy:
    """Mix noise into pictures at the noise level of each one's denoising step."""
    clean = split_samples(run.context, pictures.astype(jnp.float32))
    noise = split_samples(run.context, jax.random.normal(key, clean.shape))
    return Noisy(*mix_noise(run, clean, noise, steps), clean, noise)


def mix_noise(
    run: RunInputs[object],
    pictures: Float[Array, "B S C"],
    noise: Float[Array, "B S C"],
    steps: Int[Array, "B"],
) -> tuple[Float[Array, "B S C"], Float[Array, "B"]]:
    """Return x_t and t of pictures with known noise, at the noise level of each one's step."""
    context = run.context
    clean, noise = (split_samples(context, e.astype(jnp.float32)) for e in (pictures, noise))
    times = split_samples(context, run.bank.times[steps])
    return mix(clean, noise, times), times


def sample_noises(
    pictures: int, noises: int, key: PRNGKeyArray, batch: int, steps: int
) -> tuple[Int[Array, "B"], Int[Array, "B"], Int[Array, "B"]]:
    """Sample pictures to preserve, one of the stored noises of each, and return its step.

    Args:
        pictures: number of pictures.
        noises: noises of each.
        key: random key.
        batch: B.
        steps: number of denoising steps.
    """
    rows, _, noise_key = sample_pictures(pictures, key, batch, steps)
    which = jax.random.randint(noise_key, (batch,), 0, noises)
    return rows, which, jnp.asarray(noise_steps(pictures, noises, steps))[rows, which]


def sample_forms(
    kinds: Int[Array, "V"], key: PRNGKeyArray, batch: int, count: int
) -> Int[Array, "B {count}+1"]:
    """Sample for each batch element a form with a synonym and K with different irrelevant words.

    The pools of irrelevant words take turns, so that all are represented equally.

    Args:
        kinds: kinds of a bank's forms.
        key: random key.
        batch: B.
        count: K.
    """
    chance = jax.random.uniform(key, (batch, len(kinds)))
    synonym = jnp.argmax(jnp.where(kinds == SYNONYM, chance, -1), axis=-1)
    same = kinds[:, None] == kinds
    before = jnp.sum(same & (chance[:, None, :] < chance[:, :, None]), axis=-1)
    turn = jnp.where(kinds >= POOL, before * (len(kinds) + POOL) + kinds, jnp.inf)
    others = jnp.argsort(turn, axis=-1)[:, :count]
    return jnp.concatenate([synonym[:, None], others], axis=-1)
