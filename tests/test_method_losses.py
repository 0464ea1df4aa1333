"""Every method's losses and steps, sample by sample, in float64 NumPy from single velocities.

Samples follow from their keys, see the docstrings of `erase.methods.parts.samples`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small import (
    BANK,
    CONTEXT,
    KEY,
    KEYS,
    LORA,
    PARAMS,
    D,
    M,
    R,
    alone,
    every,
    run,
    start_of,
)

from erase.data.bank import stack_banks
from erase.data.plan import POOL
from erase.methods import concept_ablation, eap, esd, mace, meta_unlearning
from erase.methods.parts.compiled import StepContext
from erase.methods.parts.forward import RunInputs
from erase.methods.parts.samples import Sample
from flux_jax.lora import init

B = CONTEXT.batch_size
TIMES = np.asarray(BANK.times, np.float64)


def with_settings(settings: Any) -> StepContext:
    return replace(CONTEXT, settings=settings)


def inputs(settings: Any, bank: Any = BANK) -> RunInputs:
    return RunInputs.of(with_settings(settings), PARAMS, bank)


def losses_of(method: Any, settings: Any, *more: Any, bank: Any = BANK) -> Any:
    """A method's loss and metrics, compiled as in its step."""
    return jax.jit(lambda lora: method.losses(lora, inputs(settings, bank), KEY, *more))(LORA)


def slope(loss: Any) -> Any:
    return jax.jit(jax.grad(loss))


def velocity(
    lora: Any, latents: Any, prompt: Any, time: float, guidance: float = 3.5
) -> np.ndarray:
    latents, at = jnp.asarray(latents, jnp.float32), jnp.float32(time)
    found, _ = alone(PARAMS, lora, latents, prompt, at, guidance)
    return np.asarray(found, np.float64)


@jax.jit
def squared_error(lora: Any, x: Any, prompts: Any, times: Any, wanted: Any) -> jax.Array:
    """Mean over samples of the velocity's squared error, each sample from `alone`."""

    def predicted(x: Any, shown: Any, time: Any) -> jax.Array:
        return alone(PARAMS, lora, x, shown, time)[0]

    found = jax.vmap(predicted)(jnp.asarray(x, jnp.float32), prompts, jnp.float32(times))
    return jnp.mean(jnp.square(found - wanted))


def places(key: Any) -> list[tuple[int, int]]:
    """Trajectories and steps, as `sample_places` samples them."""
    row_key, step_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (B,), 0, R)
    steps = jax.random.randint(step_key, (B,), 0, D)
    return list(zip(rows.tolist(), steps.tolist(), strict=True))


def noisy(key: Any, pictures: Any) -> Iterator[tuple[int, float, np.ndarray, np.ndarray]]:
    """Rows, t, x_0 and ε, as `sample_pictures` and the losses sample them."""
    keys = jax.random.split(key, 3)
    rows = jax.random.randint(keys[0], (B,), 0, len(pictures)).tolist()
    steps = jax.random.randint(keys[1], (B,), 0, D).tolist()
    noise = np.asarray(jax.random.normal(keys[2], (B, *pictures.shape[1:])), np.float64)
    for row, step, each in zip(rows, steps, noise, strict=True):
        yield row, float(TIMES[step]), np.asarray(pictures[row], np.float64), each


def noisy_samples(key: Any, pictures: Any) -> tuple[np.ndarray, ...]:
    """All of `noisy`: x_t, rows, t and the velocity ε - x_0."""
    rows, times, clean, noise = map(np.array, zip(*noisy(key, pictures), strict=True))
    t = times[:, None, None]
    return (1 - t) * clean + t * noise, rows, times, noise - clean


def prompt(sentence: Any, form: int = 0) -> Any:
    return BANK.sentences[sentence, form]


def mean_square(values: list[np.ndarray]) -> float:
    return float(np.mean([np.mean(np.square(value)) for value in values]))


