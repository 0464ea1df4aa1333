"""Losses of the later methods, sample by sample, in float64 NumPy from single velocities."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small import BANK, CONTEXT, KEY, KEYS, LORA, PARAMS, D, M, R, every, run, start_of
from test_method_losses import TIMES, B, inputs, losses_of, prompt, velocity, with_settings

from erase.data.bank import stack_banks
from erase.methods.later import eraseflow, gem
from erase.methods.parts.samples import Counts, sample_points

CONCEPT, ANCHOR = 0, 1


def points(key: Any, steps: int, count: int) -> list[tuple[int, list[int]]]:
    """Trajectories, and the different steps of each, as `sample_points` samples them."""
    row_key, step_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (B,), 0, R)
    order = np.argsort(jax.random.uniform(step_key, (B, steps)), axis=1)[:, :count]
    return list(zip(rows.tolist(), order.tolist(), strict=True))


def test_points_of_a_trajectory_differ_and_all_can_be_taken():
    rows, steps = sample_points(5, KEY, 64, 7, 3)
    assert steps.shape == (64, 3)
    assert set(np.asarray(rows).tolist()) == set(range(5))
    assert set(np.asarray(steps).ravel().tolist()) == set(range(7))
    assert all(len(set(row)) == 3 for row in np.asarray(steps).tolist())
    _, every_step = sample_points(5, KEY, 4, 7, 100)
    np.testing.assert_array_equal(np.sort(every_step, axis=1), np.tile(np.arange(7), (4, 1)))


def own_way(row: int, step: int) -> np.ndarray:
    """The adapted model's latents before a step, from the noise of a stored trajectory."""
    x = np.asarray(BANK.trajectories[row, 0], np.float64)
    for index in range(step):
        v = velocity(LORA, x, prompt(row % M), float(TIMES[index]))
        x = x + (TIMES[index + 1] - TIMES[index]) * v
    return x


def norm(value: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(value))))


@pytest.mark.slow
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_gem(eta: float):
    settings = gem.Settings(eta=eta, gamma=7.0, early=3, points=2)
    loss, metrics = losses_of(gem, settings)
    terms = []
    for row, steps in points(KEY, 3, 2):
        for step in steps:
            x, t = own_way(row, step), float(TIMES[step])
            found = velocity(LORA, x, prompt(row % M), t)
            anchor = velocity(None, x, BANK.anchors[row % M, 0], t)
            concept = velocity(None, x, prompt(row % M), t)
            terms.append(max(0.0, norm(found - anchor) - eta * norm(found - concept)))
    assert len(terms) == 2 * B
    assert max(terms) > 0
    np.testing.assert_allclose([loss, metrics["gem"]], 7 * np.mean(terms), rtol=1e-4)


def test_gem_s_slope_is_finite_where_nothing_is_trained_and_zero_beyond_the_middle():
    rng = np.random.default_rng(0)
    concept, anchor = (jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32) for _ in range(2))
    slope = jax.grad(lambda v: gem.margin(v, concept, anchor, 1.0))
    # At the concept's velocity, only the anchor attracts.
    toward = (concept - anchor) / np.sqrt(np.sum(np.square(concept - anchor), (1, 2)))[
        :, None, None
    ]
    np.testing.assert_allclose(slope(concept), toward / 2, rtol=1e-5)
    np.testing.assert_array_equal(slope(0.4 * concept + 0.6 * anchor), 0)


def log_normal(x: np.ndarray, mean: np.ndarray, variance: float) -> float:
    density = -np.square(x - mean) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)
    return float(density.mean())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 99])
def test_eraseflow(count: int):
    settings = eraseflow.Settings(noise=0.6, log_reward=3.0, points=count)
    loss, metrics = losses_of(eraseflow, settings, jnp.float32(0.25))
    taken = min(count, D)
    shape = (B * taken, *BANK.pictures.shape[1:])
    noise = np.asarray(jax.random.normal(jax.random.fold_in(KEY, 1), shape), np.float64)
    levels, residuals, at = [*TIMES, 0.0], [], 0
    for row, steps in points(KEY, D, count):
        ratios = []
        for step in steps:
            t, s = levels[step], levels[step + 1]
            x = np.asarray(BANK.trajectories[row, step], np.float64)
            diffusion = 0.6**2 * t / (1 - (levels[1] if t == 1 else t))

            def ahead(v: np.ndarray, t=t, s=s, x=x, diffusion=diffusion) -> np.ndarray:
                return x * (1 + diffusion / (2 * t) * (s - t)) + v * (
                    1 + diffusion * (1 - t) / (2 * t)
                ) * (s - t)

            anchor = ahead(velocity(None, x, prompt(row % M, ANCHOR), float(t)))
            following = anchor + np.sqrt(diffusion * (t - s)) * noise[at]
            found = ahead(velocity(LORA, x, prompt(row % M, CONCEPT), float(t)))
            forward = log_normal(following, found, diffusion * (t - s))
            shrunk = (1 - t) / (1 - s)
            backward = log_normal(x, shrunk * following, t**2 - s**2 * shrunk**2)
            ratios.append(forward - backward)
            at += 1
        residuals.append(0.25 + D * np.mean(ratios) - 3.0)
    np.testing.assert_allclose(metrics["residual"], np.mean(residuals), rtol=1e-4)
    np.testing.assert_allclose([loss, metrics["balance"]], np.mean(np.square(residuals)), rtol=1e-4)


@pytest.mark.slow
def test_eraseflow_learns_log_z_and_teaches_the_anchor():
    """The first step of Adam has its learning rate, against the sign of the slope 2 δ."""
    settings = eraseflow.Settings(flow_rate=0.01, learning_rate=1e-2, points=2)
    context = with_settings(settings)
    state = start_of("eraseflow").replace(lora=LORA)
    bank, states = stack_banks([BANK]), context.divided(every(state))
    after, metrics = eraseflow.STEP.update(states, PARAMS, bank, KEYS, context=context)
    assert float(metrics["residual"][0]) < -900
    np.testing.assert_allclose(run(after).own["log_z"][0], 0.01, rtol=1e-5)
    np.testing.assert_allclose(metrics["log_z"], 0.01, rtol=1e-5)

    def balance(lora: Any) -> float:
        """δ on all points of some trajectories, whose noise training does not use."""
        given = inputs(replace(settings, points=99))
        found = jax.jit(lambda lora: eraseflow.losses(lora, given, KEY, jnp.zeros(())))(lora)
        return float(found[1]["residual"])

    first = balance(LORA)
    for step in range(30):
        keys = jax.random.fold_in(KEY, step)[None]
        after, metrics = eraseflow.STEP.update(after, PARAMS, bank, keys, context=context)
    assert balance(run(after).lora) > first + 0.1
    assert set(metrics) == {"balance", "residual", "log_z", "eraseflow_gradient"}


def test_places_are_those_that_losses_sample():
    counts = Counts(R, 0, BANK.times)
    for method, settings in (
        (gem, gem.Settings(early=3, points=2)),
        (eraseflow, eraseflow.Settings(points=2)),
    ):
        context = replace(CONTEXT, settings=settings)
        ((_, (rows, steps)),) = method.drawn(KEY, context, counts).values()
        wanted = points(KEY, 3 if method is gem else D, 2)
        assert rows.tolist() == [row for row, each in wanted for _ in each]
        assert steps.tolist() == [step for _, each in wanted for step in each]
