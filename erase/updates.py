"""One step of each level: a lower update erases, an upper update preserves, on the same adapter.

Both are jitted over a mesh with the axis `data`: samples are split over it, everything else is on
every device. What they draw follows from the key alone.
Axis letters: B batch, A anchors, K irrelevant words, T text tokens, S image tokens, C latent
channels, L dual-stream blocks, H heads, N tokens.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase import losses
from erase.bank import Bank
from erase.config import Config, Lower, Upper
from flux_jax.lora import Adapter, init
from flux_jax.pipeline import Conditioning, apply_transformer
from flux_jax.transformer import FluxTransformer

AXIS = "data"
Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class State:
    """What training changes.

    Attributes:
        lora: the adapter's tree, float32.
        lower: state of the erasing level's optimiser.
        upper: state of the preserving level's optimiser.
    """

    lora: PyTree
    lower: optax.OptState
    upper: optax.OptState


@dataclass(frozen=True)
class Setup:
    """What is compiled into the updates.

    Attributes:
        transformer: the model.
        mesh: devices, with the one axis `data`.
        batch_size: samples an update, a multiple of the number of devices.
        guidance: distilled guidance scale.
        alpha: the adapter's.
        lower: settings of the erasing level.
        upper: settings of the preserving level.
    """

    transformer: FluxTransformer
    mesh: Mesh
    batch_size: int
    guidance: float
    alpha: float
    lower: Lower
    upper: Upper

    @classmethod
    def of(cls, config: Config, transformer: FluxTransformer, mesh: Mesh | None = None) -> "Setup":
        """The setup of a run; by default on as many devices as share its batch evenly."""
        return cls(
            transformer=transformer,
            mesh=mesh or make_mesh(math.gcd(config.batch_size, jax.device_count())),
            batch_size=config.batch_size,
            guidance=config.guidance,
            alpha=config.adapter.alpha or config.adapter.rank,
            lower=config.lower,
            upper=config.upper,
        )

    def replicated(self, tree: PyTree) -> PyTree:
        """A tree's arrays on every device of the mesh."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))


