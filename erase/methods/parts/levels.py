"""The losses of EraseAnything's two levels, one run's.

Axis letters: B batch, S image tokens, C latent channels, T text tokens, G groups of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.methods.parts import losses
from erase.methods.parts.compiled import split_samples
from erase.methods.parts.contrast import reverse_contrast
from erase.methods.parts.forward import RunInputs, anchor_velocities
from erase.methods.parts.samples import (
    add_noise,
    mix_noise,
    sample_latents,
    sample_noises,
    sample_pictures,
    sample_student_latents,
    stored_velocities,
)
from erase.methods.parts.step import Metrics
from erase.methods.settings.erase_anything import Lower, Settings, Upper
from flux_jax.programs import Conditioning


@dataclass(frozen=True)
class Levels:
    """Settings that are compiled into the steps.

    Attributes:
        lower: settings of the erasing level.
        upper: settings of the preserving level.
        adaptive: whether the joint update's weights follow the preserving loss.
    """

    lower: Lower
    upper: Upper
    adaptive: bool

    @classmethod
    def of(cls, config: Config) -> "Levels":
        """Return the settings of a configuration, without those that only the bank depends on."""
        own = config.method_settings(Settings)
        return cls(
            lower=replace(own.lower, eta=0.0, erase_to="", stand_in=None),
            upper=replace(own.upper, prompts=(), folder=None),
            adaptive=own.alternation == "adaptive",
        )


class Batch(NamedTuple):
    """Inputs of an adapted pass, and what its results are compared with.

    Attributes:
        latents: x_t.
        times: t.
        prompts: encoded prompts.
        masks: groups of the prompts' tokens whose attention is needed; None if none is.
        target: the velocity's target, without gradient; None if none is needed.
    """

    latents: Float[Array, "B S C"]
    times: Float[Array, "B"]
    prompts: Conditioning
    masks: Float[Array, "B T G"] | None
    target: Float[Array, "B S C"] | None


def _erasing_batch(lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray) -> Batch:
    """Sample x_t for the lower level, with the target of L_esd."""
    level, bank, context = run.settings.lower, run.bank, run.context
    student = level.trajectories == "student"
    sample = sample_student_latents(run, lora, key) if student else sample_latents(run, key)
    latents, times, sentences = sample
    concept = split_samples(context, bank.sentences[sentences, 0])
    masks = split_samples(context, bank.masks[sentences, 0])
    # All of the concept's tokens are one group; in the released form, each is a group.
    released = level.attn_form == "released"
    groups = masks[..., None] * jnp.eye(masks.shape[-1]) if released else masks[..., None]
    target = None
    if level.esd:
        velocities = None if student else stored_velocities(run, key)
        if velocities is None:
            anchors = split_samples(context, bank.anchors[sentences])
            velocities = anchor_velocities(run, latents, concept, anchors, times)
        conditional, *others = velocities
        target = losses.esd_target(conditional, others[0], others[-1], bank.eta)
    return Batch(latents, times, concept, groups if level.attn else None, target)


def _erasing_losses(
    run: RunInputs[Levels],
    batch: Batch,
    predicted: Float[Array, "B S C"] | None,
    out: Mapping[str, Array],
) -> Metrics:
    """Compute L_esd and L_attn from a pass on their batch."""
    level, metrics = run.settings.lower, {}
    if level.esd:
        metrics["esd"] = _error(predicted, batch)
    if level.attn:
        mass = out["attention"]
        metrics["attn"] = (
            losses.attention_to_concept_released(mass)
            if level.attn_form == "released"
            else losses.attention_to_concept(mass[..., 0], run.bank.masks.shape[-1])
        )
    return metrics


def lower_losses(
    lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute L_esd and L_attn of one run at a sampled x_t, from one forward pass.

    Returns:
        Their weighted sum, and the parts.
    """
    level, batch = run.settings.lower, _erasing_batch(lora, run, key)
    predicted, out = run.adapted(lora).predict(
        batch.latents,
        batch.prompts,
        batch.times,
        token_masks=batch.masks,
        # Only L_esd needs the velocity.
        stop_after=None if level.esd else "dual",
    )
    metrics = _erasing_losses(run, batch, predicted, out)
    return _weighted(metrics, level), metrics


