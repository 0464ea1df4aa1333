"""EraseAnything: a lower level erases and an upper level preserves, on the same adapter.

The paper's Algorithm 1 alternates one update of each level; the other alternations make one update
on the sum of their losses.
Axis letters: B batch, K irrelevant words, V forms of a sentence, S image tokens, L dual-stream
blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.plan import Needs, kept_prompts
from erase.data.words.irrelevant import Words
from erase.methods.base import Drawn, Method, Parts, Step, adamw_step, on_trajectories
from erase.methods.parts import losses
from erase.methods.parts.compiled import StepContext, split_samples
from erase.methods.parts.forward import RunInputs, anchor_velocities, merge_batch_axes
from erase.methods.parts.samples import (
    Counts,
    add_noise,
    sample_forms,
    sample_latents,
    sample_pictures,
    sample_places,
    sample_student_latents,
    stored_velocities,
)
from erase.methods.parts.step import Metrics, State, Update, adamw, jit_over_runs
from erase.methods.settings.erase_anything import FIELDS, Lower, Settings, Upper
from flux_jax.pipeline import Pipeline

# Learning rate and decay of Adam on the balance between the levels, from EraseAnything++'s code.
BALANCE_RATE, BALANCE_DECAY = 0.3, 0.01


@dataclass(frozen=True)
class Levels:
    """Settings that are compiled into the steps.

    Attributes:
        lower: settings of the erasing level.
        upper: settings of the preserving level.
        adaptive: whether the joint update's weights follow the preserving loss.
    """

    lower: Lower
    upper: Upper
    adaptive: bool

    @classmethod
    def of(cls, config: Config) -> "Levels":
        """Return the settings of a configuration, without those that only the bank depends on."""
        own = config.method_settings(Settings)
        return cls(
            lower=replace(own.lower, eta=0.0, erase_to="", stand_in=None),
            upper=replace(own.upper, prompts=(), folder=None),
            adaptive=own.alternation == "adaptive",
        )


def lower_losses(
    lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute L_esd and L_attn of one run at a sampled x_t, from one forward pass.

    Returns:
        Their weighted sum, and the parts.
    """
    level, bank, context = run.settings.lower, run.bank, run.context
    student = level.trajectories == "student"
    sample = sample_student_latents(run, lora, key) if student else sample_latents(run, key)
    latents, times, sentences = sample
    concept = split_samples(context, bank.sentences[sentences, 0])
    masks = split_samples(context, bank.masks[sentences, 0])
    released = level.attn_form == "released"
    # All of the concept's tokens are one group; in the released form, each is a group.
    groups = masks[..., None] * jnp.eye(masks.shape[-1]) if released else masks[..., None]
    predicted, out = run.adapted(lora).predict(
        latents,
        concept,
        times,
        token_masks=groups if level.attn else None,
        # Only L_esd needs the velocity.
        stop_after=None if level.esd else "dual",
    )
    metrics: Metrics = {}
    if level.esd:
        assert predicted is not None
        velocities = None if student else stored_velocities(run, key)
        if velocities is None:
            anchors = split_samples(context, bank.anchors[sentences])
            velocities = anchor_velocities(run, latents, concept, anchors, times)
        conditional, *others = velocities
        target = losses.esd_target(conditional, others[0], others[-1], bank.eta)
        metrics["esd"] = losses.squared_error(predicted, target)
    if level.attn:
        mass = out["attention"]
        metrics["attn"] = (
            losses.attention_to_concept_released(mass)
            if released
            else losses.attention_to_concept(mass[..., 0], masks.shape[-1])
        )
    return _weighted(metrics, level), metrics