def make_mesh(devices: int) -> Mesh:
    """A mesh of the first devices; the compiler places what is not said (axis type Auto)."""
    return jax.make_mesh(
        (devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def optimiser(level: Lower | Upper) -> optax.GradientTransformation:
    """AdamW with the level's own settings."""
    return optax.adamw(level.learning_rate, weight_decay=level.weight_decay)


def start(key: PRNGKeyArray, params: PyTree, config: Config) -> State:
    """The state before the first update: an adapter that changes nothing, fresh optimisers.

    Args:
        key: random key.
        params: the transformer's parameters (or their shapes).
        config: the run's configuration.

    Raises:
        InputError: a target is not a layer of the model.
    """
    lora = init(key, params, config.adapter.targets, config.adapter.rank)
    return State(lora, optimiser(config.lower).init(lora), optimiser(config.upper).init(lora))  # pyright: ignore[reportCallIssue]


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def lower_update(
    state: State, params: PyTree, bank: Bank, key: PRNGKeyArray, *, setup: Setup
) -> tuple[State, Metrics]:
    """One step against the concept.

    Args:
        state: donated.
        params: the frozen transformer's parameters.
        bank: what to draw samples from.
        key: random key.
        setup: what is compiled in.

    Returns:
        The new state; the losses `esd` and `attn` (those that have a weight) and the gradient's
        norm, `lower_gradient`.
    """
    lora, lower, metrics = _descend(
        functools.partial(lower_losses, params=params, bank=bank, key=key, setup=setup),
        state.lora,
        state.lower,
        optimiser(setup.lower),
    )
    metrics["lower_gradient"] = metrics.pop("gradient")
    return _on_all(setup, State(lora, lower, state.upper)), metrics  # pyright: ignore


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def upper_update(
    state: State, params: PyTree, bank: Bank, key: PRNGKeyArray, *, setup: Setup
) -> tuple[State, Metrics]:
    """One step for everything else.

    Arguments and results are `lower_update`'s, with the losses `lora` and `rsc` and the
    gradient's norm `upper_gradient`.
    """
    lora, upper, metrics = _descend(
        functools.partial(upper_losses, params=params, bank=bank, key=key, setup=setup),
        state.lora,
        state.upper,
        optimiser(setup.upper),
    )
    metrics["upper_gradient"] = metrics.pop("gradient")
    return _on_all(setup, State(lora, state.lower, upper)), metrics  # pyright: ignore


def lower_losses(
    lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, ""], Metrics]:
    """L_esd and L_attn at x_t of the frozen model's own denoising, from one pass of the student.

    Returns:
        Their weighted sum, and the parts.
    """
    level = setup.lower
    latents, times, sentences = _draw_latents(bank, key, setup, len(bank.times))
    concept = _split(setup, bank.sentences[sentences, 0])
    masks = _split(setup, bank.masks[sentences, 0])
    velocity, out = _apply(
        setup,
        params,
        lora,
        latents,
        concept,
        times,
        bank,
        token_masks=masks[..., None] if level.attn else None,
        # The velocity is asked for by L_esd alone.
        stop_after=None if level.esd else "dual",
    )
    metrics: Metrics = {}
    if level.esd:
        assert velocity is not None
        conditional, *anchors = _teacher(setup, params, latents, concept, times, bank)
        target = losses.esd_target(conditional, anchors[0], anchors[-1], level.eta)
        metrics["esd"] = losses.squared_error(velocity, target)
    if level.attn:
        mass = out["attention"][..., 0]
        metrics["attn"] = losses.attention_to_concept(mass, masks.shape[-1])
    return _weighted(metrics, level), metrics


def upper_losses(
    lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, ""], Metrics]:
    """L_lora on the kept pictures, and L_rsc at the first, noisy steps.

    Returns:
        Their weighted sum, and the parts.
    """
    level = setup.upper
    lora_key, rsc_key = jax.random.split(key)
    metrics: Metrics = {}
    if level.lora:
        metrics["lora"] = _preservation(lora, params, bank, lora_key, setup)
    if level.rsc:
        metrics["rsc"] = _reverse_contrastive(lora, params, bank, rsc_key, setup)
    return _weighted(metrics, level), metrics