def upper_losses(
    lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute L_lora of one run on the pictures to preserve, and L_rsc at the early, noisy steps.

    Returns:
        Their weighted sum, and the parts.
    """
    level = run.settings.upper
    lora_key, rsc_key = jax.random.split(key)
    metrics: Metrics = {}
    if level.lora:
        batch = _preserving_batch(run, lora_key)
        predicted = run.adapted(lora).velocity(batch.latents, batch.prompts, batch.times)
        metrics["lora"] = _error(predicted, batch)
    if level.rsc:
        metrics["rsc"] = reverse_contrast(lora, run, level, rsc_key)
    return _weighted(metrics, level), metrics


def _preserving_batch(run: RunInputs[Levels], key: PRNGKeyArray) -> Batch:
    """Sample pictures to preserve, mix in noise, and compute or look up the target of L_lora.

    With a guidance-distilled model, the paper's target has a non-zero expected gradient at an
    adapter that changes nothing, because a guided velocity is not the mean over guided pictures.
    With the frozen model's velocity as target, that gradient is zero, without variance from the
    noise.
    """
    bank, context, level = run.bank, run.context, run.settings.upper
    size, levels, target = context.batch_size, len(bank.times), None
    if level.noises:
        assert bank.noises is not None, "`make_bank` computes the noises"
        assert bank.noise_velocities is not None
        rows, which, steps = sample_noises(len(bank.pictures), level.noises, key, size, levels)
        pictures, noise = bank.pictures[rows], bank.noises[rows, which]
        latents, times = mix_noise(run, pictures, noise, steps)
        target = split_samples(context, bank.noise_velocities[rows, which])
    else:
        rows, steps, noise_key = sample_pictures(len(bank.pictures), key, size, levels)
        latents, times, clean, noise = add_noise(run, bank.pictures[rows], steps, noise_key)
        if level.lora_target == "noise":
            target = noise.astype(jnp.float32) - clean.astype(jnp.float32)
    prompts = split_samples(context, bank.picture_prompts[rows])
    if target is None:
        target = run.frozen.velocity(latents, prompts, times)
    return Batch(latents, times, prompts, None, target)


def _error(predicted: Float[Array, "B S C"] | None, batch: Batch) -> Float[Array, ""]:
    """Return the mean squared error to a batch's target."""
    assert predicted is not None
    assert batch.target is not None
    return losses.squared_error(predicted, batch.target)


def _weighted(metrics: Metrics, level: Lower | Upper) -> Float[Array, ""]:
    """Sum the losses with the level's weights of the same names."""
    return sum((getattr(level, name) * value for name, value in metrics.items()), jnp.zeros(()))


def both_losses(
    lora: PyTree, run: RunInputs[Levels], lower_key: PRNGKeyArray, upper_key: PRNGKeyArray
) -> tuple[tuple[Array, Metrics], tuple[Array, Metrics]]:
    """Compute both levels' losses, with one pass for L_esd and L_lora if both are used."""
    lower, upper = run.settings.lower, run.settings.upper
    if not (lower.esd and upper.lora):
        return lower_losses(lora, run, lower_key), upper_losses(lora, run, upper_key)
    lora_key, rsc_key = jax.random.split(upper_key)
    batches = _erasing_batch(lora, run, lower_key), _preserving_batch(run, lora_key)
    size = run.context.batch_size
    if batches[0].masks is not None:
        # L_lora needs no attention.
        batches = batches[0], batches[1]._replace(masks=jnp.zeros_like(batches[0].masks))
    both: Batch = jax.tree.map(lambda *parts: jnp.concatenate(parts), *batches)
    both = split_samples(run.context, both)
    predicted, out = run.adapted(lora).predict(
        both.latents, both.prompts, both.times, token_masks=both.masks
    )
    out = {name: each[:, :size] for name, each in out.items()}
    assert predicted is not None, "the pass was not stopped early"
    metrics = _erasing_losses(run, batches[0], predicted[:size], out)
    more: Metrics = {"lora": _error(predicted[size:], batches[1])}
    if upper.rsc:
        more["rsc"] = reverse_contrast(lora, run, upper, rsc_key)
    return (_weighted(metrics, lower), metrics), (_weighted(more, upper), more)
