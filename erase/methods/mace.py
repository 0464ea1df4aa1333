"""MACE: erases the concept from the tokens around it, then hides its tokens (Lu et al., 2024).

1. In closed form, W' of every target minimises Σ ‖W' f - W g‖² + λ ‖W' - W‖² over the tokens
   around the concept, which are all other tokens of the prompt, with padding: f is the layer's
   input there, g the input at the same token when another word replaces the concept. The adapted
   model then contains the best change of the given rank. The authors also preserve other words;
   here only λ limits the change.
2. An adapter is trained on pictures of the concept with noise. The loss is Σ over blocks of the
   Frobenius norm ‖A[region, tokens]‖ of the attention from the concept's region of the picture to
   its tokens, with t at which pictures take shape,
   p(t) ∝ σ(0.05 (1000 t - 200)) - σ(0.05 (1000 t - 400)).
3. Both are exported as one adapter. `erase.compose` fuses adapters of several concepts.

The regions come from the frozen model's attention maps, so no segmentation model is needed.
Axis letters: B batch, L blocks, H heads, N tokens, T text tokens, G concept tokens, S image tokens,
R trajectories, D steps, K selected tokens.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.plan import Needs, Plan
from erase.data.words.irrelevant import Words
from erase.data.words.templates import as_template, phrase
from erase.data.words.word_tokens import concept_masks
from erase.methods.base import Drawn, Method, adamw_step
from erase.methods.parts import closed_form
from erase.methods.parts.closed_form import Ridge
from erase.methods.parts.compiled import StepContext, split_samples
from erase.methods.parts.forward import RunInputs
from erase.methods.parts.layer_inputs import kernels, text_inputs
from erase.methods.parts.losses import TINY
from erase.methods.parts.samples import Counts, add_noise
from erase.methods.parts.step import Metrics
from erase.methods.settings.mace import FIELDS, Settings
from erase.model.attention_maps import concept_mass
from flux_jax.errors import InputError
from flux_jax.lora import Adapter, combine, unscaled
from flux_jax.pipeline import Pipeline, batches
from flux_jax.tree import nest


def hidden(mass: Float[Array, "L B H N G"], regions: Float[Array, "B S"]) -> Float[Array, ""]:
    """Compute Σ over blocks of ‖A[region, tokens]‖, mean over the batch.

    Args:
        mass: attention to each of the concept's tokens, for every query; zeros for other tokens.
        regions: ones at the concept's image tokens.
    """
    image = mass[..., -regions.shape[1] :, :].astype(jnp.float32) * regions[None, :, None, :, None]
    norms = jnp.sqrt(jnp.sum(jnp.square(image), axis=(2, 3, 4)) + TINY) - TINY**0.5
    return jnp.mean(jnp.sum(norms, axis=0))


def importance(times: Float[Array, "D"]) -> Float[Array, "D"]:
    """Return the log probabilities of denoising steps, up to a constant."""
    low, high = (jax.nn.sigmoid(0.05 * (1000 * times - edge)) for edge in (200, 400))
    return jnp.log(jnp.maximum(low - high, 1e-20))


def sample_by_importance(
    count: int, key: PRNGKeyArray, batch: int, times: Float[Array, "D"]
) -> tuple[Int[Array, "B"], Int[Array, "B"], PRNGKeyArray]:
    """Sample pictures, a denoising step for each by `importance`, and the key of their noise."""
    keys = jax.random.split(key, 3)
    rows = jax.random.randint(keys[0], (batch,), 0, count)
    steps = jax.random.categorical(keys[1], importance(times), shape=(batch,))
    return rows, steps, keys[2]


def losses(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the loss of one run."""
    bank, context = run.bank, run.context
    assert bank.regions is not None, "`completes` computes the regions"
    rows, steps, noise_key = sample_by_importance(
        len(bank.trajectories), key, context.batch_size, bank.times
    )
    pictures, sentences = bank.trajectories[rows, -1], bank.trajectory_sentences[rows]
    latents, times, *_ = add_noise(run, pictures, steps, noise_key)
    prompts, masks = split_samples(
        context, (bank.sentences[sentences, 0], bank.masks[sentences, 0])
    )
    # Each of the concept's tokens is a separate group.
    groups = masks[..., None] * jnp.eye(masks.shape[-1])
    _, out = run.adapted(lora).predict(
        latents, prompts, times, token_masks=groups, stop_after="dual"
    )
    loss = hidden(out["attention"], split_samples(context, bank.regions[rows]))
    return loss, {"hidden": loss}


def drawn(key: PRNGKeyArray, context: StepContext[Settings], counts: Counts) -> Drawn:
    """Return the sampled places; the pictures are the last latents of trajectories."""
    rows, steps, _ = sample_by_importance(
        counts.trajectories, key, context.batch_size, counts.times
    )
    return {"": ("trajectories", (rows, steps))}