def way(row: int, step: int, shown: Any) -> np.ndarray:
    """The adapted model's own trajectory from the noise of a stored one, by Euler steps."""
    x = np.asarray(BANK.trajectories[row, 0], np.float64)
    for index in range(step):
        x = x + (TIMES[index + 1] - TIMES[index]) * velocity(LORA, x, shown, float(TIMES[index]))
    return x


def esd_terms(lora: Any, key: Any, eta: float, guidance: float = 3.5) -> list[np.ndarray]:
    terms = []
    for row, step in places(key):
        given = (BANK.trajectories[row, step], TIMES[step])

        def v(lora: Any, shown: Any, given: Any = given) -> np.ndarray:
            return velocity(lora, given[0], shown, given[1], guidance)

        empty = v(None, BANK.anchors[row % M, 0])
        target = empty - eta * (v(None, prompt(row % M)) - empty)
        terms.append(v(lora, prompt(row % M)) - target)
    return terms


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [None, 1.0])
def test_esd(guidance: float | None):
    settings = esd.Settings(trajectories="teacher", guidance=guidance)
    loss, metrics = losses_of(esd, settings)
    # By default the trajectories' guidance.
    wanted = mean_square(esd_terms(LORA, KEY, float(BANK.eta), guidance or CONTEXT.guidance))
    np.testing.assert_allclose([loss, metrics["esd"]], wanted, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["model", "noise"])
def test_concept_ablation(target: str):
    settings = concept_ablation.Settings(target=target, prior=0.5)
    loss, metrics = losses_of(concept_ablation, settings)
    terms, priors = [], []
    for row, t, clean, noise in noisy(KEY, BANK.trajectories[:, -1]):
        x = (1 - t) * clean + t * noise
        concept, anchor = (velocity(LORA, x, prompt(row % M, form), t) for form in (0, 1))
        terms.append(concept - (anchor if target == "model" else noise - clean))
        priors.append(anchor - (noise - clean))
    np.testing.assert_allclose(metrics["ablation"], mean_square(terms), rtol=1e-4)
    np.testing.assert_allclose(metrics["prior"], mean_square(priors), rtol=1e-4)
    np.testing.assert_allclose(loss, metrics["ablation"] + 0.5 * metrics["prior"], rtol=1e-6)


