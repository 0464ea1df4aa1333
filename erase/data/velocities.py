"""Velocities of the frozen model that are computed once, with a run's bank, for updates to look up.

Axis letters: P points, R trajectories, D denoising steps, F pictures, K noises of a picture,
B batch, S image tokens, C latent channels.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from erase.config.schema import Config
from erase.data.bank import Bank
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning

# Latents, prompts and times of some rows.
Inputs = Callable[[list[int]], tuple[Array, Conditioning, Array]]


def add_velocities(
    config: Config,
    pipe: Pipeline,
    bank: Bank,
    points: Int[np.ndarray, "P 2"],
    guidance: float,
    concept: Float[np.ndarray, "_ D S C"] | None,
) -> Bank:
    """Add the velocities for the concept and for each anchor at points of the trajectories.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        bank: the bank without velocities, on the host.
        points: trajectories and steps, in the order in which the run first samples them: a longer
            run then has the same batches, and the same bits.
        guidance: distilled guidance scale.
        concept: velocities for the concept, if the trajectories were computed with them; further
            rows are ignored.
    """
    prompts = jax.tree.map(
        lambda one, others: np.concatenate([one[:, :1], others], axis=1),
        bank.sentences,
        bank.anchors,
    )
    width, (count, levels, *size) = prompts.text.shape[1], bank.trajectories.shape
    # A point that should not be looked up gives no finite loss. Processes compare what each places
    # on its devices, where NaN would differ from itself.
    stored = np.full((count, levels - 1, width, *size), np.inf, bank.trajectories.dtype)
    first = 0
    if concept is not None:
        stored[:, :, 0], first = concept[:count], 1
    rows, steps = np.repeat(points, width - first, axis=0).T
    forms = np.tile(np.arange(first, width), len(points))

    def inputs(batch: list[int]) -> tuple[Array, Conditioning, Array]:
        chosen = np.minimum(batch, len(rows) - 1)
        at, sentences = (rows[chosen], steps[chosen]), bank.trajectory_sentences[rows[chosen]]
        return bank.trajectories[at], prompts[sentences, forms[chosen]], bank.times[steps[chosen]]

    # A batch of few points is filled up: one of another size may differ in the last bits.
    count = max(len(rows), config.bank.batch)
    stored[rows, steps, forms] = evaluate(config, pipe, count, inputs, guidance)[: len(rows)]
    return bank.replace(velocities=stored)


def add_noises(config: Config, pipe: Pipeline, bank: Bank, seeds: Sequence[int]) -> Bank:
    """Add K noises of each picture to preserve, and the frozen model's velocities there.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        bank: the bank without noises, on the host.
        seeds: seeds of the noises, those of a picture next to each other.
    """
    assert bank.pictures is not None, "noises are those of pictures"
    count, size = len(bank.pictures), bank.pictures.shape[1:]
    noise = np.asarray(pipe.noise(seeds, config.height, config.width), bank.pictures.dtype)
    steps = noise_steps(count, len(seeds) // count, config.steps)
    rows = np.repeat(np.arange(count), steps.shape[1])
    times = np.asarray(bank.times)[steps.ravel()]

    def inputs(batch: list[int]) -> tuple[Array, Conditioning, Array]:
        clean, noises = (
            jnp.asarray(each, jnp.float32) for each in (bank.pictures[rows[batch]], noise[batch])
        )
        at = jnp.asarray(times[batch])
        return mix(clean, noises, at), bank.picture_prompts[rows[batch]], at

    velocities = evaluate(config, pipe, len(seeds), inputs, config.guidance)
    shape = *steps.shape, *size
    return bank.replace(noises=noise.reshape(shape), noise_velocities=velocities.reshape(shape))


def noise_steps(pictures: int, noises: int, steps: int) -> Int[np.ndarray, "F K"]:
    """Return the denoising step of each stored noise, spread evenly over all steps.

    A picture's noises are far from each other: the k-th is in the k-th of K parts of the steps.

    Args:
        pictures: F.
        noises: K.
        steps: number of denoising steps.
    """
    order = np.arange(noises)[None, :] * pictures + np.arange(pictures)[:, None]
    return order * steps // (pictures * noises)


def mix(
    clean: Float[Array, "B S C"], noise: Float[Array, "B S C"], times: Float[Array, "B"]
) -> Float[Array, "B S C"]:
    """Return x_t = (1 - t) x_0 + t ε."""
    return (1 - times[:, None, None]) * clean + times[:, None, None] * noise


def evaluate(
    config: Config, pipe: Pipeline, count: int, inputs: Inputs, guidance: float
) -> Float[np.ndarray, "P S C"]:
    """Compute the frozen model's velocities in batches, collected on the host.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        count: P.
        inputs: returns the inputs of some of the points.
        guidance: distilled guidance scale.
    """
    image_ids = jnp.asarray(pipe.image_ids(config.height, config.width))
    parts = [
        np.asarray(pipe.velocity(*inputs(batch), image_ids, guidance))
        for batch in batches(count, config.bank.batch, "evaluating the frozen model")
    ]
    return np.concatenate(parts)[:count]
