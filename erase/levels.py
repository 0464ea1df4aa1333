"""What each level of one run minimises, at samples drawn from its bank.

Axis letters: B batch, A anchors, K irrelevant words, V forms of a sentence, T text tokens, S image
tokens, C latent channels, L dual-stream blocks, H heads, N tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase import losses
from erase.bank import POOL, SYNONYM, Bank
from erase.config import Lower, Upper
from erase.setup import Setup, split_samples
from flux_jax.lora import Adapter
from flux_jax.programs import Conditioning, apply_transformer

Metrics = dict[str, Float[Array, ""]]


def lower_losses(
    lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, ""], Metrics]:
    """L_esd and L_attn of one run at x_t on the way from noise to picture, from one pass.

    Returns:
        Their weighted sum, and the parts.
    """
    level = setup.lower
    if level.trajectories == "student":
        latents, times, sentences = _student_latents(lora, params, bank, key, setup)
    else:
        latents, times, sentences = _draw_latents(bank, key, setup, len(bank.times))
    concept = split_samples(setup, bank.sentences[sentences, 0])
    masks = split_samples(setup, bank.masks[sentences, 0])
    released = level.attn_form == "released"
    # All of the concept's tokens are one group, or each is one of its own.
    groups = masks[..., None] * jnp.eye(masks.shape[-1]) if released else masks[..., None]
    velocity, out = _apply(
        setup,
        params,
        lora,
        latents,
        concept,
        times,
        bank,
        token_masks=groups if level.attn else None,
        # The velocity is asked for by L_esd alone.
        stop_after=None if level.esd else "dual",
    )
    metrics: Metrics = {}
    if level.esd:
        assert velocity is not None
        anchors = split_samples(setup, bank.anchors[sentences])
        conditional, *anchors = _teacher(setup, params, latents, concept, anchors, times, bank)
        target = losses.esd_target(conditional, anchors[0], anchors[-1], bank.eta)
        metrics["esd"] = losses.squared_error(velocity, target)
    if level.attn:
        mass = out["attention"]
        metrics["attn"] = (
            losses.attention_to_concept_released(mass)
            if released
            else losses.attention_to_concept(mass[..., 0], masks.shape[-1])
        )
    return _weighted(metrics, level), metrics


def upper_losses(
    lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, ""], Metrics]:
    """L_lora of one run on the kept pictures, and L_rsc at the first, noisy steps.

    Returns:
        Their weighted sum, and the parts.
    """
    level = setup.upper
    lora_key, rsc_key = jax.random.split(key)
    metrics: Metrics = {}
    if level.lora:
        metrics["lora"] = _preservation(lora, params, bank, lora_key, setup)
    if level.rsc:
        metrics["rsc"] = _reverse_contrastive(lora, params, bank, rsc_key, setup)
    return _weighted(metrics, level), metrics


def _preservation(
    lora: PyTree, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> Float[Array, ""]:
    """L_lora at a kept picture with noise mixed in.

    With a model whose guidance is distilled the paper's target has a slope at an adapter that
    changes nothing: guided pictures are not what a guided velocity is the mean of. The frozen
    model's velocity has none, and no variance from the noise.
    """
    rows, steps, noise_key = _draw_pictures(len(bank.pictures), key, setup, len(bank.times))
    clean = split_samples(setup, bank.pictures[rows].astype(jnp.float32))
    noise = split_samples(setup, jax.random.normal(noise_key, clean.shape))
    times = split_samples(setup, bank.times[steps])
    mixed = (1 - times[:, None, None]) * clean + times[:, None, None] * noise
    shown = split_samples(setup, bank.picture_prompts[rows])
    velocity, _ = _apply(setup, params, lora, mixed, shown, times, bank)
    assert velocity is not None
    if setup.upper.lora_target == "noise":
        return losses.flow_matching(velocity, clean, noise)
    base, _ = _apply(setup, params, None, mixed, shown, times, bank)
    assert base is not None
    return losses.squared_error(velocity, base)


def _reverse_contrastive(
    lora: PyTree, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> Float[Array, ""]:
    level = setup.upper
    latents_key, forms_key = jax.random.split(key)
    early = _early(setup, len(bank.times))
    latents, times, sentences = _draw_latents(bank, latents_key, setup, early)
    text_tokens = bank.masks.shape[-1]
    drawn = draw_forms(bank, forms_key, setup)

    def features(lora: PyTree, forms: Int[Array, "B V"]) -> Float[Array, "L B V S"]:
        rows, count = sentences[:, None], forms.shape[1]
        conditioning = jax.tree.map(lambda leaf: leaf[rows, forms], bank.sentences)
        _, out = _apply(
            setup,
            params,
            lora,
            split_samples(setup, jnp.repeat(latents, count, axis=0)),
            split_samples(setup, _joined(conditioning)),
            split_samples(setup, jnp.repeat(times, count)),
            bank,
            token_masks=split_samples(setup, _joined(bank.masks[rows, forms]))[..., None],
            stop_after="dual",
        )
        mass = out["attention"][..., 0]
        if level.blocks == "last":
            mass = mass[-1:]
        found = (
            losses.attention_features_released(mass)
            if level.rsc_form == "released"
            else losses.attention_features(mass, text_tokens)
        )
        return found.reshape(found.shape[0], -1, count, found.shape[-1])

    concept = features(lora, jnp.zeros_like(drawn[:, :1]))
    # A pass of its own, since the gradient needs none of it.
    others = features(jax.lax.stop_gradient(lora), drawn)
    return losses.reverse_contrastive(
        concept[:, :, 0], others[:, :, 0], others[:, :, 1:], level.temperature, level.rsc_form
    )


def draw_forms(bank: Bank, key: PRNGKeyArray, setup: Setup) -> Int[Array, "B 1+K"]:
    """Draws for each sample the form with a synonym, and K with different irrelevant words.

    The pools of irrelevant words give in turn, so that each has its share.
    """
    chance = jax.random.uniform(key, (setup.batch_size, len(bank.kinds)))
    synonym = jnp.argmax(jnp.where(bank.kinds == SYNONYM, chance, -1), axis=-1)
    same = bank.kinds[:, None] == bank.kinds
    before = jnp.sum(same & (chance[:, None, :] < chance[:, :, None]), axis=-1)
    turn = jnp.where(bank.kinds >= POOL, before * (len(bank.kinds) + POOL) + bank.kinds, jnp.inf)
    others = jnp.argsort(turn, axis=-1)[:, : setup.upper.negatives]
    return jnp.concatenate([synonym[:, None], others], axis=-1)


def _teacher(
    setup: Setup,
    params: PyTree,
    latents: Float[Array, "B S C"],
    concept: Conditioning,
    anchors: Conditioning,
    times: Float[Array, "B"],
    bank: Bank,
) -> list[Float[Array, "B S C"]]:
    """The frozen model's velocities for the concept and for each anchor, in one batch."""
    prompts = jax.tree.map(
        lambda one, others: jnp.concatenate([one[:, None], others], axis=1), concept, anchors
    )
    batch, count = prompts.text.shape[:2]
    velocity, _ = _apply(
        setup,
        params,
        None,
        split_samples(setup, jnp.repeat(latents, count, axis=0)),
        split_samples(setup, _joined(prompts)),
        split_samples(setup, jnp.repeat(times, count)),
        bank,
    )
    assert velocity is not None
    velocity = velocity.reshape(batch, count, *velocity.shape[1:])
    return [velocity[:, i] for i in range(count)]