@pytest.mark.slow
def test_the_anchor_of_concept_ablation_is_held_still():
    """The gradient flows through the concept's velocity only."""

    run_inputs = inputs(concept_ablation.Settings())
    gradient = slope(lambda lora: concept_ablation.losses(lora, run_inputs, KEY)[0])(LORA)
    x, rows, times, _ = noisy_samples(KEY, BANK.trajectories[:, -1])
    anchors = [
        velocity(LORA, each, prompt(row % M, 1), time)
        for each, row, time in zip(x, rows, times, strict=True)
    ]

    wanted = slope(squared_error)(LORA, x, prompt(rows % M), times, np.array(anchors))
    for a, b in zip(*map(jax.tree.leaves, (gradient, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("trajectories", ["teacher", "student"])
def test_eap(trajectories: str):
    settings = eap.Settings(trajectories=trajectories, preserve=0.7, most=9)
    logits = jnp.array([9.0, 9.0, 0.5, -0.5, 0.25, 0, 0, 0, 0, 0])
    loss, metrics = losses_of(eap, settings, logits)
    gumbel = np.asarray(jax.random.gumbel(jax.random.fold_in(KEY, 1), (len(BANK.kinds),)))
    allowed = np.where(np.asarray(BANK.kinds) >= POOL, logits[: len(BANK.kinds)] + gumbel, -np.inf)
    chosen, terms = int(allowed.argmax()), []
    for row, step in places(KEY):
        shown = prompt(row % M, chosen)
        x = BANK.trajectories[row, step]
        if trajectories == "student":
            x = way(row, step, shown)
        given = (x, shown, TIMES[step])
        terms.append(velocity(LORA, *given) - velocity(None, *given))
    np.testing.assert_allclose(metrics["harm"], mean_square(terms), rtol=1e-4)
    if trajectories == "teacher":
        wanted = mean_square(esd_terms(LORA, KEY, float(BANK.eta)))
        np.testing.assert_allclose(metrics["esd"], wanted, rtol=1e-4)
    np.testing.assert_allclose(loss, metrics["esd"] + 0.7 * metrics["harm"], rtol=1e-6)


def test_weights_of_words_are_hard_and_have_the_slopes_of_soft_ones():
    logits = jnp.linspace(-1, 1, len(BANK.kinds) + 3)
    kinds = np.asarray(BANK.kinds)
    gumbel = np.asarray(jax.random.gumbel(KEY, (len(kinds),)), np.float64)
    scores = np.where(kinds >= POOL, (np.asarray(logits)[: len(kinds)] + gumbel) / 2, -np.inf)
    soft = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    weights = eap.chosen(logits, BANK, KEY, 2.0)
    np.testing.assert_allclose(weights, np.eye(len(kinds))[soft.argmax()], atol=1e-6)
    worth = np.random.default_rng(0).standard_normal(len(kinds))
    gradient = slope(lambda each: jnp.asarray(worth) @ eap.chosen(each, BANK, KEY, 2.0))(logits)
    wanted = soft * (worth - soft @ worth) / 2
    np.testing.assert_allclose(gradient, np.pad(wanted, (0, 3)), atol=1e-5)


@pytest.mark.slow
def test_eap_s_search_finds_what_an_adapter_harms():
    """The harm expected under the words' weights increases, and the adapter stays unchanged."""
    settings = eap.Settings(trajectories="teacher", logits_rate=0.3, most=9)
    context = with_settings(settings)
    state = start_of("eap").replace(lora=LORA)

    sample = Sample(BANK.trajectories[:, 1], jnp.full(R, BANK.times[1]), BANK.trajectory_sentences)
    harm = jax.jit(lambda weights: eap.harm(LORA, weights, inputs(settings), sample, KEY))

    def expected(logits: Any) -> float:
        """Mean of the harm under the words' probabilities, over all places."""
        kinds = np.asarray(BANK.kinds)
        shares = np.asarray(jax.nn.softmax(jnp.where(kinds >= POOL, logits[: len(kinds)], -1e9)))
        return float(shares @ np.asarray([harm(weights) for weights in jnp.eye(len(kinds))]))

    first = expected(state.own["logits"])
    # Placed as the update returns it, so that the next one is the same program.
    every_, bank, metrics = context.divided(every(state)), stack_banks([BANK]), {}
    for step in range(40):
        keys = jax.random.fold_in(KEY, step)[None]
        every_, metrics = eap.SEARCH.update(every_, PARAMS, bank, keys, context=context)
    after = run(every_)
    assert expected(after.own["logits"]) > 1.05 * first
    assert set(metrics) == {"worst", "search_gradient"}
    for a, b in zip(*map(jax.tree.leaves, (after.lora, LORA)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_meta_unlearning():
    settings = meta_unlearning.Settings(
        trajectories="teacher", keep=0.3, meta=0.2, inner_steps=2, weight_decay=0.0
    )
    context, state = with_settings(settings), start_of("meta_unlearning").replace(lora=LORA)
    keep_key, teach_key = (jax.random.fold_in(KEY, index) for index in (1, 2))
    error_slope = slope(squared_error)
    x, rows, times, target = noisy_samples(keep_key, BANK.pictures)
    kept = (x, BANK.picture_prompts[rows], times, target)

    # AdamW by hand, on the concept's own pictures.
    copy = jax.device_get(LORA)
    first = second = jax.tree.map(np.zeros_like, copy)
    for index in range(2):
        key = jax.random.fold_in(teach_key, index)
        x, rows, times, target = noisy_samples(key, BANK.trajectories[:, -1])
        gradient = jax.device_get(error_slope(copy, x, prompt(rows % M), times, target))
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        down = (1 - 0.9 ** (index + 1), 1 - 0.999 ** (index + 1))
        copy = jax.tree.map(
            lambda p, m, v, down=down: (
                p - 1e-4 * (m / down[0] / (np.sqrt(v / down[1]) + 1e-8) + 1e-4 * p)
            ),
            copy,
            first,
            second,
        )
    erase = slope(
        lambda lora: esd.losses(lora, inputs(esd.Settings(trajectories="teacher")), KEY)[0]
    )(LORA)
    total = jax.tree.map(
        lambda e, k, f: e + 0.3 * k - 0.2 * f,
        *jax.device_get((erase, error_slope(LORA, *kept), error_slope(copy, *kept))),
    )
    after, metrics = meta_unlearning.STEP.update(
        every(state), PARAMS, stack_banks([BANK]), KEYS, context=context
    )
    norm = np.sqrt(sum(np.vdot(g, g) for g in jax.tree.leaves(total)))
    np.testing.assert_allclose(metrics["meta_gradient"], norm, rtol=2e-3)
    np.testing.assert_allclose(metrics["keep"], squared_error(LORA, *kept), rtol=1e-4)
    np.testing.assert_allclose(metrics["keep_taught"], squared_error(copy, *kept), rtol=1e-4)
    trees = (*jax.device_get((LORA, run(after).lora)), total)
    for old, new, g in zip(*map(jax.tree.leaves, trees), strict=True):
        sure = np.abs(g) > 1e-4
        np.testing.assert_allclose((old - new)[sure], 1e-5 * np.sign(g[sure]), rtol=1e-2)


@pytest.mark.slow
def test_mace():
    """Attention from the concept's region to its tokens, through the closed form's change too."""
    rng = np.random.default_rng(3)
    targets = ("dual_blocks/attn/add_q_proj", "dual_blocks/attn/add_k_proj")
    edit = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32),
        init(KEY, PARAMS, targets, 1),
    )
    tokens = BANK.pictures.shape[1]
    regions = (rng.random((R, tokens)) < 0.4).astype(np.float32)
    bank = BANK.replace(edit=edit, regions=jnp.asarray(regions))
    loss, _ = losses_of(mace, mace.Settings(), bank=bank)
    # `alone` scales every B by 1.5, which must not apply to the closed form's.
    both = jax.tree.map_with_path(
        lambda path, a, b: jnp.concatenate(
            [a, b / 1.5 if path[-1].key == "B" else b], axis=-1 if path[-1].key == "A" else -2
        ),
        LORA,
        edit,
    )
    keys = jax.random.split(KEY, 3)
    rows = jax.random.randint(keys[0], (B,), 0, R).tolist()
    logits = np.log(np.maximum(sigmoid(50 * TIMES - 10) - sigmoid(50 * TIMES - 20), 1e-20))
    steps = jax.random.categorical(keys[1], jnp.asarray(logits, jnp.float32), shape=(B,)).tolist()
    noise = np.asarray(jax.random.normal(keys[2], (B, *BANK.pictures.shape[1:])), np.float64)
    sums = []
    for row, step, each in zip(rows, steps, noise, strict=True):
        t = TIMES[step]
        x = (1 - t) * np.asarray(BANK.trajectories[row, -1], np.float64) + t * each
        _, weights = alone(
            PARAMS, both, jnp.asarray(x, jnp.float32), prompt(row % M), jnp.float32(t)
        )
        columns = np.flatnonzero(BANK.masks[row % M, 0])
        image = np.asarray(weights, np.float64)[:, :, -tokens:][..., columns]
        shown = image[:, :, regions[row] > 0]
        sums.append(sum(np.linalg.norm(block) for block in shown))
    np.testing.assert_allclose(loss, np.mean(sums), rtol=1e-4)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
