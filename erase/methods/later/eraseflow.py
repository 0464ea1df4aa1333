r"""EraseFlow: the concept is taught an anchor's trajectories (Kusumba et al., 2025).

Trajectory balance of generative flow networks with a constant reward R. With the concept's sentence
c and a trajectory x_1, ..., x_0 of the frozen model for the anchor's sentence, it minimises δ² of

    δ = log Z + Σ_k [log P_F(x_{k+1} | x_k; c, θ) - log P_B(x_k | x_{k+1})] - log R

where log Z is learned, and log-probabilities are means over a latent's elements. P_F is a step of
the sampler's stochastic form from noise level t to s (Liu et al., 2025, Flow-GRPO), with
g² = a² t / (1 - t), where t = 1 takes the next level in the denominator:

    N(x_k - (t - s) [v_θ + g² / (2t) (x_k + (1 - t) v_θ)], g² (t - s))

P_B is noising from s to t, N((1 - t) / (1 - s) x_{k+1}, t² - s² (1 - t)² / (1 - s)²). A high reward
keeps δ negative, so that training raises the probability of the anchor's trajectories.

Differences from the authors' code: their version for FLUX leaves out P_B, which their first version
has; P_B does not depend on θ. They draw a stochastic trajectory for every update, at first with
the adapted model; here a step starts on a stored trajectory without noise, whose latents have the
same distribution at every level, and only the step itself is drawn with noise, from the frozen
model. With `points` below the number of steps, the sum is estimated from as many.
Axis letters: B batch, K points of a trajectory, N points of all, S image tokens, C latent channels.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.plan import Needs
from erase.data.words.irrelevant import Words
from erase.methods.base import Drawn, Method, Parts, Step
from erase.methods.parts.compiled import StepContext, split_samples
from erase.methods.parts.forward import RunInputs, merge_batch_axes
from erase.methods.parts.samples import Counts, sample_points
from erase.methods.parts.step import Metrics, State, Update, adamw, jit_over_runs
from erase.methods.settings.eraseflow import FIELDS, Settings
from flux_jax.pipeline import Pipeline

# Forms of a sentence: with the concept, and with the anchor.
CONCEPT, ANCHOR = 0, 1


def log_density(
    x: Float[Array, "N S C"], mean: Float[Array, "N S C"], variance: Float[Array, "N"]
) -> Float[Array, "N"]:
    """Log-density of a Gaussian, averaged over a latent's elements."""
    error = jnp.mean(jnp.square(x - mean), axis=(1, 2))
    return -0.5 * (error / variance + jnp.log(2 * jnp.pi * variance))


def forward_mean(
    x: Float[Array, "N S C"],
    velocity: Float[Array, "N S C"],
    levels: tuple[Float[Array, "N"], Float[Array, "N"]],
    diffusion: Float[Array, "N"],
) -> Float[Array, "N S C"]:
    """Mean of P_F.

    Args:
        x: x_k.
        velocity: the model's velocity there.
        levels: t and s.
        diffusion: g².
    """
    t, s, g2 = (each[:, None, None] for each in (*levels, diffusion))
    velocity = velocity.astype(jnp.float32)
    return x - (t - s) * (velocity + g2 / (2 * t) * (x + (1 - t) * velocity))


def log_backward(
    x: Float[Array, "N S C"],
    following: Float[Array, "N S C"],
    levels: tuple[Float[Array, "N"], Float[Array, "N"]],
) -> Float[Array, "N"]:
    """Log-density of P_B.

    Args:
        x: x_k.
        following: x_{k+1}.
        levels: t and s.
    """
    t, s = levels
    ratio = (1 - t) / (1 - s)
    return log_density(x, ratio[:, None, None] * following, t**2 - (s * ratio) ** 2)