def _apply(
    setup: Setup,
    params: PyTree,
    lora: PyTree | None,
    latents: Float[Array, "B S C"],
    conditioning: Conditioning,
    times: Float[Array, "B"],
    bank: Bank,
    **options: Any,
) -> tuple[Float[Array, "B S C"] | None, dict[str, Array]]:
    adapter = None if lora is None else Adapter(lora, setup.alpha).scaled()  # pyright: ignore
    return apply_transformer(
        setup.transformer,
        params,
        adapter,
        latents,
        conditioning,
        times,
        bank.image_ids,
        setup.guidance,
        **options,
    )


def samples(
    key: PRNGKeyArray, setup: Setup, trajectories: int, pictures: int, steps: int
) -> dict[str, tuple[Int[Array, "B"], Int[Array, "B"]]]:
    """Which rows of its bank a run draws in an iteration, and which of the denoising steps.

    Args:
        key: of the lower level's update and of the upper one's, [2].
        setup: what is compiled in.
        trajectories: in the bank.
        pictures: in the bank.
        steps: of the denoising.

    Returns:
        Trajectories and steps of the lower level ("lower") and of L_rsc ("rsc"); pictures and steps
        of L_lora ("lora").
    """
    lora_key, rsc_key = jax.random.split(key[1])
    latents_key, _ = jax.random.split(rsc_key)
    shown, times, _ = _draw_pictures(pictures, lora_key, setup, steps)
    return {
        "lower": _draw_places(trajectories, key[0], setup, steps),
        "lora": (shown, times),
        "rsc": _draw_places(trajectories, latents_key, setup, _early(setup, steps)),
    }


