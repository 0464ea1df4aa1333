"""EraseAnything's two levels: what the lower one erases with, what the upper one preserves with.

Their losses; `erase.methods.erase_anything` makes updates of them.
Axis letters: B batch, K irrelevant words, V forms of a sentence, S image tokens, L dual-stream
blocks.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.methods.parts import losses
from erase.methods.parts.compiled import split_samples
from erase.methods.parts.forward import RunInputs, anchor_velocities, merge_batch_axes
from erase.methods.parts.samples import (
    add_noise,
    sample_forms,
    sample_latents,
    sample_pictures,
    sample_student_latents,
)
from erase.methods.parts.settings import EraseAnything as Settings
from erase.methods.parts.settings import Lower, Upper
from erase.methods.parts.step import Metrics


@dataclass(frozen=True)
class Levels:
    """What is compiled into the steps.

    Attributes:
        lower: settings of the erasing level.
        upper: settings of the preserving level.
        adaptive: whether the joint update's weights follow what is being preserved.
    """

    lower: Lower
    upper: Upper
    adaptive: bool

    @classmethod
    def of(cls, config: Config) -> "Levels":
        """Without what a bank is made of."""
        own = config.method_settings(Settings)
        return cls(
            lower=replace(own.lower, eta=0.0, erase_to="", stand_in=None),
            upper=replace(own.upper, prompts=(), folder=None),
            adaptive=own.alternation == "adaptive",
        )


def lower_losses(
    lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """L_esd and L_attn of one run at x_t on the way from noise to picture, from one pass.

    Returns:
        Their weighted sum, and the parts.
    """
    level, bank, context = run.settings.lower, run.bank, run.context
    student = level.trajectories == "student"
    taken = sample_student_latents(run, lora, key) if student else sample_latents(run, key)
    latents, times, sentences = taken
    concept = split_samples(context, bank.sentences[sentences, 0])
    masks = split_samples(context, bank.masks[sentences, 0])
    released = level.attn_form == "released"
    # All of the concept's tokens are one group, or each is one of its own.
    groups = masks[..., None] * jnp.eye(masks.shape[-1]) if released else masks[..., None]
    predicted, out = run.adapted(lora).predict(
        latents,
        concept,
        times,
        token_masks=groups if level.attn else None,
        # The velocity is asked for by L_esd alone.
        stop_after=None if level.esd else "dual",
    )
    metrics: Metrics = {}
    if level.esd:
        assert predicted is not None
        anchors = split_samples(context, bank.anchors[sentences])
        conditional, *others = anchor_velocities(run, latents, concept, anchors, times)
        target = losses.esd_target(conditional, others[0], others[-1], bank.eta)
        metrics["esd"] = losses.squared_error(predicted, target)
    if level.attn:
        mass = out["attention"]
        metrics["attn"] = (
            losses.attention_to_concept_released(mass)
            if released
            else losses.attention_to_concept(mass[..., 0], masks.shape[-1])
        )
    return _weighted(metrics, level), metrics


def upper_losses(
    lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """L_lora of one run on the kept pictures, and L_rsc at the first, noisy steps.

    Returns:
        Their weighted sum, and the parts.
    """
    level = run.settings.upper
    lora_key, rsc_key = jax.random.split(key)
    metrics: Metrics = {}
    if level.lora:
        metrics["lora"] = _preservation(lora, run, lora_key)
    if level.rsc:
        metrics["rsc"] = _reverse_contrastive(lora, run, rsc_key)
    return _weighted(metrics, level), metrics


def _preservation(lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray) -> Float[Array, ""]:
    """L_lora at a kept picture with noise mixed in.

    With a model whose guidance is distilled the paper's target has a slope at an adapter that
    changes nothing: guided pictures are not what a guided velocity is the mean of. The frozen
    model's velocity has none, and no variance from the noise.
    """
    bank, batch = run.bank, run.context.batch_size
    rows, steps, noise_key = sample_pictures(len(bank.pictures), key, batch, len(bank.times))
    latents, times, clean, noise = add_noise(run, bank.pictures[rows], steps, noise_key)
    prompts = split_samples(run.context, bank.picture_prompts[rows])
    predicted = run.adapted(lora).velocity(latents, prompts, times)
    if run.settings.upper.lora_target == "noise":
        return losses.flow_matching(predicted, clean, noise)
    return losses.squared_error(predicted, run.frozen.velocity(latents, prompts, times))


def _reverse_contrastive(
    lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray
) -> Float[Array, ""]:
    """L_rsc at x_t of the first steps, where a picture's content is decided."""
    level, bank, context = run.settings.upper, run.bank, run.context
    latents_key, forms_key = jax.random.split(key)
    early = early_steps(level, len(bank.times))
    latents, times, sentences = sample_latents(run, latents_key, early)
    chosen = sample_forms(bank.kinds, forms_key, context.batch_size, level.negatives)

    def features(lora: PyTree, forms: Int[Array, "B V"]) -> Float[Array, "L B V S"]:
        rows, count = sentences[:, None], forms.shape[1]
        conditioning = jax.tree.map(lambda leaf: leaf[rows, forms], bank.sentences)
        masks = split_samples(context, merge_batch_axes(bank.masks[rows, forms]))
        _, out = run.adapted(lora).predict(
            split_samples(context, jnp.repeat(latents, count, axis=0)),
            split_samples(context, merge_batch_axes(conditioning)),
            split_samples(context, jnp.repeat(times, count)),
            token_masks=masks[..., None],
            stop_after="dual",
        )
        mass = out["attention"][..., 0]
        if level.blocks == "last":
            mass = mass[-1:]
        found = (
            losses.attention_features_released(mass)
            if level.rsc_form == "released"
            else losses.attention_features(mass, bank.masks.shape[-1])
        )
        return found.reshape(found.shape[0], -1, count, found.shape[-1])

    concept = features(lora, jnp.zeros_like(chosen[:, :1]))
    # A pass of its own, since the gradient needs none of it.
    others = features(jax.lax.stop_gradient(lora), chosen)
    return losses.reverse_contrastive(
        concept[:, :, 0], others[:, :, 0], others[:, :, 1:], level.temperature, level.rsc_form
    )


def early_steps(level: Upper, steps: int) -> int:
    """How many of the denoising steps L_rsc looks at."""
    return max(1, round(level.early * steps))


def _weighted(metrics: Metrics, level: Lower | Upper) -> Float[Array, ""]:
    """The losses' sum under the weights of the same names."""
    return sum((getattr(level, name) * value for name, value in metrics.items()), jnp.zeros(()))
