"""Velocities of the frozen model that are computed once, with a run's bank, for updates to look up.

Axis letters: P points, R trajectories, D denoising steps, S image tokens, C latent channels.
"""

from collections.abc import Callable

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
    concept: Float[np.ndarray, "R D S C"] | None,
) -> Bank:
    """Add the velocities for the concept and for each anchor at points of the trajectories.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        bank: the bank without velocities, on the host.
        points: trajectories and steps, in the order in which the run first samples them: a longer
            run then has the same batches, and the same bits.
        guidance: distilled guidance scale.
        concept: velocities for the concept, if the trajectories were computed with them.
    """
    prompts = jax.tree.map(
        lambda one, others: np.concatenate([one[:, :1], others], axis=1),
        bank.sentences,
        bank.anchors,
    )
    width, (count, levels, *size) = prompts.text.shape[1], bank.trajectories.shape
    stored = np.full((count, levels - 1, width, *size), np.nan, bank.trajectories.dtype)
    first = 0
    if concept is not None:
        stored[:, :, 0], first = concept, 1
    rows, steps = np.repeat(points, width - first, axis=0).T
    forms = np.tile(np.arange(first, width), len(points))

    def inputs(batch: list[int]) -> tuple[Array, Conditioning, Array]:
        at, sentences = (rows[batch], steps[batch]), bank.trajectory_sentences[rows[batch]]
        return bank.trajectories[at], prompts[sentences, forms[batch]], bank.times[steps[batch]]

    stored[rows, steps, forms] = evaluate(config, pipe, len(rows), inputs, guidance)
    return bank.replace(velocities=stored)


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
