"""Samples drawn from a run's bank, and the transformer on them: what methods' losses are made of.

Axis letters: B batch, D denoising steps, A anchors, K irrelevant words, V forms of a sentence,
T text tokens, S image tokens, C latent channels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.bank import POOL, SYNONYM, Bank
from erase.setup import Setup, split_samples
from flux_jax.lora import Adapter, combine, unscaled
from flux_jax.programs import Conditioning, apply_transformer

# Rows of a bank, and for each which of the denoising steps.
Places = tuple[Int[Array, "B"], Int[Array, "B"]]


class Counts(NamedTuple):
    """How much there is to draw from: trajectories, kept pictures, and each denoising step's t."""

    trajectories: int
    pictures: int
    times: Float[Array, "D"]

    @property
    def steps(self) -> int:
        """D."""
        return len(self.times)


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
        parts = [Adapter(lora, setup.alpha)]  # pyright: ignore[reportCallIssue]
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


def draw_places(count: int, key: PRNGKeyArray, setup: Setup, steps: int) -> Places:
    """Draws rows of the bank and, for each, one of so many first denoising steps."""
    row_key, step_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (setup.batch_size,), 0, count)
    return rows, jax.random.randint(step_key, (setup.batch_size,), 0, steps)


def draw_latents(
    bank: Bank, key: PRNGKeyArray, setup: Setup, steps: int
) -> tuple[Float[Array, "B S C"], Float[Array, "B"], Int[Array, "B"]]:
    """Draws x_t, its t and its sentence, among the first steps of the trajectories."""
    rows, step = draw_places(len(bank.trajectories), key, setup, steps)
    latents = split_samples(setup, bank.trajectories[rows, step])
    return latents, split_samples(setup, bank.times[step]), bank.trajectory_sentences[rows]


def student_latents(
    lora: PyTree, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, "B S C"], Float[Array, "B"], Int[Array, "B"]]:
    """What `draw_latents` draws, but on the adapted model's own way from the same noise."""
    rows, steps = draw_places(len(bank.trajectories), key, setup, len(bank.times))
    sentences = bank.trajectory_sentences[rows]
    concept = split_samples(setup, bank.sentences[sentences, 0])
    latents = walked(lora, params, concept, rows, steps, bank, setup)
    return latents, split_samples(setup, bank.times[steps]), sentences


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


def draw_pictures(
    count: int, key: PRNGKeyArray, setup: Setup, steps: int
) -> tuple[Int[Array, "B"], Int[Array, "B"], PRNGKeyArray]:
    """Draws kept pictures, a step for each, and the key of their noise."""
    keys = jax.random.split(key, 3)
    rows = jax.random.randint(keys[0], (setup.batch_size,), 0, count)
    return rows, jax.random.randint(keys[1], (setup.batch_size,), 0, steps), keys[2]


class Noised(NamedTuple):
    """Pictures with noise mixed in: x_t = (1 - t) x_0 + t ε, t, x_0 and ε."""

    latents: Float[Array, "B S C"]
    times: Float[Array, "B"]
    clean: Float[Array, "B S C"]
    noise: Float[Array, "B S C"]


def noised(
    pictures: Float[Array, "B S C"],
    steps: Int[Array, "B"],
    key: PRNGKeyArray,
    bank: Bank,
    setup: Setup,
) -> Noised:
    """Mixes noise into pictures, as much as each one's denoising step has."""
    clean = split_samples(setup, pictures.astype(jnp.float32))
    noise = split_samples(setup, jax.random.normal(key, clean.shape))
    times = split_samples(setup, bank.times[steps])
    latents = (1 - times[:, None, None]) * clean + times[:, None, None] * noise
    return Noised(latents, times, clean, noise)


def draw_forms(bank: Bank, key: PRNGKeyArray, setup: Setup, count: int) -> Int[Array, "B 1+K"]:
    """Draws for each sample the form with a synonym, and K with different irrelevant words.

    The pools of irrelevant words give in turn, so that each has its share.
    """
    chance = jax.random.uniform(key, (setup.batch_size, len(bank.kinds)))
    synonym = jnp.argmax(jnp.where(bank.kinds == SYNONYM, chance, -1), axis=-1)
    same = bank.kinds[:, None] == bank.kinds
    before = jnp.sum(same & (chance[:, None, :] < chance[:, :, None]), axis=-1)
    turn = jnp.where(bank.kinds >= POOL, before * (len(bank.kinds) + POOL) + bank.kinds, jnp.inf)
    others = jnp.argsort(turn, axis=-1)[:, :count]
    return jnp.concatenate([synonym[:, None], others], axis=-1)


def joined(tree: PyTree) -> PyTree:
    """The first two axes as one, so that a sample's rows stay beside each other."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