def _early(setup: Setup, steps: int) -> int:
    """How many of the denoising steps L_rsc looks at."""
    return max(1, round(setup.upper.early * steps))


def _draw_pictures(
    count: int, key: PRNGKeyArray, setup: Setup, steps: int
) -> tuple[Int[Array, "B"], Int[Array, "B"], PRNGKeyArray]:
    """Draws kept pictures, a step for each, and the key of their noise."""
    keys = jax.random.split(key, 3)
    rows = jax.random.randint(keys[0], (setup.batch_size,), 0, count)
    return rows, jax.random.randint(keys[1], (setup.batch_size,), 0, steps), keys[2]


def _draw_places(
    count: int, key: PRNGKeyArray, setup: Setup, steps: int
) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
    """Draws trajectories and, among the first of their steps, one of each."""
    row_key, step_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (setup.batch_size,), 0, count)
    return rows, jax.random.randint(step_key, (setup.batch_size,), 0, steps)


def _draw_latents(
    bank: Bank, key: PRNGKeyArray, setup: Setup, steps: int
) -> tuple[Float[Array, "B S C"], Float[Array, "B"], Int[Array, "B"]]:
    """Draws x_t, its t and its sentence, among the first steps of the trajectories."""
    rows, step = _draw_places(len(bank.trajectories), key, setup, steps)
    latents = split_samples(setup, bank.trajectories[rows, step])
    return latents, split_samples(setup, bank.times[step]), bank.trajectory_sentences[rows]


def _student_latents(
    lora: PyTree, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, "B S C"], Float[Array, "B"], Int[Array, "B"]]:
    """What `_draw_latents` draws, but on the adapted model's own way from the same noise."""
    rows, steps = _draw_places(len(bank.trajectories), key, setup, len(bank.times))
    sentences = bank.trajectory_sentences[rows]
    concept = split_samples(setup, bank.sentences[sentences, 0])
    fixed = jax.lax.stop_gradient(lora)

    def step(index: Int[Array, ""], latents: Float[Array, "B S C"]) -> Float[Array, "B S C"]:
        times = jnp.broadcast_to(bank.times[index], steps.shape)
        velocity, _ = _apply(setup, params, fixed, latents, concept, times, bank)
        assert velocity is not None
        further = latents + (bank.times[index + 1] - bank.times[index]) * velocity
        return jnp.where((index < steps)[:, None, None], further, latents)

    noise = split_samples(setup, bank.trajectories[rows, 0].astype(jnp.float32))
    latents = jax.lax.fori_loop(0, jnp.max(steps), step, noise)
    return split_samples(setup, latents), split_samples(setup, bank.times[steps]), sentences


def _weighted(metrics: Metrics, level: Lower | Upper) -> Float[Array, ""]:
    """The losses' sum under the weights of the same names."""
    return sum((getattr(level, name) * value for name, value in metrics.items()), jnp.zeros(()))


def _joined(tree: PyTree) -> PyTree:
    """The first two axes as one, so that a sample's rows stay beside each other."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
