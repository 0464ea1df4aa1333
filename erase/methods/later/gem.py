"""GEM: the concept's velocity is attracted by an anchor's, away from its own (Grebe et al., 2026).

    γ / n Σ max(0, ‖v_θ(x_t, c) - v_o(x_t, a)‖ - η ‖v_θ(x_t, c) - v_o(x_t, c)‖)

over n points x_t of the adapted model's own trajectories, at several of their first, noisy steps;
a is the concept's sentence with the anchor in its place. A point where the velocity is nearer to
the anchor's has no gradient (for η = 1). Norms are over all tokens and channels of a latent. The
authors count 250 latents in all, so that about 42 updates with 6 points each are theirs; they draw
trajectories at guidance 3, here that of all velocities (`guidance`).
Axis letters: B batch, K points of a trajectory, E early steps, S image tokens, C latent channels.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.plan import Needs
from erase.data.words.irrelevant import Words
from erase.methods.base import Drawn, Method, adamw_step
from erase.methods.parts.compiled import StepContext, split_samples
from erase.methods.parts.forward import RunInputs, anchor_velocities, merge_batch_axes
from erase.methods.parts.losses import TINY
from erase.methods.parts.samples import Counts, sample_points
from erase.methods.parts.step import Metrics
from erase.methods.settings.gem import FIELDS, Settings
from flux_jax.pipeline import Pipeline
from flux_jax.sampling import euler


def distance(one: Float[Array, "B S C"], other: Float[Array, "B S C"]) -> Float[Array, "B"]:
    """Norm of the difference of each sample's velocities; its gradient is 0 where it is 0."""
    difference = one.astype(jnp.float32) - other.astype(jnp.float32)
    return jnp.sqrt(jnp.sum(jnp.square(difference), axis=(1, 2)) + TINY) - TINY**0.5


def margin(
    velocity: Float[Array, "B S C"],
    concept: Float[Array, "B S C"],
    anchor: Float[Array, "B S C"],
    eta: float,
) -> Float[Array, ""]:
    """Compute the mean over points of max(0, ‖v - anchor‖ - η ‖v - concept‖).

    Args:
        velocity: the adapted model's velocity for the concept.
        concept: the frozen model's, for the concept.
        anchor: the frozen model's, for the anchor.
        eta: η.
    """
    away = distance(velocity, anchor) - eta * distance(velocity, concept)
    return jnp.mean(jnp.maximum(away, 0))


def early_latents(
    run: RunInputs[Settings], lora: PyTree, rows: Int[Array, "B"], count: int
) -> Float[Array, "E B S C"]:
    """Denoise with the adapted model, without gradient, and keep x_t before each early step."""
    bank = run.bank
    concept = split_samples(run.context, bank.sentences[bank.trajectory_sentences[rows], 0])
    model = run.adapted(jax.lax.stop_gradient(lora))
    noise = split_samples(run.context, bank.trajectories[rows, 0].astype(jnp.float32))

    def step(latents: Array, levels: tuple[Array, Array]) -> tuple[Array, Array]:
        latents = euler(latents, model.velocity(latents, concept, levels[0]), levels[0], levels[1])
        return latents, latents

    _, latents = jax.lax.scan(step, noise, (bank.times[: count - 1], bank.times[1:count]))
    return jnp.concatenate([noise[None], latents])


def losses(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the loss of one run."""
    settings, bank, context = run.settings, run.bank, run.context
    early = min(settings.early, len(bank.times))
    trajectories = len(bank.trajectories)
    rows, steps = sample_points(trajectories, key, context.batch_size, early, settings.points)
    visited = jax.lax.stop_gradient(early_latents(run, lora, rows, early))
    # A sample is a trajectory; its points become samples of one batch.
    latents = visited[steps, jnp.arange(len(rows))[:, None]]
    sentences = jnp.repeat(bank.trajectory_sentences[rows], steps.shape[1])
    latents, times = merge_batch_axes((latents, bank.times[steps]))
    latents, times, concept, anchors = split_samples(
        context, (latents, times, bank.sentences[sentences, 0], bank.anchors[sentences])
    )
    conditional, anchor = anchor_velocities(run, latents, concept, anchors, times)
    found = run.adapted(lora).velocity(latents, concept, times)
    loss = settings.gamma * margin(found, conditional, anchor, settings.eta)
    return loss, {"gem": loss}


def drawn(key: PRNGKeyArray, context: StepContext[Settings], counts: Counts) -> Drawn:
    """Return the sampled places; the adapted model's trajectories start from the same noise."""
    settings = context.settings
    early = min(settings.early, counts.steps)
    rows, steps = sample_points(
        counts.trajectories, key, context.batch_size, early, settings.points
    )
    return {"": ("trajectories", (jnp.repeat(rows, steps.shape[1]), steps.ravel()))}


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request the concept's sentences, also with the anchor in its place."""
    del pipe
    return Needs(stand_in=config.method_settings(Settings).anchor or words.first)


STEP = adamw_step("gem", losses, lambda config: config.method_settings(Settings), drawn=drawn)
METHOD = Method(
    title="GEM",
    fields=FIELDS,
    needs=needs,
    steps=lambda config: {"gem": STEP},
    compiled=lambda config: replace(config.method_settings(Settings), anchor=""),
    weights=lambda config: {"gem": 1.0},
)
