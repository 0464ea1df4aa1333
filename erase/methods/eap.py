"""EAP: ESD that preserves the concepts it would harm most (Bui et al., 2024).

Two updates alternate. The first minimises

    L_esd + λ E ‖v_θ(x_t, c_r) - v_o(x_t, c_r)‖²

where c_r is the concept's sentence with the word r of a vocabulary in the concept's place. The
second, adversarial, maximises the last term: r is sampled with Gumbel-softmax weights, hard in the
forward pass, and their logits are updated by gradient ascent. If the adapted model denoises to x_t,
it denoises c_r from the same noise to a separate x_t, as in the authors' code; if the frozen model
does, the concept's x_t is used for c_r too. The authors compute both terms in x_0, this module in
velocities.
Axis letters: B batch, V forms of a sentence, M one more than the words used, N words, P pooled
width.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.plan import POOL, Needs
from erase.data.words.irrelevant import Words
from erase.methods import esd
from erase.methods.base import Method, Parts, Step
from erase.methods.parts.compiled import split_samples
from erase.methods.parts.forward import RunInputs, rollout
from erase.methods.parts.losses import squared_error
from erase.methods.parts.samples import Sample, sample_places
from erase.methods.parts.step import Metrics, State, Update, adamw, jit_over_runs
from erase.methods.settings.eap import FIELDS, Settings
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning
from flux_jax.system.files import read_text


def chosen(
    logits: Float[Array, "M"], bank: Bank, key: PRNGKeyArray, temperature: float
) -> Float[Array, "V"]:
    """Sample one-hot weights over a sentence's forms, among the vocabulary's words.

    Straight-through Gumbel-softmax: the forward pass takes the argmax of
    softmax((logits + g) / τ), the gradient is that of the soft weights.
    """
    logits = jnp.where(bank.kinds >= POOL, logits[: len(bank.kinds)], -jnp.inf)
    soft = jax.nn.softmax((logits + jax.random.gumbel(key, logits.shape)) / temperature)
    hard = jax.nn.one_hot(jnp.argmax(soft), len(soft))
    return hard + soft - jax.lax.stop_gradient(soft)


def harm(
    lora: PyTree,
    weights: Float[Array, "V"],
    run: RunInputs[Settings],
    sample: Sample,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Compute how much an adapter changes the velocity for the chosen form, at a key's sample."""
    settings, bank, batch = run.settings, run.bank, run.context.batch_size
    prompts: Conditioning = jax.tree.map(
        lambda leaf: jnp.einsum("v,bv...->b...", weights, leaf.astype(jnp.float32)),
        bank.sentences[sample.sentences],
    )
    prompts, latents = split_samples(run.context, prompts), sample.latents
    if settings.trajectories == "student":
        rows, steps = sample_places(len(bank.trajectories), key, batch, len(bank.times))
        latents = rollout(run, lora, prompts, rows, steps)
    guided = run.guided(settings.guidance)
    adapted = guided.adapted(lora).velocity(latents, prompts, sample.times)
    return squared_error(adapted, guided.frozen.velocity(latents, prompts, sample.times))


def losses(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray, logits: Float[Array, "M"]
) -> tuple[Float[Array, ""], Metrics]:
    """Compute both terms of one run, with the words' logits.

    Returns:
        L_esd + λ harm, and the parts.
    """
    settings = run.settings
    sample = jax.lax.stop_gradient(esd.sample(settings.trajectories, run, lora, key))
    velocities = esd.stored(settings.trajectories, run, key)
    erasing = esd.erasing(lora, run.guided(settings.guidance), sample, velocities)
    weights = chosen(logits, run.bank, jax.random.fold_in(key, 1), settings.temperature)
    harm_loss = harm(lora, weights, run, sample, key)
    return erasing + settings.preserve * harm_loss, {"esd": erasing, "harm": harm_loss}


