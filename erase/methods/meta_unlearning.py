"""Meta-Unlearning: relearning the concept degrades related benign concepts (Gao et al., 2024).

A step descends along

    g = ∇L_esd(θ) + γ1 ∇L_keep(θ) - γ2 ∇L_keep(θ')

where L_keep is flow matching on pictures of related concepts, and θ' is the adapter after a few
AdamW steps of flow matching on the concept's own pictures. The change from θ to θ' is treated as a
constant (first order). Only the adapter is copied for relearning, because nothing else is trained.
The authors also ascend the concept's own error at θ', and use the related pictures with almost no
noise.
Axis letter: B batch.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.plan import Needs, kept_prompts
from erase.data.words.irrelevant import Words
from erase.data.words.templates import as_template, phrase
from erase.methods import esd
from erase.methods.base import Method, Parts, Step
from erase.methods.parts.compiled import split_samples
from erase.methods.parts.forward import RunInputs
from erase.methods.parts.losses import flow_matching
from erase.methods.parts.samples import add_noise, sample_pictures
from erase.methods.parts.step import Metrics, State, Update, adamw, jit_over_runs
from erase.methods.settings.meta_unlearning import FIELDS, Settings
from flux_jax.pipeline import Pipeline
from flux_jax.programs import Conditioning


def matching(
    lora: PyTree,
    run: RunInputs[Settings],
    pictures: Float[Array, "F S C"],
    prompts: Conditioning,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Compute flow matching on a sampled batch of the pictures."""
    batch, times = run.context.batch_size, len(run.bank.times)
    rows, steps, noise_key = sample_pictures(len(pictures), key, batch, times)
    latents, times, clean, noise = add_noise(run, pictures[rows], steps, noise_key)
    model = run.guided(run.settings.guidance).adapted(lora)
    shown = split_samples(run.context, prompts[rows])
    return flow_matching(model.velocity(latents, shown, times), clean, noise)


def keeping(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute L_keep of one run."""
    loss = matching(lora, run, run.bank.pictures, run.bank.picture_prompts, key)
    return loss, {"keep": loss}


def erasing(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute L_esd of one run."""
    settings = run.settings
    sample = jax.lax.stop_gradient(esd.sample(settings.trajectories, run, lora, key))
    velocities = esd.stored(settings.trajectories, run, key)
    loss = esd.erasing(lora, run.guided(settings.guidance), sample, velocities)
    return loss, {"esd": loss}


def teaching(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute flow matching of one run on the concept's own pictures."""
    bank = run.bank
    prompts = bank.sentences[bank.trajectory_sentences, 0]
    loss = matching(lora, run, bank.trajectories[:, -1], prompts, key)
    return loss, {"teach": loss}


def taught(lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray) -> PyTree:
    """Return θ': the adapter after the inner steps on the concept's own pictures."""
    optimiser = optax.adamw(run.settings.inner_rate)

    def step(index: Array, carry: tuple[PyTree, optax.OptState]) -> tuple[PyTree, optax.OptState]:
        lora, state = carry
        inner = jax.random.fold_in(key, index)
        gradient, _ = jax.grad(teaching, has_aux=True)(lora, run, inner)
        changes, state = optimiser.update(gradient, state, lora)
        return optax.apply_updates(lora, changes), state

    taught, _ = jax.lax.fori_loop(0, run.settings.inner_steps, step, (lora, optimiser.init(lora)))
    return taught


def _keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]:
    """Return the keys of L_esd (the step's key), L_keep and θ'."""
    return key, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)


def _gradient(state: State, run: RunInputs[Settings], key: PRNGKeyArray) -> tuple[PyTree, Metrics]:
    """Compute g, see the module."""
    settings = run.settings
    erase_key, keep_key, teach_key = _keys(key)
    erase, metrics = jax.grad(erasing, has_aux=True)(state.lora, run, erase_key)
    keep, keep_metrics = jax.grad(keeping, has_aux=True)(state.lora, run, keep_key)
    copy = jax.lax.stop_gradient(taught(state.lora, run, teach_key))
    meta, lost = jax.grad(keeping, has_aux=True)(copy, run, keep_key)
    total = jax.tree.map(
        lambda e, k, m: e + settings.keep * k - settings.meta * m, erase, keep, meta
    )
    return total, metrics | keep_metrics | {"keep_taught": lost["keep"]}


def _start(lora: PyTree, config: Config) -> dict[str, PyTree]:
    return {"meta": adamw(config.method_settings(Settings)).init(lora)}


def _losses(key: PRNGKeyArray, opt_states: Mapping[str, PyTree]) -> Parts[Settings]:
    del opt_states
    erase_key, keep_key, _ = _keys(key)
    return {"esd": (erasing, erase_key), "keep": (keeping, keep_key)}


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request the concept's sentences, for relearning too, and pictures of related concepts."""
    del pipe
    settings = config.method_settings(Settings)
    template = as_template(config.prompts[0], config.concept)
    every = tuple(phrase(template, word) for pool in words.pools for word in pool)
    shown = kept_prompts(config, settings.related or every, settings.pictures)
    return Needs(
        stand_in=settings.stand_in,
        eta=settings.eta,
        shown=shown,
        velocities="meta" if settings.trajectories == "teacher" else "",
        guidance=settings.guidance,
    )


STEP = Step(jit_over_runs(Update("meta", _gradient, adamw, "meta")), _start, _losses)
METHOD = Method(
    title="Meta-Unlearning",
    fields=FIELDS,
    needs=needs,
    steps=lambda config: {"meta": STEP},
    compiled=lambda config: replace(
        config.method_settings(Settings), eta=0.0, stand_in=None, related=()
    ),
    weights=lambda config: {"esd": 1.0, "keep": config.method_settings(Settings).keep},
)
