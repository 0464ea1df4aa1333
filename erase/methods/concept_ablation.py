"""Concept Ablation: maps the concept to an anchor, a broader concept (Kumari et al., 2023).

On pictures x of the anchor with noise ε, x_t = (1 - t) x + t ε, and captions c with the anchor and
c* with the concept in its place,

    model-based: E ‖v_θ(x_t, c*) - v_θ(x_t, c)‖², the second without gradient
    noise-based: E ‖v_θ(x_t, c*) - (ε - x)‖²

and, with a weight, the prior E ‖v_θ(x_t, c) - (ε - x)‖² on the anchor itself.
"""

from dataclasses import replace

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.plan import Needs
from erase.data.words.irrelevant import Words
from erase.methods.base import Drawn, Method, adamw_step
from erase.methods.parts.compiled import StepContext, split_samples
from erase.methods.parts.forward import RunInputs
from erase.methods.parts.losses import flow_matching, squared_error
from erase.methods.parts.samples import Counts, add_noise, sample_pictures
from erase.methods.parts.step import Metrics
from erase.methods.settings.concept_ablation import FIELDS, Settings
from flux_jax.pipeline import Pipeline

# Forms of a sentence: with the concept, and with the anchor.
CONCEPT, ANCHOR = 0, 1


def losses(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the loss of one run."""
    settings, bank, batch = run.settings, run.bank, run.context.batch_size
    rows, steps, noise_key = sample_pictures(len(bank.trajectories), key, batch, len(bank.times))
    pictures, sentences = bank.trajectories[rows, -1], bank.trajectory_sentences[rows]
    latents, times, clean, noise = add_noise(run, pictures, steps, noise_key)

    def of(form: int, lora: PyTree) -> Float[Array, "B S C"]:
        prompts = split_samples(run.context, bank.sentences[sentences, form])
        return run.adapted(lora).velocity(latents, prompts, times)

    concept = of(CONCEPT, lora)
    if settings.target == "noise":
        metrics = {"ablation": flow_matching(concept, clean, noise)}
    else:
        anchor = of(ANCHOR, jax.lax.stop_gradient(lora))
        metrics = {"ablation": squared_error(concept, anchor)}
    total = metrics["ablation"]
    if settings.prior:
        metrics["prior"] = flow_matching(of(ANCHOR, lora), clean, noise)
        total = total + settings.prior * metrics["prior"]
    return total, metrics


def drawn(key: PRNGKeyArray, context: StepContext[Settings], counts: Counts) -> Drawn:
    """Return the sampled places; the pictures are the last latents of trajectories."""
    rows, steps, _ = sample_pictures(counts.trajectories, key, context.batch_size, counts.steps)
    return {"": ("trajectories", (rows, steps))}


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request sentences with the anchor in the concept's place, for the trajectories."""
    del pipe
    anchor = config.method_settings(Settings).anchor or words.first
    return Needs(pools=((), (anchor,)), drawn=ANCHOR)


STEP = adamw_step("ablation", losses, lambda config: config.method_settings(Settings), drawn=drawn)
METHOD = Method(
    title="Concept Ablation",
    fields=FIELDS,
    needs=needs,
    steps=lambda config: {"ablation": STEP},
    compiled=lambda config: replace(config.method_settings(Settings), anchor=""),
    weights=lambda config: {"ablation": 1.0, "prior": config.method_settings(Settings).prior},
)