def _erasing_gradient(
    state: State, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[PyTree, Metrics]:
    """Gradient of both terms with respect to the adapter."""
    return jax.grad(losses, has_aux=True)(state.lora, run, key, state.own["logits"])


def _searching_gradient(
    state: State, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[PyTree, Metrics]:
    """Gradient of the negative harm with respect to the logits, which maximise the harm."""
    settings = run.settings
    sample = jax.lax.stop_gradient(esd.sample(settings.trajectories, run, state.lora, key))

    def loss(logits: Float[Array, "M"]) -> tuple[Array, Metrics]:
        weights = chosen(logits, run.bank, jax.random.fold_in(key, 1), settings.temperature)
        harmed = harm(state.lora, weights, run, sample, key)
        return -harmed, {"worst": harmed}

    return jax.grad(loss, has_aux=True)(state.own["logits"])


def _adam(settings: Settings) -> optax.GradientTransformation:
    """Return the optimiser of the logits."""
    return optax.adam(settings.logits_rate)


def _start(lora: PyTree, config: Config) -> dict[str, PyTree]:
    return {"eap": adamw(config.method_settings(Settings)).init(lora)}


def _start_search(lora: PyTree, config: Config) -> dict[str, PyTree]:
    del lora
    settings = config.method_settings(Settings)
    logits = jnp.zeros(1 + settings.most)
    return {"logits": logits, "search": _adam(settings).init(logits)}


def _losses(key: PRNGKeyArray, opt_states: Mapping[str, PyTree]) -> Parts[Settings]:
    return {"eap": (functools.partial(losses, logits=opt_states["logits"]), key)}


def vocabulary(config: Config, words: Words) -> tuple[str, ...]:
    """Return the words that may be used.

    Raises:
        InputError: the file cannot be read, or holds no words besides the concept's.
    """
    named = config.method_settings(Settings).vocabulary
    if named is None:
        return tuple(word for pool in words.pools for word in pool)
    try:
        lines = read_text(Path(named)).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"eap.vocabulary = {named!r} cannot be read ({error}); name a text file with one word "
            "per line, or none"
        ) from error
    names = {word.casefold() for word in (config.concept, *config.synonyms)}
    vocabulary_words = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not (others := tuple(word for word in vocabulary_words if word.casefold() not in names)):
        raise InputError(f"eap.vocabulary = {named!r} has no words besides the concept's; add some")
    return others


def nearest(config: Config, pipe: Pipeline, words: tuple[str, ...], most: int) -> tuple[str, ...]:
    """Choose words that represent those near the concept, by CLIP's pooled output.

    Args:
        config: the run's configuration, which names the concept.
        pipe: pipeline whose text encoders encode the words.
        words: more than `most` words.
        most: number of words to return; the `4 * most` nearest words are grouped into this many
            clusters.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    parts = [
        np.asarray(pipe.encode([words[row] for row in rows]).pooled, np.float64)
        for rows in batches(len(words), config.bank.batch, "encoding the vocabulary")
    ]
    vectors = _unit(np.concatenate(parts)[: len(words)])
    concept = _unit(np.asarray(pipe.encode([config.concept]).pooled, np.float64))
    near = np.argsort(-(vectors @ concept[0]), kind="stable")[: 4 * most]
    clusters = fcluster(linkage(vectors[near], "ward"), most, "maxclust")
    medoids = []
    for cluster in np.unique(clusters):
        members = near[clusters == cluster]
        apart = np.linalg.norm(vectors[members] - vectors[members].mean(axis=0), axis=1)
        medoids.append(int(members[np.argmin(apart)]))
    return tuple(words[row] for row in sorted(medoids))


def _unit(vectors: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request the concept's sentences, also with every word of the vocabulary in its place."""
    settings = config.method_settings(Settings)
    candidates = vocabulary(config, words)
    if pipe is not None and len(candidates) > settings.most:
        candidates = nearest(config, pipe, candidates, settings.most)
    return Needs(
        pools=((), candidates[: settings.most]),
        stand_in=settings.stand_in,
        eta=settings.eta,
        # Of L_esd alone: the words of the other term are chosen during training.
        velocities="eap" if settings.trajectories == "teacher" else "",
        guidance=settings.guidance,
    )


ERASE = Step(jit_over_runs(Update("eap", _erasing_gradient, adamw, "eap")), _start, _losses)
SEARCH = Step(
    jit_over_runs(Update("search", _searching_gradient, _adam, "search", trains="logits")),
    _start_search,
    lambda key, own: {},
)
METHOD = Method(
    title="EAP",
    fields=FIELDS,
    needs=needs,
    steps=lambda config: {"eap": ERASE, "search": SEARCH},
    compiled=lambda config: replace(
        config.method_settings(Settings), vocabulary=None, eta=0.0, stand_in=None
    ),
    weights=lambda config: {"esd": 1.0, "harm": config.method_settings(Settings).preserve},
)