def upper_losses(
    lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """Compute L_lora of one run on the pictures to preserve, and L_rsc at the early, noisy steps.

    Returns:
        Their weighted sum, and the parts.
    """
    level = run.settings.upper
    lora_key, rsc_key = jax.random.split(key)
    metrics: Metrics = {}
    if level.lora:
        metrics["lora"] = _preservation(lora, run, lora_key)
    if level.rsc:
        metrics["rsc"] = _reverse_contrastive(lora, run, rsc_key)
    return _weighted(metrics, level), metrics


def _preservation(lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray) -> Float[Array, ""]:
    """Compute L_lora at pictures to preserve, with noise mixed in.

    With a guidance-distilled model, the paper's target has a non-zero expected gradient at an
    adapter that changes nothing, because a guided velocity is not the mean over guided pictures.
    With the frozen model's velocity as target, that gradient is zero, without variance from the
    noise.
    """
    bank, batch = run.bank, run.context.batch_size
    rows, steps, noise_key = sample_pictures(len(bank.pictures), key, batch, len(bank.times))
    latents, times, clean, noise = add_noise(run, bank.pictures[rows], steps, noise_key)
    prompts = split_samples(run.context, bank.picture_prompts[rows])
    predicted = run.adapted(lora).velocity(latents, prompts, times)
    if run.settings.upper.lora_target == "noise":
        return losses.flow_matching(predicted, clean, noise)
    return losses.squared_error(predicted, run.frozen.velocity(latents, prompts, times))


def _reverse_contrastive(
    lora: PyTree, run: RunInputs[Levels], key: PRNGKeyArray
) -> Float[Array, ""]:
    """Compute L_rsc at x_t of the first steps, which decide a picture's content."""
    level, bank, context = run.settings.upper, run.bank, run.context
    latents_key, forms_key = jax.random.split(key)
    early = early_steps(level, len(bank.times))
    latents, times, sentences = sample_latents(run, latents_key, early)
    chosen = sample_forms(bank.kinds, forms_key, context.batch_size, level.negatives)

    def features(lora: PyTree, forms: Int[Array, "B V"]) -> Float[Array, "L B V S"]:
        rows, count = sentences[:, None], forms.shape[1]
        conditioning = jax.tree.map(lambda leaf: leaf[rows, forms], bank.sentences)
        masks = split_samples(context, merge_batch_axes(bank.masks[rows, forms]))
        _, out = run.adapted(lora).predict(
            split_samples(context, jnp.repeat(latents, count, axis=0)),
            split_samples(context, merge_batch_axes(conditioning)),
            split_samples(context, jnp.repeat(times, count)),
            token_masks=masks[..., None],
            stop_after="dual",
        )
        mass = out["attention"][..., 0]
        if level.blocks == "last":
            mass = mass[-1:]
        found = (
            losses.attention_features_released(mass)
            if level.rsc_form == "released"
            else losses.attention_features(mass, bank.masks.shape[-1])
        )
        return found.reshape(found.shape[0], -1, count, found.shape[-1])

    concept = features(lora, jnp.zeros_like(chosen[:, :1]))
    # A separate pass, because no gradient flows through it.
    others = features(jax.lax.stop_gradient(lora), chosen)
    return losses.reverse_contrastive(
        concept[:, :, 0], others[:, :, 0], others[:, :, 1:], level.temperature, level.rsc_form
    )


def early_steps(level: Upper, steps: int) -> int:
    """Return the number of denoising steps that L_rsc uses."""
    return max(1, round(level.early * steps))


def _weighted(metrics: Metrics, level: Lower | Upper) -> Float[Array, ""]:
    """Sum the losses with the level's weights of the same names."""
    return sum((getattr(level, name) * value for name, value in metrics.items()), jnp.zeros(()))


def _joint_gradient(
    state: State, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[PyTree, Metrics]:
    """Gradient of the sum of both levels' losses; the adaptive sum's weight w is `balance`."""
    lower_key, upper_key = jax.random.split(key)
    balance, _ = state.own["balance"]

    def loss(lora: PyTree) -> tuple[Array, Metrics]:
        erasing, metrics = lower_losses(lora, run, lower_key)
        preserving, more = upper_losses(lora, run, upper_key)
        both = losses.adaptive_sum(erasing, preserving, balance)
        total = both if run.settings.adaptive else erasing + preserving
        return total, metrics | more | {"preserving": preserving}

    return jax.grad(loss, has_aux=True)(state.lora)


def _balance(
    state: State, metrics: Metrics, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[State, Metrics]:
    """Update the adaptive sum's weight w after a step of the adapter, and add it to the metrics.

    The preserving loss is computed again on the same samples: Adam raises w if the step made the
    loss worse, and lowers it if the step made it better.
    """
    before = metrics.pop("preserving")
    if not run.settings.adaptive:
        return state, metrics
    balance, balance_state = state.own["balance"]
    _, upper_key = jax.random.split(key)
    after, _ = upper_losses(state.lora, run, upper_key)
    change, balance_state = balancer().update(before - after, balance_state, balance)
    balance = balance + jnp.asarray(change)
    own = state.own | {"balance": (balance, balance_state)}
    return state.replace(own=own), metrics | {"balance": balance}


def balancer() -> optax.GradientTransformation:
    """Return Adam for w, with the decay added to the gradient."""
    return optax.chain(optax.add_decayed_weights(BALANCE_DECAY), optax.adam(BALANCE_RATE))


def _drawn_lower(key: PRNGKeyArray, context: StepContext[Levels], counts: Counts) -> Drawn:
    return {"lower": on_trajectories(key, context, counts)[""]}


def _drawn_upper(key: PRNGKeyArray, context: StepContext[Levels], counts: Counts) -> Drawn:
    lora_key, rsc_key = jax.random.split(key)
    latents_key, _ = jax.random.split(rsc_key)
    level, batch, drawn = context.settings.upper, context.batch_size, {}
    if level.lora:
        rows, steps, _ = sample_pictures(counts.pictures, lora_key, batch, counts.steps)
        drawn["lora"] = ("pictures", (rows, steps))
    if level.rsc:
        early = early_steps(level, counts.steps)
        places = sample_places(counts.trajectories, latents_key, batch, early)
        drawn["rsc"] = ("trajectories", places)
    return drawn


def _drawn_joint(key: PRNGKeyArray, context: StepContext[Levels], counts: Counts) -> Drawn:
    lower, upper = jax.random.split(key)
    return {**_drawn_lower(lower, context, counts), **_drawn_upper(upper, context, counts)}


def _start_joint(lora: PyTree, config: Config) -> dict[str, PyTree]:
    """Return the initial optimiser states; w starts at 0."""
    balance = jnp.zeros(())
    return {
        "lower": adamw(config.method_settings(Settings).lower).init(lora),
        "balance": (balance, balancer().init(balance)),
    }


def _losses_joint(key: PRNGKeyArray, own: Mapping[str, PyTree]) -> Parts[Levels]:
    del own
    lower, upper = jax.random.split(key)
    return {"lower": (lower_losses, lower), "upper": (upper_losses, upper)}


LOWER = adamw_step(
    "lower",
    lower_losses,
    lambda config: config.method_settings(Settings).lower,
    lambda own: own.lower,
    _drawn_lower,
)
UPPER = adamw_step(
    "upper",
    upper_losses,
    lambda config: config.method_settings(Settings).upper,
    lambda own: own.upper,
    _drawn_upper,
)
JOINT = Step(
    jit_over_runs(
        Update("joint", _joint_gradient, lambda own: adamw(own.lower), "lower", follow=_balance)
    ),
    _start_joint,
    _losses_joint,
    _drawn_joint,
)
lower_update, upper_update, joint_update = LOWER.update, UPPER.update, JOINT.update


def steps(config: Config) -> Mapping[str, Step]:
    """Return one step per level, or one for both."""
    own = config.method_settings(Settings)
    if own.alternation != "bilevel":
        return {"joint": JOINT}
    preserves = {"upper": UPPER} if own.upper.lora or own.upper.rsc else {}
    return {"lower": LOWER, **preserves}


def weights(config: Config) -> dict[str, float]:
    """Return the weights of all four losses."""
    own = config.method_settings(Settings)
    lower, upper = own.lower, own.upper
    return {"esd": lower.esd, "attn": lower.attn, "lora": upper.lora, "rsc": upper.rsc}


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request sentences with synonyms and irrelevant words for L_rsc, and pictures for L_lora."""
    del pipe
    own = config.method_settings(Settings)
    lower, upper = own.lower, own.upper
    # Without a synonym, the concept takes its place: L_rsc then only pulls it towards other things,
    # since it has no gradient away from the concept itself.
    synonyms = config.synonyms or (config.concept,)
    shown = kept_prompts(config, upper.prompts, upper.pictures, upper.without_concept)
    return Needs(
        # Only L_rsc uses the other forms.
        pools=(synonyms, *words.pools) if upper.rsc else (),
        bare=upper.rsc_form == "released",
        stand_in=lower.stand_in,
        towards=lower.erase_to,
        eta=lower.eta,
        shown=shown if upper.lora else (),
        folder=upper.folder if upper.lora else None,
        velocities="lower" if lower.esd and lower.trajectories == "teacher" else "",
    )


def contrasted_words(config: Config) -> int:
    """Return the number of irrelevant words that L_rsc samples; 0 if L_rsc is off."""
    upper = config.method_settings(Settings).upper
    return upper.negatives if upper.rsc else 0


METHOD = Method(
    title="EraseAnything",
    fields=FIELDS,
    needs=needs,
    steps=steps,
    compiled=Levels.of,
    weights=weights,
    wants_synonyms=lambda config: contrasted_words(config) > 0,
    irrelevant_words=contrasted_words,
)
