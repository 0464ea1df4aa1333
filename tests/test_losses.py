"""The losses against their formulas, written out in NumPy with float64, and their gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from erase.methods.parts import losses

L, B, H, T, S, C, K, G = 3, 2, 4, 5, 6, 8, 3, 2


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def masses(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.01, 0.3, shape).astype(np.float32)


def features(*shape: int, seed: int = 0) -> np.ndarray:
    values = masses(*shape, seed=seed)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def close(actual: jax.Array, expected: float | np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_esd(eta: float):
    student, conditional, empty, towards = (normal(B, S, C, seed=i) for i in range(4))
    total = 0.0
    for index in np.ndindex(B, S, C):
        s, c, e, to = (float(v[index]) for v in (student, conditional, empty, towards))
        total += (s - (to - eta * (c - e))) ** 2
    target = losses.esd_target(conditional, empty, towards, eta)
    close(losses.squared_error(student, target), total / (B * S * C))


def test_esd_pushes_past_the_empty_prompt():
    conditional, empty = normal(B, S, C), normal(B, S, C, seed=1)
    target = losses.esd_target(conditional, empty, empty, 1.0)
    np.testing.assert_allclose(target - empty, empty - conditional, atol=1e-6)


def test_esd_has_no_gradient_through_its_target():
    student, conditional, empty = (jnp.asarray(normal(B, S, C, seed=i)) for i in range(3))

    def loss(student: jax.Array, conditional: jax.Array, empty: jax.Array) -> jax.Array:
        return losses.squared_error(student, losses.esd_target(conditional, empty, empty, eta=1.0))

    gradients = jax.grad(loss, argnums=(0, 1, 2))(student, conditional, empty)
    assert jnp.abs(gradients[0]).max() > 0
    assert not jnp.any(gradients[1])
    assert not jnp.any(gradients[2])
    check_grads(lambda s: loss(s, conditional, empty), (student,), 1, ["rev"], 1e-2, 1e-2)


def test_attention_to_the_concept():
    mass = masses(L, B, H, T + S)
    total = 0.0
    for block, sample, head in np.ndindex(L, B, H):
        for query in range(T, T + S):
            total += float(mass[block, sample, head, query])
    close(losses.attention_to_concept(mass, T), total / (L * B * H * S))
    check_grads(lambda m: losses.attention_to_concept(m, T), (mass,), 1, ["rev"], 1e-2, 1e-2)


def test_attention_of_text_queries_does_not_count():
    gradient = jax.grad(losses.attention_to_concept)(jnp.asarray(masses(L, B, H, T + S)), T)
    assert not gradient[..., :T].any()
    assert (gradient[..., T:] > 0).all()


def test_flow_matching():
    velocity, clean, noise = (normal(B, S, C, seed=i) for i in range(3))
    total = 0.0
    for index in np.ndindex(B, S, C):
        total += (float(noise[index]) - float(clean[index]) - float(velocity[index])) ** 2
    close(losses.flow_matching(velocity, clean, noise), total / (B * S * C))
    check_grads(
        lambda v: losses.flow_matching(v, clean, noise), (velocity,), 1, ["rev"], 1e-2, 1e-2
    )


def test_the_true_velocity_has_no_flow_matching_loss():
    clean, noise = normal(B, S, C), normal(B, S, C, seed=1)
    steps = 1e-2
    mixed = [(1 - t) * clean + t * noise for t in (0.4, 0.4 + steps)]
    assert losses.flow_matching((mixed[1] - mixed[0]) / steps, clean, noise) < 1e-6


def test_attention_features():
    mass = masses(L, B, H, T + S).astype(np.float64)
    expected = np.zeros((L, B, S))
    for block, sample in np.ndindex(L, B):
        column = sum(mass[block, sample, head, T:] for head in range(H)) / H
        expected[block, sample] = column / np.sqrt((column**2).sum())
    close(losses.attention_features(mass, T), expected)
    # Mean or sum over a word's tokens: the same features.
    close(losses.attention_features(mass / 7, T), expected)
    weights = normal(L, B, S)
    check_grads(
        lambda m: jnp.sum(weights * losses.attention_features(m, T)),
        (mass.astype(np.float32),),
        1,
        ["rev"],
        1e-2,
        1e-2,
        eps=1e-3,
    )


def test_attention_to_the_concept_as_released():
    """Norm over heads, summed over every query and token of the last block."""
    mass = masses(L, B, H, T + S, G)
    total = 0.0
    for sample, query, token in np.ndindex(B, T + S, G):
        column = mass[L - 1, sample, :, query, token].astype(np.float64)
        total += np.sqrt((column**2).sum())
    close(losses.attention_to_concept_released(mass), total / B)
    check_grads(losses.attention_to_concept_released, (mass,), 1, ["rev"], 1e-2, 1e-2)
    gradient = jax.grad(losses.attention_to_concept_released)(jnp.zeros_like(mass))
    assert not gradient.any()


def test_attention_features_as_released():
    mass = masses(L, B, H, T + S).astype(np.float64)
    first = mass[L - 1, :, 0]
    expected = first / np.linalg.norm(first, axis=-1, keepdims=True)
    close(losses.attention_features_released(mass), expected[None])


def log_ratio(form: str, f: np.ndarray, near: np.ndarray, others: np.ndarray, tau: float) -> float:
    """L_rsc of one block and sample, from its formula."""
    to_synonym = np.exp(f @ near / tau)
    centre = near if form == "released" else f
    to_others = sum(np.exp(centre @ other / tau) for other in others)
    forms = {
        "infonce": -np.log(to_others / (to_synonym + to_others)),
        "literal": np.log(to_synonym / to_others),
        "released": np.log(to_synonym / (to_synonym + to_others)),
    }
    return float(forms[form])


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("form", ["infonce", "literal", "released"])
def test_reverse_contrastive(form: str, temperature: float):
    concept, synonym = features(L, B, S), features(L, B, S, seed=1)
    irrelevant = features(L, B, K, S, seed=2)
    total = 0.0
    for at in np.ndindex(L, B):
        parts = (each[at].astype(np.float64) for each in (concept, synonym, irrelevant))
        total += log_ratio(form, *parts, temperature)
    actual = losses.reverse_contrastive(concept, synonym, irrelevant, temperature, form)
    close(actual, total / (L * B))
    check_grads(
        lambda f: losses.reverse_contrastive(f, synonym, irrelevant, temperature, form),
        (concept,),
        1,
        ["rev"],
        2e-2,
        2e-2,
        eps=1e-3,
    )


@pytest.mark.parametrize("balance", [-2.0, 0.0, 0.5, 30.0])
def test_adaptive_sum(balance: float):
    w = max(balance, 0.0)
    actual = losses.adaptive_sum(jnp.array(3.0), jnp.array(0.7), jnp.array(balance))
    close(actual, w / (1 + w) * 0.7 + 1 / (1 + w) * 3.0)
    slopes = jax.grad(losses.adaptive_sum, argnums=(0, 1, 2))(
        jnp.array(3.0), jnp.array(0.7), jnp.array(balance)
    )
    close(jnp.stack(slopes), np.array([1 / (1 + w), w / (1 + w), 0.0]))


@pytest.mark.parametrize("form", ["infonce", "literal", "released"])
def test_reverse_contrastive_prefers_the_irrelevant_and_moves_the_concept_alone(form: str):
    synonym, irrelevant = features(L, B, S, seed=1), features(L, B, K, S, seed=2)
    near, far = (
        losses.reverse_contrastive(f, synonym, irrelevant, 0.07, form)
        for f in (irrelevant[:, :, 0], synonym)
    )
    assert near < far
    assert form != "infonce" or near >= 0
    gradients = jax.grad(losses.reverse_contrastive, argnums=(0, 1, 2))(
        jnp.asarray(features(L, B, S)), jnp.asarray(synonym), jnp.asarray(irrelevant), 0.07, form
    )
    assert jnp.abs(gradients[0]).max() > 0
    assert not jnp.any(gradients[1])
    assert not jnp.any(gradients[2])


HALVES: dict[str, Callable[[], tuple[Callable[..., jax.Array], tuple[np.ndarray, ...]]]] = {
    "squared error": lambda: (losses.squared_error, (normal(B, S, C), normal(B, S, C, seed=1))),
    "flow matching": lambda: (
        losses.flow_matching,
        tuple(normal(B, S, C, seed=seed) for seed in range(3)),
    ),
    "attention": lambda: (
        lambda mass: losses.attention_to_concept(mass, T),
        (masses(L, B, H, T + S),),
    ),
    "attention, released": lambda: (
        losses.attention_to_concept_released,
        (masses(L, B, H, T + S, 2),),
    ),
    "features": lambda: (
        lambda mass: losses.attention_features(mass, T),
        (masses(L, B, H, T + S),),
    ),
    "features, released": lambda: (
        losses.attention_features_released,
        (masses(L, B, H, T + S),),
    ),
}


@pytest.mark.parametrize("name", HALVES)
def test_losses_of_half_precision_are_computed_in_float32(name: str):
    """Equal to the loss of the same values in float32: sums and squares are not rounded."""
    loss, arrays = HALVES[name]()
    halves = [jnp.asarray(each, jnp.bfloat16) for each in arrays]
    value = loss(*halves)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss(*(each.astype(jnp.float32) for each in halves)), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["infonce", "literal"])
def test_without_a_synonym_the_concept_is_led_towards_other_things_alone(form: str):
    """In place of a synonym, the concept itself has no slope, so that only the others have one."""
    keys = jax.random.split(jax.random.key(3))
    start = jax.random.normal(keys[0], (2, 3, 16))
    others = unit(jax.random.normal(keys[1], (2, 3, 4, 16)))

    def of(x: jax.Array) -> jax.Array:
        concept = unit(x)
        return losses.reverse_contrastive(concept, concept, others, 0.5, form)

    def likeness(x: jax.Array) -> jax.Array:
        return jnp.einsum("lbs,lbks->lb", unit(x), others)

    slope = jax.grad(of)(start)
    assert jnp.isfinite(slope).all()
    assert (likeness(start - 0.1 * slope) > likeness(start)).all()
    # The same as with a synonym that has no direction in common with anything near the concept.
    alone = jax.grad(
        lambda x: (
            -jax.nn.logsumexp(jnp.einsum("lbs,lbks->lbk", unit(x), others) / 0.5, axis=-1).mean()
        )
    )(start)
    cosine = jnp.sum(slope * alone, -1) / (
        jnp.linalg.norm(slope, axis=-1) * jnp.linalg.norm(alone, axis=-1)
    )
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-4)


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
