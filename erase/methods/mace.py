"""MACE: words near the concept forget it, then a small adapter hides its tokens (Lu et al., 2024).

1. In closed form, W' of every target minimises Σ ‖W' f - W g‖² + λ ‖W' - W‖² over the words that
   stand beside the concept: f is the layer's input there, g the same where another word stands in
   the concept's place. The best change of a rank stays in the adapted model from then on. Beside it
   stand all other tokens, padding too. Its authors preserve other words besides; here λ alone does.
2. An adapter is trained on pictures of the concept with noise: Σ over blocks of the Frobenius norm
   ‖A[region, tokens]‖ of the attention that the concept's region of the picture gives to its
   tokens, with t where pictures take shape, p(t) ∝ σ(0.05 (1000 t - 200)) - σ(0.05 (1000 t - 400)).
3. Both are exported as one adapter. Adapters of several concepts are fused by
   `erase.compose`.

The regions come from the frozen model's own attention maps, so that no segmenter is needed.
Axis letters: B batch, L blocks, H heads, N tokens, T text tokens, G concept tokens, S image tokens,
R trajectories, D steps, K tokens that are looked at.
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
    """Σ over blocks of ‖A[region, tokens]‖, the mean over the batch.

    Args:
        mass: attention on each of the concept's tokens, for every query; zeros for other tokens.
        regions: ones at the concept's image tokens.
    """
    image = mass[..., -regions.shape[1] :, :].astype(jnp.float32) * regions[None, :, None, :, None]
    norms = jnp.sqrt(jnp.sum(jnp.square(image), axis=(2, 3, 4)) + TINY) - TINY**0.5
    return jnp.mean(jnp.sum(norms, axis=0))


def importance(times: Float[Array, "D"]) -> Float[Array, "D"]:
    """Log probabilities of steps, up to a constant."""
    low, high = (jax.nn.sigmoid(0.05 * (1000 * times - edge)) for edge in (200, 400))
    return jnp.log(jnp.maximum(low - high, 1e-20))


def sample_by_importance(
    count: int, key: PRNGKeyArray, batch: int, times: Float[Array, "D"]
) -> tuple[Int[Array, "B"], Int[Array, "B"], PRNGKeyArray]:
    """Samples pictures, a step for each by its importance, and the key of their noise."""
    keys = jax.random.split(key, 3)
    rows = jax.random.randint(keys[0], (batch,), 0, count)
    steps = jax.random.categorical(keys[1], importance(times), shape=(batch,))
    return rows, steps, keys[2]


def losses(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of one run."""
    bank, context = run.bank, run.context
    assert bank.regions is not None, "`completes` has made them"
    rows, steps, noise_key = sample_by_importance(
        len(bank.trajectories), key, context.batch_size, bank.times
    )
    pictures, sentences = bank.trajectories[rows, -1], bank.trajectory_sentences[rows]
    latents, times, *_ = add_noise(run, pictures, steps, noise_key)
    prompts, masks = split_samples(
        context, (bank.sentences[sentences, 0], bank.masks[sentences, 0])
    )
    # Each of the concept's tokens is a group of its own.
    groups = masks[..., None] * jnp.eye(masks.shape[-1])
    _, out = run.adapted(lora).predict(
        latents, prompts, times, token_masks=groups, stop_after="dual"
    )
    loss = hidden(out["attention"], split_samples(context, bank.regions[rows]))
    return loss, {"hidden": loss}


def drawn(key: PRNGKeyArray, context: StepContext[Settings], counts: Counts) -> Drawn:
    """Pictures are the ends of trajectories."""
    rows, steps, _ = sample_by_importance(
        counts.trajectories, key, context.batch_size, counts.times
    )
    return {"": ("trajectories", (rows, steps))}


