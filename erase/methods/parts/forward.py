"""The transformer on samples of a bank: velocities of the adapted and of the frozen model.

Axis letters: B batch, A anchors, S image tokens, C latent channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from erase.data.bank import Bank
from erase.methods.parts.compiled import Setup, split_samples
from flux_jax.lora import Adapter, combine, unscaled
from flux_jax.programs import Conditioning, apply_transformer


def apply(
    setup: Setup,
    params: PyTree,
    lora: PyTree | None,
    latents: Float[Array, "B S C"],
    conditioning: Conditioning,
    times: Float[Array, "B"],
    bank: Bank,
    *,
    guidance: float | None = None,
    **options: Any,
) -> tuple[Float[Array, "B S C"] | None, dict[str, Array]]:
    """The transformer with an adapter's tree, or frozen without one.

    Args:
        setup: what is compiled in.
        params: the frozen transformer's parameters.
        lora: the tree, as it is trained.
        latents: x_t.
        conditioning: encoded prompts.
        times: t.
        bank: knows the image tokens' positions.
        guidance: distilled guidance scale; by default the setup's.
        **options: of `FluxTransformer`.
    """
    adapter = None
    if lora is not None:
        parts = [Adapter(lora, setup.alpha)]
        if bank.edit is not None:
            parts.append(unscaled(bank.edit))
        adapter = combine([(part, 1.0) for part in parts])
    return apply_transformer(
        setup.transformer,
        params,
        adapter,
        latents,
        conditioning,
        times,
        bank.image_ids,
        setup.guidance if guidance is None else guidance,
        **options,
    )


def velocity(*arguments: Any, guidance: float | None = None) -> Float[Array, "B S C"]:
    """The velocity alone; arguments are those of `apply`."""
    predicted, _ = apply(*arguments, guidance=guidance)
    assert predicted is not None
    return predicted


def teacher(
    setup: Setup,
    params: PyTree,
    latents: Float[Array, "B S C"],
    concept: Conditioning,
    anchors: Conditioning,
    times: Float[Array, "B"],
    bank: Bank,
    *,
    guidance: float | None = None,
) -> list[Float[Array, "B S C"]]:
    """The frozen model's velocities for the concept and for each anchor, in one batch."""
    prompts = jax.tree.map(
        lambda one, others: jnp.concatenate([one[:, None], others], axis=1), concept, anchors
    )
    batch, count = prompts.text.shape[:2]
    predicted = velocity(
        setup,
        params,
        None,
        split_samples(setup, jnp.repeat(latents, count, axis=0)),
        split_samples(setup, joined(prompts)),
        split_samples(setup, jnp.repeat(times, count)),
        bank,
        guidance=guidance,
    )
    predicted = predicted.reshape(batch, count, *predicted.shape[1:])
    return [predicted[:, i] for i in range(count)]


def walked(
    lora: PyTree,
    params: PyTree,
    shown: Conditioning,
    rows: Int[Array, "B"],
    steps: Int[Array, "B"],
    bank: Bank,
    setup: Setup,
) -> Float[Array, "B S C"]:
    """Where the adapted model comes to from the noise of some trajectories; has no gradient.

    Args:
        lora: the adapter.
        params: the frozen transformer's.
        shown: what the pictures are to show.
        rows: of the bank's trajectories.
        steps: how many denoising steps are taken.
        bank: the run's.
        setup: what is compiled in.
    """
    fixed, shown = jax.lax.stop_gradient((lora, shown))

    def step(index: Int[Array, ""], latents: Float[Array, "B S C"]) -> Float[Array, "B S C"]:
        times = jnp.broadcast_to(bank.times[index], steps.shape)
        predicted = velocity(setup, params, fixed, latents, shown, times, bank)
        further = latents + (bank.times[index + 1] - bank.times[index]) * predicted
        return jnp.where((index < steps)[:, None, None], further, latents)

    noise = split_samples(setup, bank.trajectories[rows, 0].astype(jnp.float32))
    return split_samples(setup, jax.lax.fori_loop(0, jnp.max(steps), step, noise))


def joined(tree: PyTree) -> PyTree:
    """The first two axes as one, so that a sample's rows stay beside each other."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
