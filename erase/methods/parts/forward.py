"""Forward passes of a run's frozen and trained model, on samples from its bank.

Axis letters: B batch, A anchors, S image tokens, C latent channels.
"""

from dataclasses import dataclass, replace
from typing import Generic

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from erase.data.bank import Bank
from erase.methods.parts.compiled import ReadSettingsT, SettingsT, StepContext, split_samples
from flux_jax.lora import Adapter, combine, unscaled
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.sampling import euler


@dataclass(frozen=True, eq=False)
class RunInputs(Generic[ReadSettingsT]):
    """Inputs of one run's losses, besides its adapter and a random key.

    Attributes:
        frozen: the frozen model.
        bank: precomputed data to sample from.
        context: static arguments.
    """

    frozen: Denoiser
    bank: Bank
    context: StepContext[ReadSettingsT]

    @staticmethod
    def of(context: StepContext[SettingsT], params: PyTree, bank: Bank) -> "RunInputs[SettingsT]":
        """Build the inputs of a run.

        Args:
            context: static arguments.
            params: parameters of the frozen transformer.
            bank: the run's bank.
        """
        frozen = Denoiser(context.transformer, params, bank.image_ids, context.guidance)
        return RunInputs(frozen, bank, context)

    @property
    def settings(self) -> ReadSettingsT:
        """The method's compiled settings."""
        return self.context.settings

    def adapted(self, lora: PyTree) -> Denoiser:
        """Return the trained model: the frozen one with the bank's edit and an adapter's tree."""
        parts = [Adapter(lora, self.context.alpha)]
        if self.bank.edit is not None:
            parts.append(unscaled(self.bank.edit))
        return self.frozen.replace(lora=combine([(part, 1.0) for part in parts]))

    def guided(self, guidance: float | None) -> "RunInputs[ReadSettingsT]":
        """Return a copy with another distilled guidance scale; None does not change it."""
        if guidance is None:
            return self
        return replace(self, frozen=self.frozen.replace(guidance=guidance))


def anchor_velocities(
    run: RunInputs[object],
    latents: Float[Array, "B S C"],
    concept: Conditioning,
    anchors: Conditioning,
    times: Float[Array, "B"],
) -> list[Float[Array, "B S C"]]:
    """Compute the frozen model's velocities for the concept and for each anchor, in one batch.

    Args:
        run: inputs of the run's losses.
        latents: x_t.
        concept: prompts with the concept, text [B, T, E] and pooled [B, P].
        anchors: text [B, A, T, E] and pooled [B, A, P].
        times: t.
    """
    prompts = jax.tree.map(
        lambda one, others: jnp.concatenate([one[:, None], others], axis=1), concept, anchors
    )
    batch, count = prompts.text.shape[:2]
    predicted = run.frozen.velocity(
        split_samples(run.context, jnp.repeat(latents, count, axis=0)),
        split_samples(run.context, merge_batch_axes(prompts)),
        split_samples(run.context, jnp.repeat(times, count)),
    )
    predicted = predicted.reshape(batch, count, *predicted.shape[1:])
    return [predicted[:, i] for i in range(count)]


def rollout(
    run: RunInputs[object],
    lora: PyTree,
    prompts: Conditioning,
    rows: Int[Array, "B"],
    steps: Int[Array, "B"],
) -> Float[Array, "B S C"]:
    """Denoise with the trained model from the noise of some trajectories; has no gradient.

    Args:
        run: inputs of the run's losses.
        lora: the adapter's tree.
        prompts: encoded prompts.
        rows: rows of the bank's trajectories.
        steps: number of denoising steps for each.
    """
    lora, prompts = jax.lax.stop_gradient((lora, prompts))
    model, times = run.adapted(lora), run.bank.times

    def step(index: Int[Array, ""], latents: Float[Array, "B S C"]) -> Float[Array, "B S C"]:
        velocity = model.velocity(latents, prompts, times[index])
        further = euler(latents, velocity, times[index], times[index + 1])
        return jnp.where((index < steps)[:, None, None], further, latents)

    noise = run.bank.trajectories[rows, 0].astype(jnp.float32)
    latents = jax.lax.fori_loop(0, jnp.max(steps), step, split_samples(run.context, noise))
    return split_samples(run.context, latents)


def merge_batch_axes(tree: PyTree) -> PyTree:
    """Merge the first two axes into one; a sample's rows stay next to each other."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
