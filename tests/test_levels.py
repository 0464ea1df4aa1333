"""The losses of each level, recomputed sample by sample from full attention weights.

Axis letters: M sentences, V forms, T text tokens, R trajectories, D steps, F pictures.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small import (
    BANK,
    CONFIG,
    CONTEXT,
    KEY,
    LORA,
    MODEL,
    PARAMS,
    D,
    F,
    M,
    R,
    T,
    V,
    alone,
    fresh,
    lower,
    make_bank,
    random_tree,
    scaled,
    upper,
    with_levels,
)

from erase.data.plan import CONCEPT, FILLER, POOL, SYNONYM
from erase.methods.parts import losses
from erase.methods.parts.samples import sample_forms
from flux_jax.programs import Denoiser


def test_one_pass_gives_both_lower_losses():
    """Recomputed without batching: each sample, each prompt and the full weights separately."""
    total, metrics = lower(LORA, params=PARAMS, bank=BANK, key=KEY, context=CONTEXT)
    row_key, step_key = jax.random.split(KEY)
    rows = jax.random.randint(row_key, (4,), 0, R)
    steps = jax.random.randint(step_key, (4,), 0, D)
    esd, attn = [], []
    for row, step in zip(rows, steps, strict=True):
        x, t = BANK.trajectories[row, step], BANK.times[step]
        concept = BANK.sentences[int(row) % M, 0]
        student, weights = alone(PARAMS, LORA, x, concept, t)
        base, empty = (
            alone(PARAMS, None, x, p, t)[0] for p in (concept, BANK.anchors[int(row) % M, 0])
        )
        esd.append(np.square(student - (empty - 1.5 * (base - empty))).mean())
        tokens = np.flatnonzero(BANK.masks[int(row) % M, 0])
        attn.append(weights[..., T:, tokens].sum(-1).mean())
    np.testing.assert_allclose(metrics["esd"], np.mean(esd), rtol=1e-5)
    np.testing.assert_allclose(metrics["attn"], np.mean(attn), rtol=1e-5)
    np.testing.assert_allclose(total, metrics["esd"] + 2 * metrics["attn"], rtol=1e-6)


@pytest.mark.slow
def test_one_time_and_one_guidance_serve_all_samples():
    prompts, latents = BANK.sentences[:, 0], BANK.trajectories[:M, 0]
    model = Denoiser(MODEL, PARAMS, BANK.image_ids, 2.0)
    each = model.replace(guidance=jnp.full(M, 2.0))
    velocity = jax.jit(Denoiser.velocity)
    found = velocity(model, latents, prompts, jnp.float32(0.5))
    np.testing.assert_array_equal(found, velocity(each, latents, prompts, jnp.full(M, 0.5)))
    for row in range(M):
        wanted, _ = alone(PARAMS, None, latents[row], prompts[row], jnp.float32(0.5), 2.0)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_second_anchor_takes_the_empty_prompts_place():
    bank = make_bank(anchors=2)
    context = with_levels(CONTEXT, lower=replace(CONFIG.lower, attn=0.0))
    _, metrics = lower(LORA, params=PARAMS, bank=bank, key=KEY, context=context)
    same = bank.replace(anchors=bank.anchors[:, :1])
    _, plain = lower(LORA, params=PARAMS, bank=same, key=KEY, context=context)
    swapped = bank.replace(anchors=bank.anchors[:, np.array([0, 0])])
    _, twice = lower(LORA, params=PARAMS, bank=swapped, key=KEY, context=context)
    assert abs(metrics["esd"] - plain["esd"]) > 1e-3
    np.testing.assert_allclose(twice["esd"], plain["esd"], rtol=1e-5)


def test_upper_losses_sample_by_sample():
    total, metrics = upper(LORA, params=PARAMS, bank=BANK, key=KEY, context=CONTEXT)
    lora_key, rsc_key = jax.random.split(KEY)
    keys = jax.random.split(lora_key, 3)
    rows, steps = (jax.random.randint(k, (4,), 0, n) for k, n in zip(keys, (F, D), strict=False))
    noises = jax.random.normal(keys[2], (4, *BANK.pictures.shape[1:]))
    errors = []
    for row, step, noise in zip(rows, steps, noises, strict=True):
        clean, t = BANK.pictures[row], BANK.times[step]
        mixed = (1 - t) * clean + t * noise
        velocity, _ = alone(PARAMS, LORA, mixed, BANK.picture_prompts[row], t)
        errors.append(np.square(velocity - (noise - clean)).mean())
    np.testing.assert_allclose(metrics["lora"], np.mean(errors), rtol=1e-5)

    base = with_levels(CONTEXT, upper=replace(CONFIG.upper, rsc=0.0, lora_target="base"))
    errors = []
    for row, step, noise in zip(rows, steps, noises, strict=True):
        t = BANK.times[step]
        mixed = (1 - t) * BANK.pictures[row] + t * noise
        adapted, frozen = (
            alone(PARAMS, each, mixed, BANK.picture_prompts[row], t)[0] for each in (LORA, None)
        )
        errors.append(np.square(adapted - frozen).mean())
    _, held = upper(LORA, params=PARAMS, bank=BANK, key=KEY, context=base)
    # The two velocities differ by a hundredth, which amplifies rounding a hundredfold.
    np.testing.assert_allclose(held["lora"], np.mean(errors), rtol=1e-4)
    unchanged = fresh().lora
    _, held = upper(unchanged, params=PARAMS, bank=BANK, key=KEY, context=base)
    assert held["lora"] < 1e-10

    row_key, step_key = jax.random.split(jax.random.split(rsc_key)[0])
    rows = jax.random.randint(row_key, (4,), 0, R)
    steps = jax.random.randint(step_key, (4,), 0, D // 2)
    terms = []
    for row, step in zip(rows, steps, strict=True):
        forms = []
        for form in range(V):
            x, prompt = BANK.trajectories[row, step], BANK.sentences[int(row) % M, form]
            _, weights = alone(PARAMS, LORA, x, prompt, BANK.times[step])
            tokens = np.flatnonzero(BANK.masks[int(row) % M, form])
            columns = np.asarray(weights)[..., T:, tokens].mean((1, 3))
            forms.append(columns / np.linalg.norm(columns, axis=-1, keepdims=True))
        for block in range(2):
            concept, synonym, *others = (f[block] for f in forms)
            near = np.exp(concept @ synonym / 0.5)
            far = sum(np.exp(concept @ other / 0.5) for other in others)
            terms.append(-np.log(far / (near + far)))
    np.testing.assert_allclose(metrics["rsc"], np.mean(terms), rtol=1e-4)
    np.testing.assert_allclose(total, 0.5 * metrics["lora"] + 0.25 * metrics["rsc"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["lower", "upper"])
def test_gradients_are_the_losses_slopes(level: str):
    """Of L_rsc's features only the concept's move, so it is excluded from the numerical slope."""
    context = with_levels(CONTEXT, upper=replace(CONFIG.upper, rsc=0.0))
    function = {"lower": lower, "upper": upper}[level]

    @jax.jit
    @jax.value_and_grad
    def loss(tree: dict) -> jax.Array:
        return function(tree, params=PARAMS, bank=BANK, key=KEY, context=context)[0]

    direction = random_tree(LORA, 9, 1.0)
    step = 1e-2
    plus, minus = (
        loss(jax.tree.map(lambda a, d, s=s: a + s * d, LORA, direction))[0] for s in (step, -step)
    )
    _, gradient = loss(LORA)
    slope = sum(
        jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
    )
    np.testing.assert_allclose(slope, (plus - minus) / (2 * step), rtol=2e-2, atol=1e-4)


@pytest.mark.slow
def test_contrast_moves_the_concepts_features_alone():
    context = with_levels(CONTEXT, upper=replace(CONFIG.upper, lora=0.0, rsc=1.0))
    _, rsc_key = jax.random.split(KEY)
    row_key, step_key = jax.random.split(jax.random.split(rsc_key)[0])
    rows = jax.random.randint(row_key, (4,), 0, R)
    steps = jax.random.randint(step_key, (4,), 0, D // 2)

    @jax.jit
    def features(tree: dict, form: int | jax.Array) -> jax.Array:
        _, out = Denoiser(MODEL, PARAMS, BANK.image_ids, 3.5, scaled(tree)).predict(
            BANK.trajectories[rows, steps],
            BANK.sentences[BANK.trajectory_sentences[rows], form],
            BANK.times[steps],
            token_masks=BANK.masks[BANK.trajectory_sentences[rows], form][..., None],
            stop_after="dual",
        )
        return losses.attention_features(out["attention"][..., 0], T)

    fixed = [features(LORA, form) for form in range(1, V)]
    expected = jax.jit(
        jax.grad(
            lambda tree: losses.reverse_contrastive(
                features(tree, 0), fixed[0], jnp.stack(fixed[1:], axis=2), 0.5
            )
        )
    )(LORA)
    actual = jax.jit(
        jax.grad(lambda tree: upper(tree, params=PARAMS, bank=BANK, key=KEY, context=context)[0])
    )(LORA)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        # The slope is a small difference of nearly equal terms.
        np.testing.assert_allclose(a, e, atol=1e-4 * float(jnp.abs(e).max()))


@pytest.mark.slow
def test_the_authors_forms_of_attn_and_rsc():
    """Last block only; every query; the norm over heads, and the first head."""
    context = with_levels(
        CONTEXT,
        lower=replace(CONFIG.lower, esd=0.0, attn_form="released"),
        upper=replace(CONFIG.upper, lora=0.0, rsc_form="released", blocks="last"),
    )
    _, metrics = lower(LORA, params=PARAMS, bank=BANK, key=KEY, context=context)
    row_key, step_key = jax.random.split(KEY)
    rows = jax.random.randint(row_key, (4,), 0, R)
    attn = []
    for row, step in zip(rows, jax.random.randint(step_key, (4,), 0, D), strict=True):
        sentence = int(row) % M
        time = BANK.times[step]
        _, weights = alone(
            PARAMS, LORA, BANK.trajectories[row, step], BANK.sentences[sentence, 0], time
        )
        columns = np.asarray(weights)[-1][..., np.flatnonzero(BANK.masks[sentence, 0])]
        attn.append(np.linalg.norm(columns, axis=0).sum())
    np.testing.assert_allclose(metrics["attn"], np.mean(attn), rtol=1e-4)

    _, metrics = upper(LORA, params=PARAMS, bank=BANK, key=KEY, context=context)
    row_key, step_key = jax.random.split(jax.random.split(jax.random.split(KEY)[1])[0])
    rows = jax.random.randint(row_key, (4,), 0, R)
    terms = []
    for row, step in zip(rows, jax.random.randint(step_key, (4,), 0, D // 2), strict=True):
        sentence, forms = int(row) % M, []
        for form in range(V):
            prompt, time = BANK.sentences[sentence, form], BANK.times[step]
            _, weights = alone(PARAMS, LORA, BANK.trajectories[row, step], prompt, time)
            tokens = np.flatnonzero(BANK.masks[sentence, form])
            column = np.asarray(weights)[-1, 0][:, tokens].mean(-1)
            forms.append(column / np.linalg.norm(column))
        concept, synonym, *others = forms
        near = np.exp(synonym @ concept / 0.5)
        terms.append(np.log(near / (near + sum(np.exp(synonym @ o / 0.5) for o in others))))
    np.testing.assert_allclose(metrics["rsc"], np.mean(terms), rtol=1e-4)


@pytest.mark.slow
def test_each_pool_gives_its_share_and_fillers_are_never_drawn():
    kinds = jnp.array([CONCEPT, SYNONYM, SYNONYM, POOL, POOL, POOL + 1, POOL + 2, POOL + 2, FILLER])
    drawn = np.asarray(sample_forms(kinds, KEY, 400, 3))
    assert set(drawn[:, 0]) == {1, 2}
    # One of each pool, in turn, as K is the number of pools.
    assert [set(drawn[:, 1 + k]) for k in range(3)] == [{3, 4}, {5}, {6, 7}]
    shares = [(drawn == form).mean(0).max() for form in (1, 3, 6)]
    np.testing.assert_allclose(shares, 0.5, atol=0.1)
    rows = np.asarray(sample_forms(kinds, KEY, 400, 5))[:, 1:]
    assert all(sorted(row) == [3, 4, 5, 6, 7] for row in rows)


@pytest.mark.slow
def test_the_student_goes_its_own_way_from_the_same_noise():
    context = with_levels(CONTEXT, lower=replace(CONFIG.lower, attn=0.0, trajectories="student"))

    def losses_at(tree: dict) -> tuple[jax.Array, dict]:
        return lower(tree, params=PARAMS, bank=BANK, key=KEY, context=context)

    gradient, metrics = jax.jit(jax.grad(losses_at, has_aux=True))(LORA)
    row_key, step_key = jax.random.split(KEY)
    rows = jax.random.randint(row_key, (4,), 0, R)
    steps = jax.random.randint(step_key, (4,), 0, D)
    errors = []
    for row, step in zip(rows, steps, strict=True):
        x, prompt = BANK.trajectories[row, 0], BANK.sentences[int(row) % M, 0]
        for index in range(int(step)):
            move = BANK.times[index + 1] - BANK.times[index]
            x = x + move * alone(PARAMS, LORA, x, prompt, BANK.times[index])[0]
        t = BANK.times[step]
        student = alone(PARAMS, LORA, x, prompt, t)[0]
        base, empty = (
            alone(PARAMS, None, x, p, t)[0] for p in (prompt, BANK.anchors[int(row) % M, 0])
        )
        errors.append(np.square(student - (empty - 1.5 * (base - empty))).mean())
    np.testing.assert_allclose(metrics["esd"], np.mean(errors), rtol=1e-4)

    # No gradient flows through the trajectory.
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_fresh_adapter_is_the_base():
    _, metrics = lower(fresh().lora, params=PARAMS, bank=BANK, key=KEY, context=CONTEXT)
    row_key, step_key = jax.random.split(KEY)
    rows = jax.random.randint(row_key, (4,), 0, R)
    steps = jax.random.randint(step_key, (4,), 0, D)
    errors = []
    for row, step in zip(rows, steps, strict=True):
        prompts = BANK.sentences[int(row) % M, 0], BANK.anchors[int(row) % M, 0]
        x, t = BANK.trajectories[row, step], BANK.times[step]
        base, empty = (alone(PARAMS, None, x, prompt, t)[0] for prompt in prompts)
        # The student is the base, so the target differs by (1 + η) (v(c) - v(∅)).
        errors.append(np.square(2.5 * (base - empty)).mean())
    np.testing.assert_allclose(metrics["esd"], np.mean(errors), rtol=1e-5)
