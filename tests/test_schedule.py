"""Noise levels and Euler steps against diffusers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from flux_jax.errors import InputError
from flux_jax.sampling import Schedule, denoise, euler

SETTINGS: dict[str, dict[str, Any]] = {
    "dev": {"shift": 3.0, "use_dynamic_shifting": True},
    "schnell": {"shift": 1.0, "use_dynamic_shifting": False},
    "static": {"shift": 3.0, "use_dynamic_shifting": False},
    "other range": {"use_dynamic_shifting": True, "base_shift": 0.2, "max_shift": 0.9}
    | {"base_image_seq_len": 16, "max_image_seq_len": 64},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "terminal": {"use_dynamic_shifting": True, "shift_terminal": 0.1},
}


def scheduler(settings: dict[str, Any], steps: int, tokens: int) -> Any:
    """Diffusers' scheduler after the calls that FluxPipeline makes."""
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    config = scheduler.config
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(config[name] for name in names))
    sigmas: Any = np.linspace(1.0, 1 / steps, steps)
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=mu)
    return scheduler


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("steps", "tokens"), [(28, 1024), (4, 256), (50, 4096), (7, 64)])
def test_sigmas_equal_diffusers(name, steps, tokens):
    wanted = scheduler(SETTINGS[name], steps, tokens)
    schedule = Schedule.from_dict(wanted.config)
    sigmas = schedule.sigmas(steps, tokens)
    assert sigmas.dtype == np.float32
    np.testing.assert_allclose(sigmas, wanted.sigmas, rtol=0, atol=1e-6)
    # The pipeline passes timestep / 1000 to the transformer.
    np.testing.assert_allclose(sigmas[:-1], wanted.timesteps / 1000, rtol=0, atol=1e-6)


def test_one_step_starts_at_pure_noise():
    np.testing.assert_array_equal(Schedule().sigmas(1, 64), [1.0, 0.0])


def test_a_step_keeps_latents_in_float32():
    x, velocity = jnp.full(3, 1.0 + 2**-20), jnp.full(3, 0.5, jnp.bfloat16)
    found = euler(x, velocity, jnp.float32(0.75), jnp.float32(0.25))
    assert found.dtype == jnp.float32
    # In bfloat16 the small part would be lost.
    np.testing.assert_array_equal(found, np.full(3, 0.75 + 2**-20, np.float32))


@pytest.mark.parametrize("name", ["dev", "schnell"])
def test_denoising_equals_diffusers_steps(name):
    reference = scheduler(SETTINGS[name], 9, 1024)
    noise = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    x = noise
    states = [x]
    for timestep in reference.timesteps:
        x = reference.step(torch.sin(3 * x) - timestep / 1000, timestep, x).prev_sample
        states.append(x)
    wanted = torch.stack(states).numpy()

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.sin(3 * x) - t

    sigmas = Schedule.from_dict(reference.config).sigmas(9, 1024)
    start = jnp.asarray(noise.numpy())
    trajectory = denoise(velocity, start, jnp.asarray(sigmas), keep_trajectory=True)
    assert trajectory.shape == wanted.shape
    np.testing.assert_allclose(trajectory, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    np.testing.assert_array_equal(denoise(velocity, start, jnp.asarray(sigmas)), trajectory[-1])


def test_a_straight_field_lands_on_its_target_in_half_precision():
    noise, target = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        return (noise - target).astype(jnp.bfloat16)

    landed = denoise(velocity, noise, jnp.asarray(Schedule(shift=3.0).sigmas(28, 64)))
    assert landed.dtype == jnp.float32
    wanted = noise - (noise - target).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(landed, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        {"use_karras_sigmas": True},
        {"invert_sigmas": True},
        {"stochastic_sampling": True},
        {"num_train_timesteps": 100},
        {"time_shift_type": "cubic"},
        {"_class_name": "DDIMScheduler"},
    ],
)
def test_unsupported_settings_are_named(setting):
    with pytest.raises(InputError, match=f"{next(iter(setting))} = "):
        Schedule.from_dict(setting)


def test_too_few_steps_are_named():
    with pytest.raises(InputError, match="steps = 0 must be at least 1"):
        Schedule().sigmas(0, 64)
    with pytest.raises(InputError, match="steps = 1 must be at least 2"):
        Schedule(shift_terminal=0.1).sigmas(1, 64)