def losses(
    lora: PyTree, run: RunInputs[Settings], key: PRNGKeyArray, log_z: Float[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the mean of δ² of one run, and that of δ."""
    settings, bank, context = run.settings, run.bank, run.context
    count = len(bank.times)
    rows, steps = sample_points(
        len(bank.trajectories), key, context.batch_size, count, settings.points
    )
    latents = bank.trajectories[rows[:, None], steps].astype(jnp.float32)
    ends = jnp.append(bank.times[1:], 0)
    # In the first step 1 - t is 0.
    rest = 1 - jnp.where(bank.times == 1, bank.times[1], bank.times)
    levels = tuple(merge_batch_axes((bank.times[steps], ends[steps], rest[steps])))
    sentences = jnp.repeat(bank.trajectory_sentences[rows], steps.shape[1])
    latents, prompts, (t, s, rest) = split_samples(
        context, (merge_batch_axes(latents), bank.sentences[sentences], levels)
    )
    diffusion = settings.noise**2 * t / rest
    anchor = run.frozen.velocity(latents, prompts[:, ANCHOR], t)
    noise = jax.random.normal(jax.random.fold_in(key, 1), latents.shape)
    spread = jnp.sqrt(diffusion * (t - s))[:, None, None]
    following = forward_mean(latents, anchor, (t, s), diffusion) + spread * noise
    following = jax.lax.stop_gradient(following)
    found = run.adapted(lora).velocity(latents, prompts[:, CONCEPT], t)
    forward = log_density(
        following, forward_mean(latents, found, (t, s), diffusion), diffusion * (t - s)
    )
    ratios = (forward - log_backward(latents, following, (t, s))).reshape(steps.shape)
    residual = log_z + count * jnp.mean(ratios, axis=1) - settings.log_reward
    loss = jnp.mean(jnp.square(residual))
    return loss, {"balance": loss, "residual": jnp.mean(residual)}


def _gradient(state: State, run: RunInputs[Settings], key: PRNGKeyArray) -> tuple[PyTree, Metrics]:
    """Gradient with respect to the adapter."""
    log_z, _ = state.own["log_z"]
    return jax.grad(losses, has_aux=True)(state.lora, run, key, log_z)


def _balance(
    state: State, metrics: Metrics, run: RunInputs[Settings], key: PRNGKeyArray
) -> tuple[State, Metrics]:
    """Update log Z by the gradient of the same loss, 2 δ, and add it to the metrics."""
    del key
    log_z, optimiser_state = state.own["log_z"]
    slope = 2 * metrics["residual"]
    change, optimiser_state = _adam(run.settings).update(slope, optimiser_state, log_z)
    log_z = log_z + jnp.asarray(change)
    own = state.own | {"log_z": (log_z, optimiser_state)}
    return state.replace(own=own), metrics | {"log_z": log_z}


def _adam(settings: Settings) -> optax.GradientTransformation:
    """Return the optimiser of log Z."""
    return optax.adam(settings.flow_rate)


def _start(lora: PyTree, config: Config) -> dict[str, PyTree]:
    """Return the initial optimiser states; log Z starts at 0."""
    settings, log_z = config.method_settings(Settings), jnp.zeros(())
    return {
        "eraseflow": adamw(settings).init(lora),
        "log_z": (log_z, _adam(settings).init(log_z)),
    }


def _losses(key: PRNGKeyArray, own: Mapping[str, PyTree]) -> Parts[Settings]:
    log_z, _ = own["log_z"]
    return {"eraseflow": (functools.partial(losses, log_z=log_z), key)}


def drawn(key: PRNGKeyArray, context: StepContext[Settings], counts: Counts) -> Drawn:
    """Return the sampled places."""
    rows, steps = sample_points(
        counts.trajectories, key, context.batch_size, counts.steps, context.settings.points
    )
    return {"": ("trajectories", (jnp.repeat(rows, steps.shape[1]), steps.ravel()))}


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request sentences with the anchor in the concept's place, for the trajectories."""
    del pipe
    anchor = config.method_settings(Settings).anchor or words.first
    return Needs(pools=((), (anchor,)), drawn=ANCHOR)


STEP = Step(
    jit_over_runs(Update("eraseflow", _gradient, adamw, "eraseflow", follow=_balance)),
    _start,
    _losses,
    drawn,
)
METHOD = Method(
    title="EraseFlow",
    fields=FIELDS,
    needs=needs,
    steps=lambda config: {"eraseflow": STEP},
    compiled=lambda config: replace(config.method_settings(Settings), anchor=""),
    weights=lambda config: {"balance": 1.0},
)