def _preservation(
    lora: PyTree, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> Float[Array, ""]:
    """L_lora at a kept picture with noise mixed in.

    With a model whose guidance is distilled the paper's target has a slope at an adapter that
    changes nothing: guided pictures are not what a guided velocity is the mean of. The frozen
    model's velocity has none, and no variance from the noise.
    """
    keys = jax.random.split(key, 3)
    rows = jax.random.randint(keys[0], (setup.batch_size,), 0, len(bank.pictures))
    steps = jax.random.randint(keys[1], (setup.batch_size,), 0, len(bank.times))
    clean = _split(setup, bank.pictures[rows].astype(jnp.float32))
    noise = _split(setup, jax.random.normal(keys[2], clean.shape))
    times = _split(setup, bank.times[steps])
    mixed = (1 - times[:, None, None]) * clean + times[:, None, None] * noise
    shown = _split(setup, bank.picture_prompts[rows])
    velocity, _ = _apply(setup, params, lora, mixed, shown, times, bank)
    assert velocity is not None
    if setup.upper.lora_target == "noise":
        return losses.flow_matching(velocity, clean, noise)
    base, _ = _apply(setup, params, None, mixed, shown, times, bank)
    assert base is not None
    return losses.squared_error(velocity, base)


def _reverse_contrastive(
    lora: PyTree, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> Float[Array, ""]:
    level = setup.upper
    early = max(1, round(level.early * len(bank.times)))
    latents, times, sentences = _draw_latents(bank, key, setup, early)
    text_tokens = bank.masks.shape[-1]

    def features(lora: PyTree, forms: slice) -> Float[Array, "L B K S"]:
        conditioning = jax.tree.map(lambda leaf: leaf[sentences, forms], bank.sentences)
        masks = bank.masks[sentences, forms]
        count = masks.shape[1]
        _, out = _apply(
            setup,
            params,
            lora,
            _split(setup, jnp.repeat(latents, count, axis=0)),
            _split(setup, _joined(conditioning)),
            _split(setup, jnp.repeat(times, count)),
            bank,
            token_masks=_split(setup, _joined(masks))[..., None],
            stop_after="dual",
        )
        found = losses.attention_features(out["attention"][..., 0], text_tokens)
        return found.reshape(found.shape[0], -1, count, found.shape[-1])

    concept = features(lora, slice(0, 1))
    # A pass of its own, since the gradient needs none of it.
    others = features(jax.lax.stop_gradient(lora), slice(1, None))
    return losses.reverse_contrastive(
        concept[:, :, 0], others[:, :, 0], others[:, :, 1:], level.temperature
    )


def _teacher(
    setup: Setup,
    params: PyTree,
    latents: Float[Array, "B S C"],
    concept: Conditioning,
    times: Float[Array, "B"],
    bank: Bank,
) -> list[Float[Array, "B S C"]]:
    """The frozen model's velocities for the concept and for each anchor, in one batch."""
    batch = len(latents)
    prompts = jax.tree.map(
        lambda one, anchors: jnp.concatenate(
            [one[:, None], jnp.broadcast_to(anchors, (batch, *anchors.shape))], axis=1
        ),
        concept,
        bank.anchors,
    )
    count = prompts.text.shape[1]
    velocity, _ = _apply(
        setup,
        params,
        None,
        _split(setup, jnp.repeat(latents, count, axis=0)),
        _split(setup, _joined(prompts)),
        _split(setup, jnp.repeat(times, count)),
        bank,
    )
    assert velocity is not None
    velocity = velocity.reshape(batch, count, *velocity.shape[1:])
    return [velocity[:, i] for i in range(count)]


def _apply(
    setup: Setup,
    params: PyTree,
    lora: PyTree | None,
    latents: Float[Array, "B S C"],
    conditioning: Conditioning,
    times: Float[Array, "B"],
    bank: Bank,
    **options: Any,
) -> tuple[Float[Array, "B S C"] | None, dict[str, Array]]:
    adapter = None if lora is None else Adapter(lora, setup.alpha).scaled()  # pyright: ignore
    return apply_transformer(
        setup.transformer,
        params,
        adapter,
        latents,
        conditioning,
        times,
        bank.image_ids,
        setup.guidance,
        **options,
    )


def _draw_latents(
    bank: Bank, key: PRNGKeyArray, setup: Setup, steps: int
) -> tuple[Float[Array, "B S C"], Float[Array, "B"], Int[Array, "B"]]:
    """Draws x_t, its t and its sentence, among the first steps of the trajectories."""
    row_key, step_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (setup.batch_size,), 0, len(bank.trajectories))
    step = jax.random.randint(step_key, (setup.batch_size,), 0, steps)
    latents, times = bank.trajectories[rows, step], bank.times[step]
    return _split(setup, latents), _split(setup, times), bank.trajectory_sentences[rows]


def _descend(
    loss: Callable[[PyTree], tuple[Array, Metrics]],
    lora: PyTree,
    state: optax.OptState,
    transformation: optax.GradientTransformation,
) -> tuple[PyTree, optax.OptState, Metrics]:
    """One step of an optimiser; adds the gradient's norm to the metrics."""
    gradient, metrics = jax.grad(loss, has_aux=True)(lora)
    changes, state = transformation.update(gradient, state, lora)
    return (
        optax.apply_updates(lora, changes),
        state,
        metrics | {"gradient": optax.tree.norm(gradient)},
    )


def _weighted(metrics: Metrics, level: Lower | Upper) -> Float[Array, ""]:
    """The losses' sum under the weights of the same names."""
    return sum((getattr(level, name) * value for name, value in metrics.items()), jnp.zeros(()))


def _joined(tree: PyTree) -> PyTree:
    """The first two axes as one, so that a sample's rows stay beside each other."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _split(setup: Setup, tree: PyTree) -> PyTree:
    """Splits the first axis over the mesh."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(setup.mesh, PartitionSpec(AXIS)))


def _on_all(setup: Setup, tree: PyTree) -> PyTree:
    """Keeps results on every device, as the arguments were."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(setup.mesh, PartitionSpec()))
