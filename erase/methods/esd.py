"""ESD: trains the concept's velocity to point away from the concept (Gandikota et al., 2023).

    E ‖v_θ(x_t, c) - [v_o(x_t, g) - η (v_o(x_t, c) - v_o(x_t, ∅))]‖²

where x_t is on a trajectory from noise to a picture of c, and g is the empty prompt ∅ or another.
The authors' later releases start from v_o(c) instead of v_o(∅), so their η' is 1 + η.
"""

from dataclasses import replace

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.plan import Needs
from erase.data.words.irrelevant import Words
from erase.methods.base import Method, adamw_step
from erase.methods.parts.compiled import split_samples
from erase.methods.parts.forward import RunInputs, anchor_velocities
from erase.methods.parts.losses import esd_target, squared_error
from erase.methods.parts.samples import (
    Sample,
    sample_latents,
    sample_student_latents,
    stored_velocities,
)
from erase.methods.parts.step import Metrics
from erase.methods.settings.esd import FIELDS, Settings
from flux_jax.pipeline import Pipeline


def sample(trajectories: str, run: RunInputs[object], lora: PyTree, key: PRNGKeyArray) -> Sample:
    """Sample on the trained model's trajectories ("student") or the frozen one's ("teacher")."""
    if trajectories == "student":
        return sample_student_latents(run, lora, key)
    return sample_latents(run, key)


def stored(trajectories: str, run: RunInputs[object], key: PRNGKeyArray) -> list[Array] | None:
    """Look up the frozen model's velocities at what `sample` samples; None computes them."""
    return None if trajectories == "student" else stored_velocities(run, key)


def erasing(
    lora: PyTree, run: RunInputs[object], sample: Sample, velocities: list[Array] | None = None
) -> Float[Array, ""]:
    """Compute the loss at a sample.

    Args:
        lora: the adapter's tree.
        run: inputs of the run's losses, at the loss's guidance.
        sample: x_t, t and sentences.
        velocities: the frozen model's for the concept and each anchor; by default computed.
    """
    latents, times, rows = sample
    bank = run.bank
    concept, anchors = split_samples(run.context, (bank.sentences[rows, 0], bank.anchors[rows]))
    if velocities is None:
        velocities = anchor_velocities(run, latents, concept, anchors, times)
    conditional, *others = velocities
    target = esd_target(conditional, others[0], others[-1], bank.eta)
    return squared_error(run.adapted(lora).velocity(latents, concept, times), target)


def losses(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the loss of one run."""
    settings = run.settings
    batch = jax.lax.stop_gradient(sample(settings.trajectories, run, lora, key))
    velocities = stored(settings.trajectories, run, key)
    loss = erasing(lora, run.guided(settings.guidance), batch, velocities)
    return loss, {"esd": loss}


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request the concept's sentences and the prompts of the target."""
    del words, pipe
    settings = config.method_settings(Settings)
    return Needs(
        stand_in=settings.stand_in,
        towards=settings.erase_to,
        eta=settings.eta,
        velocities="esd" if settings.trajectories == "teacher" else "",
        guidance=settings.guidance,
    )


STEP = adamw_step("esd", losses, lambda config: config.method_settings(Settings))
METHOD = Method(
    title="ESD",
    fields=FIELDS,
    needs=needs,
    steps=lambda config: {"esd": STEP},
    compiled=lambda config: replace(
        config.method_settings(Settings), eta=0.0, stand_in=None, erase_to=""
    ),
    weights=lambda config: {"esd": 1.0},
)