def pairs(config: Config) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Return sentences with the concept and with its stand-in, each with the word it contains."""
    word = stand_in(config)
    templates = [as_template(prompt, config.concept) for prompt in config.prompts]
    return [
        ((phrase(t, config.concept), config.concept), (phrase(t, word), word)) for t in templates
    ]


def stand_in(config: Config) -> str:
    """Return the word that replaces the concept."""
    return config.method_settings(Settings).stand_in or config.irrelevant[0]


def around(
    own: Float[np.ndarray, "T"], other: Float[np.ndarray, "T"]
) -> tuple[Int[np.ndarray, "K"], Int[np.ndarray, "K"]]:
    """Return the positions of the tokens that two prompts share around their different words.

    Args:
        own: ones at the tokens of the first prompt's word; all tokens before and after are used.
        other: ones at the tokens of the second prompt's word.
    """
    (first, last), (other_first, other_last) = (
        (int(np.argmax(mask)), len(mask) - 1 - int(np.argmax(mask[::-1]))) for mask in (own, other)
    )
    before = np.arange(min(first, other_first))
    after = np.arange(1, len(own) - max(last, other_last))
    return np.concatenate([before, last + after]), np.concatenate([before, other_last + after])


def edits(config: Config, pipe: Pipeline) -> PyTree:
    """Return the closed-form change of every target as an adapter's tree.

    Raises:
        InputError: the input of a target is not text tokens, or edit_rank is above a layer's rank.
    """
    settings, targets = config.method_settings(Settings), config.adapter.targets
    tokens = [[], []]
    prompts = [[], []]
    for sides in pairs(config):
        masks = [concept_masks(pipe.tokenizer_2, [prompt], word)[0] for prompt, word in sides]
        for side, (positions, (prompt, _)) in enumerate(zip(around(*masks), sides, strict=True)):
            tokens[side].append(positions)
            prompts[side].append(prompt)
    # Repeat positions so that all prompts have the same number; repeats are masked out below.
    most = max(len(positions) for positions in tokens[0])
    weights = np.stack([np.arange(most) < len(positions) for positions in tokens[0]])
    filled = [np.stack([np.resize(positions, most) for positions in side]) for side in tokens]
    seen = [
        text_inputs(pipe, config, targets, prompt, places.astype(np.int32))
        for prompt, places in zip(prompts, filled, strict=True)
    ]
    flat = {}
    for target in targets:
        factors = []
        for kernel, f, g in zip(kernels(pipe, target), *(s[target] for s in seen), strict=True):
            if settings.edit_rank > (most := min(kernel.shape)):
                raise InputError(f"mace.edit_rank = {settings.edit_rank} must be at most {most}")
            f, g = f[weights], g[weights]
            ridge = Ridge(settings.ridge, np.sum(f**2) / len(kernel), "mace.ridge")
            factors.append(closed_form.edit(kernel, f, g, f[:0], ridge, rank=settings.edit_rank))
        flat |= closed_form.leaves(target, factors)
    return nest(flat)


def regions(config: Config, pipe: Pipeline, bank: Bank) -> Float[np.ndarray, "R S"]:
    """Return masks of the concept's regions: the image tokens that attend to it most."""
    size = max(1, round(config.method_settings(Settings).region * bank.trajectories.shape[2]))
    model = pipe.denoiser(jnp.asarray(bank.image_ids), config.guidance)
    masses = []
    for rows in batches(len(bank.trajectories), config.bank.batch, "locating the concept"):
        sentences = np.asarray(bank.trajectory_sentences)[rows]
        ends = [np.asarray(bank.trajectories[rows, at], np.float32) for at in (0, -1)]
        masks = np.asarray(bank.masks)[sentences, 0]
        prompts = bank.sentences[sentences, 0]
        masses.append(concept_mass(pipe, model, ends[0], ends[1], prompts, masks))
    mass = np.concatenate(masses)[: len(bank.trajectories)]
    edges = np.sort(mass, axis=1)[:, -size]
    return (mass >= edges[:, None]).astype(np.float32)


def completes(config: Config, pipe: Pipeline, planned: Plan, bank: Bank) -> Bank:
    """Add the closed-form change and the regions to the bank."""
    del planned
    return bank.replace(edit=edits(config, pipe), regions=regions(config, pipe, bank))


def exports(
    config: Config, pipe: Pipeline, planned: Plan, bank: Bank | None, adapter: Adapter
) -> Adapter:
    """Combine the closed-form change and the trained adapter into one adapter."""
    del config, pipe, planned
    assert bank is not None, "methods with steps have a bank"
    return unscaled(combine([(unscaled(bank.edit), 1.0), (adapter, 1.0)]))


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request the concept's sentences, for the trajectories, and those with its stand-in."""
    del words, pipe
    also = tuple(prompt for sides in pairs(config) for prompt, _ in sides)
    return Needs(also=also, edit_rank=config.method_settings(Settings).edit_rank, regions=True)


STEP = adamw_step("mace", losses, lambda config: config.method_settings(Settings), drawn=drawn)
METHOD = Method(
    title="MACE",
    fields=FIELDS,
    needs=needs,
    steps=lambda config: {"mace": STEP},
    compiled=lambda config: replace(config.method_settings(Settings), stand_in=""),
    weights=lambda config: {"hidden": 1.0},
    completes=completes,
    exports=exports,
)
