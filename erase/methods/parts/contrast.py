"""L_rsc of a run: a word's attention features on trajectories, and their contrast.

Axis letters: B batch, R trajectories, E early steps, V forms of a sentence, U = V - 1 forms without
the concept, K sampled forms, T text tokens, S image tokens, C latent channels, L blocks, N tokens.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.bank import Bank
from erase.methods.parts import losses
from erase.methods.parts.compiled import split_samples
from erase.methods.parts.forward import RunInputs, merge_batch_axes
from erase.methods.parts.samples import sample_forms, sample_latents, sample_places
from erase.methods.settings.erase_anything import Upper
from flux_jax import sharding
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning, Denoiser


def early_steps(level: Upper, steps: int) -> int:
    """Return the number of denoising steps that L_rsc uses."""
    return max(1, round(level.early * steps))


def word_features(
    model: Denoiser,
    latents: Float[Array, "B S C"],
    prompts: Conditioning,
    times: Float[Array, "B"],
    masks: Float[Array, "B T"],
    level: Upper,
) -> Float[Array, "L B N"]:
    """Compute the attention features of the prompts' words, from a pass of the dual-stream blocks.

    Args:
        model: the frozen or the trained model.
        latents: x_t.
        prompts: encoded prompts.
        times: t.
        masks: ones at the tokens of each prompt's word.
        level: the form of the features, and their blocks.
    """
    _, out = model.predict(latents, prompts, times, token_masks=masks[..., None], stop_after="dual")
    mass = out["attention"][..., 0]
    if level.blocks == "last":
        mass = mass[-1:]
    if level.rsc_form == "released":
        return losses.attention_features_released(mass)
    return losses.attention_features(mass, masks.shape[-1])


def reverse_contrast(
    lora: PyTree, run: RunInputs[object], level: Upper, key: PRNGKeyArray
) -> Float[Array, ""]:
    """Compute L_rsc at x_t of the first steps, which decide a picture's content."""
    bank, context = run.bank, run.context
    latents_key, forms_key = jax.random.split(key)
    early = early_steps(level, len(bank.times))
    latents, times, sentences = sample_latents(run, latents_key, early)
    chosen = sample_forms(bank.kinds, forms_key, context.batch_size, level.negatives)

    def features(lora: PyTree, forms: Int[Array, "B K"]) -> Float[Array, "L B K N"]:
        rows, count = sentences[:, None], forms.shape[1]
        conditioning = jax.tree.map(lambda leaf: leaf[rows, forms], bank.sentences)
        masks = split_samples(context, merge_batch_axes(bank.masks[rows, forms]))
        found = word_features(
            run.adapted(lora),
            split_samples(context, jnp.repeat(latents, count, axis=0)),
            split_samples(context, merge_batch_axes(conditioning)),
            split_samples(context, jnp.repeat(times, count)),
            masks,
            level,
        )
        return found.reshape(found.shape[0], -1, count, found.shape[-1])

    concept = features(lora, jnp.zeros_like(chosen[:, :1]))
    if level.rsc_features == "adapted":
        # A separate pass, because no gradient flows through it.
        others = features(jax.lax.stop_gradient(lora), chosen)
    else:
        assert bank.features is not None, "`completes` computes the features"
        rows, steps = sample_places(len(bank.trajectories), latents_key, context.batch_size, early)
        stored = bank.features[rows[:, None], steps[:, None], chosen - 1]
        others = jnp.moveaxis(split_samples(context, stored), 2, 0).astype(jnp.float32)
    return losses.reverse_contrastive(
        concept[:, :, 0], others[:, :, 0], others[:, :, 1:], level.temperature, level.rsc_form
    )


@functools.partial(jax.jit, static_argnames="level")
def _features(
    model: Denoiser,
    latents: Float[Array, "B S C"],
    prompts: Conditioning,
    times: Float[Array, "B"],
    masks: Float[Array, "B T"],
    *,
    level: Upper,
) -> Float[Array, "B L N"]:
    return word_features(model, latents, prompts, times, masks, level).swapaxes(0, 1)


def add_features(config: Config, pipe: Pipeline, bank: Bank, level: Upper) -> Bank:
    """Add the frozen model's features of all words but the concept, at the early steps.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        bank: the bank, on the host.
        level: settings of L_rsc.
    """
    level = replace(level, prompts=(), folder=None)
    shape = len(bank.trajectories), early_steps(level, config.steps), len(bank.kinds) - 1
    rows, steps, forms = (each.ravel() for each in np.indices(shape))
    sentences, others = np.asarray(bank.trajectory_sentences)[rows], forms + 1
    model = pipe.denoiser(jnp.asarray(bank.image_ids), config.guidance)
    parts = []
    for batch in batches(len(rows), config.bank.batch, "words' attention"):
        words = sentences[batch], others[batch]
        samples = sharding.share_out(
            pipe.mesh,
            (
                bank.trajectories[rows[batch], steps[batch]],
                bank.sentences[words],
                bank.times[steps[batch]],
                bank.masks[words],
            ),
        )
        with jax.set_mesh(pipe.mesh):
            found = _features(model, *samples, level=level)
        found = sharding.gather(pipe.mesh, found)
        parts.append(np.asarray(found, bank.trajectories.dtype))
    found = np.concatenate(parts)[: len(rows)]
    return bank.replace(features=found.reshape(*shape, *found.shape[1:]))
