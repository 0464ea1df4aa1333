"""The concept's pictures with noise, and the velocity that an attack wants there.

The frozen model draws the pictures x_0 for the concept's own prompts. A point is
x_t = (1 - t) x_0 + t ε at a t of the sampler. Its target is ε - x_0, as in flow matching; but in a
model with distilled guidance it is the frozen model's velocity for the concept's prompt at the same
guidance. There ε - x_0 is not what any prompt should give: its mean is the velocity of no guidance,
and a prompt with a smaller error could draw the concept worse. The frozen velocity also has no
noise of its own, so that fewer steps are enough.
Axis letters: N points, F pictures, S image tokens, C latent channels.
"""

from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from erase.attacks.protocol import Target
from erase.attacks.search import saved_array
from erase.data.trajectories import denoised
from erase.data.velocities import evaluate, mix, noise_steps
from erase.data.words.templates import phrase
from erase.runtime.cache import Cache
from flux_jax import sharding
from flux_jax.programs import Conditioning

# Noises of each picture: to search with, and held out.
NOISES, HELD = 4, 2


class Points(flax.struct.PyTreeNode):
    """Points at which the velocity is wanted.

    Attributes:
        latents: x_t.
        times: t.
        targets: the wanted velocity.
        prompts: number of each one's sentence.
    """

    latents: Float[Array, "*N S C"]
    times: Float[Array, "*N"]
    targets: Float[Array, "*N S C"]
    prompts: Int[Array, "*N"]

    def __getitem__(self, rows: Any) -> "Points":
        """A subset of the points."""
        return jax.tree.map(lambda leaf: leaf[rows], self)


def make_points(target: Target, examples: int, saved: Cache | None) -> tuple[Points, Points]:
    """Draw the concept's pictures with the frozen model and mix noise into them.

    Args:
        target: the attacked model; only its frozen model and configuration are used.
        examples: F.
        saved: saves the pictures, which take longest.

    Returns:
        The points to search with, NOISES of each picture, and those held out, HELD of each.
    """
    config, pipe, rng = target.config, target.pipe, target.rng()
    seeds = rng.integers(2**31, size=examples * (1 + NOISES + HELD)).tolist()
    sentences = np.arange(examples) % len(target.templates)
    texts = [phrase(template, config.concept) for template in target.templates]
    pipe.remember(texts, config.bank.batch)
    conditioning = pipe.recall(texts)
    # As the pictures of the evaluation are drawn.
    settings = config.evaluation
    as_drawn = replace(config, steps=settings.steps, guidance=settings.guidance)

    def pictures() -> np.ndarray:
        paths, _ = denoised(as_drawn, pipe, conditioning[sentences], seeds[:examples])
        return paths[:, -1].astype(np.float32)

    clean = saved_array(saved, "pictures", pictures)
    sigmas = pipe.schedule.sigmas(settings.steps, clean.shape[1])[:-1]
    split = examples * (1 + NOISES)
    parts = []
    for count, chosen in ((NOISES, seeds[examples:split]), (HELD, seeds[split:])):
        rows = np.repeat(np.arange(examples), count)
        times = sigmas[noise_steps(examples, count, len(sigmas)).ravel()]
        noise = np.asarray(pipe.noise(chosen, config.height, config.width))
        latents = np.asarray(mix(jnp.asarray(clean[rows]), jnp.asarray(noise), jnp.asarray(times)))
        targets = noise - clean[rows]
        if pipe.transformer.config.guidance_embeds:
            targets = _frozen(target, latents, times, conditioning[sentences[rows]])
        arrays = latents, times, targets, sentences[rows].astype(np.int32)
        parts.append(Points(*sharding.gather(pipe.mesh, arrays)))
    return parts[0], parts[1]


def _frozen(
    target: Target,
    latents: Float[np.ndarray, "N S C"],
    times: Float[np.ndarray, "N"],
    conditioning: Conditioning,
) -> Float[np.ndarray, "N S C"]:
    """The frozen model's velocities at points, for the concept's prompts."""

    def inputs(batch: list[int]) -> tuple[Array, Conditioning, Array]:
        return jnp.asarray(latents[batch]), conditioning[batch], jnp.asarray(times[batch])

    guidance = target.config.evaluation.guidance
    found = evaluate(target.config, target.pipe, len(times), inputs, guidance)
    return found.astype(np.float32)