def pairs(config: Config) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Sentences with the concept and with what stands in for it, each with that word."""
    word = stand_in(config)
    templates = [as_template(prompt, config.concept) for prompt in config.prompts]
    return [
        ((phrase(t, config.concept), config.concept), (phrase(t, word), word)) for t in templates
    ]


def stand_in(config: Config) -> str:
    """What comes in the concept's place."""
    return config.method_settings(Settings).stand_in or config.irrelevant[0]


def around(
    own: Float[np.ndarray, "T"], other: Float[np.ndarray, "T"]
) -> tuple[Int[np.ndarray, "K"], Int[np.ndarray, "K"]]:
    """Which tokens of two prompts are the same words beside different ones.

    Args:
        own: ones at the tokens of the one's word, which every token before and after is beside.
        other: ones at those of the other's.
    """
    (first, last), (other_first, other_last) = (
        (int(np.argmax(mask)), len(mask) - 1 - int(np.argmax(mask[::-1]))) for mask in (own, other)
    )
    before = np.arange(min(first, other_first))
    after = np.arange(1, len(own) - max(last, other_last))
    return np.concatenate([before, last + after]), np.concatenate([before, other_last + after])


def edits(config: Config, pipe: Pipeline) -> PyTree:
    """The closed form's change of every target, as an adapter's tree.

    Raises:
        InputError: a target does not see text tokens, or edit_rank is above what a layer has.
    """
    settings, targets = config.method_settings(Settings), config.adapter.targets
    tokens = [[], []]
    prompts = [[], []]
    for sides in pairs(config):
        masks = [concept_masks(pipe.tokenizer_2, [prompt], word)[0] for prompt, word in sides]
        for side, (positions, (prompt, _)) in enumerate(zip(around(*masks), sides, strict=True)):
            tokens[side].append(positions)
            prompts[side].append(prompt)
    # All prompts are looked at in as many places; a place that comes again does not count.
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
                raise InputError(f"mace.edit_rank = {settings.edit_rank} must be {most} at most")
            f, g = f[weights], g[weights]
            ridge = Ridge(settings.ridge, np.sum(f**2) / len(kernel), "mace.ridge")
            factors.append(closed_form.edit(kernel, f, g, f[:0], ridge, rank=settings.edit_rank))
        flat |= closed_form.leaves(target, factors)
    return nest(flat)


def regions(config: Config, pipe: Pipeline, bank: Bank) -> Float[np.ndarray, "R S"]:
    """Where pictures show the concept: the share that gives its tokens the most attention."""
    size = max(1, round(config.method_settings(Settings).region * bank.trajectories.shape[2]))
    model = pipe.denoiser(jnp.asarray(bank.image_ids), config.guidance)
    masses = []
    for rows in batches(len(bank.trajectories), config.bank.batch, "looking for the concept"):
        sentences = np.asarray(bank.trajectory_sentences)[rows]
        ends = [np.asarray(bank.trajectories[rows, at], np.float32) for at in (0, -1)]
        masks = np.asarray(bank.masks)[sentences, 0]
        prompts = bank.sentences[sentences, 0]
        masses.append(concept_mass(pipe, model, ends[0], ends[1], prompts, masks))
    mass = np.concatenate(masses)[: len(bank.trajectories)]
    edges = np.sort(mass, axis=1)[:, -size]
    return (mass >= edges[:, None]).astype(np.float32)


def completes(config: Config, pipe: Pipeline, planned: Plan, bank: Bank) -> Bank:
    """Adds the closed form's change and the regions."""
    del planned
    return bank.replace(edit=edits(config, pipe), regions=regions(config, pipe, bank))


def exports(
    config: Config, pipe: Pipeline, planned: Plan, bank: Bank | None, adapter: Adapter
) -> Adapter:
    """The closed form's change and what was trained, in one."""
    del config, pipe, planned
    assert bank is not None, "there are steps"
    return unscaled(combine([(unscaled(bank.edit), 1.0), (adapter, 1.0)]))


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """The concept's sentences, whose pictures are drawn, and those with what stands in for it."""
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
