"""Compute a run's bank: encode prompts, generate trajectories and pictures to preserve.

Axis letter: P points of the trajectories.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.plan import Plan
from erase.data.trajectories import denoised, denoised_with_velocities
from erase.data.velocities import add_noises, add_velocities
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning


def make_bank(
    config: Config,
    pipe: Pipeline,
    planned: Plan,
    points: Int[np.ndarray, "P 2"] | None = None,
) -> Bank:
    """Compute the bank by running the frozen model, in batches of equal size, with progress bars.

    Args:
        config: the run's configuration.
        pipe: the frozen model; it encodes those prompts of the plan that it has not cached.
        planned: from `plan_bank`.
        points: trajectories and steps at which to store velocities, see
            `erase.data.velocities.add_velocities`; None stores none.

    Returns:
        The bank, on the host.
    """
    pipe.remember(planned.prompts, config.bank.batch)

    def recall(prompts: Sequence[Sequence[str]]) -> Conditioning:
        rows = [pipe.recall(row) for row in prompts]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    sentences = recall([group.prompts for group in planned.groups])
    anchors, picture_prompts = recall(planned.anchors), None
    rows = np.arange(config.bank.trajectories) % config.bank.sentences
    prompts, seeds = sentences[rows, planned.drawn], planned.trajectory_seeds
    if planned.shown:
        picture_prompts = pipe.recall(planned.shown)
    if draws_pictures := picture_prompts is not None and planned.pictures is None:
        prompts = jax.tree.map(lambda *both: np.concatenate(both), prompts, picture_prompts)
        seeds += planned.picture_seeds
    velocities = None
    # Trajectories of the concept have its velocities, if at their guidance.
    if points is not None and planned.drawn == 0 and planned.guidance == config.guidance:
        runs, velocities = denoised_with_velocities(config, pipe, prompts, seeds)
        velocities = velocities[: len(rows)]
    else:
        runs = denoised(config, pipe, prompts, seeds)
    pictures = runs[len(rows) :, -1] if draws_pictures else None
    if planned.pictures is not None:
        pictures = np.concatenate(
            [
                np.asarray(pipe.encode_pictures(planned.pictures[batch]), pipe.transformer.dtype)
                for batch in batches(len(planned.pictures), config.bank.batch, "encoding pictures")
            ]
        )[: len(planned.pictures)]
    image_ids = pipe.image_ids(config.height, config.width)
    # NumPy arrays, until they are moved to the devices.
    arrays: dict[str, Any] = {
        "sentences": sentences,
        "masks": planned.masks,
        "kinds": np.asarray(planned.kinds, np.int32),
        "anchors": anchors,
        "eta": np.float32(planned.eta),
        "trajectories": runs[: len(rows)],
        "trajectory_sentences": rows.astype(np.int32),
        "pictures": pictures,
        "picture_prompts": picture_prompts,
        "times": np.asarray(pipe.schedule.sigmas(config.steps, len(image_ids))[:-1], np.float32),
        "image_ids": np.asarray(image_ids),
    }
    bank = Bank(**arrays)
    if planned.noise_seeds:
        bank = add_noises(config, pipe, bank, planned.noise_seeds)
    if points is None:
        return bank
    return add_velocities(config, pipe, bank, points, planned.guidance, velocities)
