"""Compute a run's bank: encode prompts, generate trajectories and pictures to preserve.

Axis letters: P points of the trajectories, F pictures, S image tokens, C latent channels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.plan import Plan
from erase.data.trajectories import denoised
from erase.data.velocities import add_noises, add_velocities
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning


def make_bank(
    config: Config,
    pipe: Pipeline,
    planned: Plan,
    points: Int[np.ndarray, "P 2"] | None = None,
) -> Bank:
    """Compute the bank, on the host, by running the frozen model in batches of equal size.

    Args:
        config: the run's configuration.
        pipe: the frozen model; it encodes those prompts of the plan that it has not cached.
        planned: from `plan_bank`.
        points: trajectories and steps at which to store velocities, see
            `erase.data.velocities.add_velocities`; None stores none.
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
    # Trajectories of the concept have its velocities, if at their guidance.
    known = points is not None and planned.drawn == 0 and planned.guidance == config.guidance
    runs, velocities = denoised(config, pipe, prompts, seeds, velocities=known)
    pictures = runs[len(rows) :, -1] if draws_pictures else None
    if planned.pictures is not None:
        pictures = _encoded(config, pipe, planned.pictures)
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


def _encoded(
    config: Config, pipe: Pipeline, pictures: UInt8[np.ndarray, "F h w 3"]
) -> Float[np.ndarray, "F S C"]:
    """Encode a user's pictures, in batches."""
    parts = [
        np.asarray(pipe.encode_pictures(pictures[batch]), pipe.transformer.dtype)
        for batch in batches(len(pictures), config.bank.batch, "encoding pictures")
    ]
    return np.concatenate(parts)[: len(pictures)]
