"""EraseAnything: a lower level erases, an upper level preserves, on the same adapter.

The paper's Algorithm 1 makes one update of each in turn; others make one of their sum.
Axis letters: B batch, K irrelevant words, V forms of a sentence, S image tokens, L dual-stream
blocks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from erase.config.schema import Config, Lower, Upper
from erase.data.bank import Bank
from erase.data.plan import Needs, kept_prompts
from erase.data.words.irrelevant import Words
from erase.data.words.templates import as_template
from erase.methods.base import Drawn, Method, Parts, Step, descending
from erase.methods.parts import losses
from erase.methods.parts.compiled import Setup, split_samples
from erase.methods.parts.forward import apply, joined, teacher, velocity
from erase.methods.parts.samples import (
    Counts,
    draw_forms,
    draw_latents,
    draw_pictures,
    draw_places,
    noised,
    student_latents,
)
from erase.methods.parts.updates import Metrics, State, descend, in_every_run, optimiser
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline

# Of Adam on the balance between the levels, as the code of EraseAnything++ has them.
BALANCE_RATE, BALANCE_DECAY = 0.3, 0.01


@dataclass(frozen=True)
class Levels:
    """What is compiled into the updates.

    Attributes:
        lower: settings of the erasing level.
        upper: settings of the preserving level.
        adaptive: whether the joint update's weights follow what is being preserved.
    """

    lower: Lower
    upper: Upper
    adaptive: bool

    @classmethod
    def of(cls, config: Config) -> "Levels":
        """Without what a bank is made of."""
        return cls(
            lower=replace(config.lower, eta=0.0, erase_to="", stand_in=None),
            upper=replace(config.upper, prompts=(), folder=None),
            adaptive=config.alternation == "adaptive",
        )


def lower_losses(
    lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, ""], Metrics]:
    """L_esd and L_attn of one run at x_t on the way from noise to picture, from one pass.

    Returns:
        Their weighted sum, and the parts.
    """
    level = setup.settings.lower
    if level.trajectories == "student":
        latents, times, sentences = student_latents(lora, params, bank, key, setup)
    else:
        latents, times, sentences = draw_latents(bank, key, setup, len(bank.times))
    concept = split_samples(setup, bank.sentences[sentences, 0])
    masks = split_samples(setup, bank.masks[sentences, 0])
    released = level.attn_form == "released"
    # All of the concept's tokens are one group, or each is one of its own.
    groups = masks[..., None] * jnp.eye(masks.shape[-1]) if released else masks[..., None]
    predicted, out = apply(
        setup,
        params,
        lora,
        latents,
        concept,
        times,
        bank,
        token_masks=groups if level.attn else None,
        # The velocity is asked for by L_esd alone.
        stop_after=None if level.esd else "dual",
    )
    metrics: Metrics = {}
    if level.esd:
        assert predicted is not None
        anchors = split_samples(setup, bank.anchors[sentences])
        conditional, *anchors = teacher(setup, params, latents, concept, anchors, times, bank)
        target = losses.esd_target(conditional, anchors[0], anchors[-1], bank.eta)
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
    lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, ""], Metrics]:
    """L_lora of one run on the kept pictures, and L_rsc at the first, noisy steps.

    Returns:
        Their weighted sum, and the parts.
    """
    level = setup.settings.upper
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
    rows, steps, noise_key = draw_pictures(len(bank.pictures), key, setup, len(bank.times))
    latents, times, clean, noise = noised(bank.pictures[rows], steps, noise_key, bank, setup)
    given = (latents, split_samples(setup, bank.picture_prompts[rows]), times, bank)
    predicted = velocity(setup, params, lora, *given)
    if setup.settings.upper.lora_target == "noise":
        return losses.flow_matching(predicted, clean, noise)
    return losses.squared_error(predicted, velocity(setup, params, None, *given))


def _reverse_contrastive(
    lora: PyTree, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> Float[Array, ""]:
    level = setup.settings.upper
    latents_key, forms_key = jax.random.split(key)
    early = _early(setup, len(bank.times))
    latents, times, sentences = draw_latents(bank, latents_key, setup, early)
    text_tokens = bank.masks.shape[-1]
    drawn = draw_forms(bank, forms_key, setup, level.negatives)

    def features(lora: PyTree, forms: Int[Array, "B V"]) -> Float[Array, "L B V S"]:
        rows, count = sentences[:, None], forms.shape[1]
        conditioning = jax.tree.map(lambda leaf: leaf[rows, forms], bank.sentences)
        _, out = apply(
            setup,
            params,
            lora,
            split_samples(setup, jnp.repeat(latents, count, axis=0)),
            split_samples(setup, joined(conditioning)),
            split_samples(setup, jnp.repeat(times, count)),
            bank,
            token_masks=split_samples(setup, joined(bank.masks[rows, forms]))[..., None],
            stop_after="dual",
        )
        mass = out["attention"][..., 0]
        if level.blocks == "last":
            mass = mass[-1:]
        found = (
            losses.attention_features_released(mass)
            if level.rsc_form == "released"
            else losses.attention_features(mass, text_tokens)
        )
        return found.reshape(found.shape[0], -1, count, found.shape[-1])

    concept = features(lora, jnp.zeros_like(drawn[:, :1]))
    # A pass of its own, since the gradient needs none of it.
    others = features(jax.lax.stop_gradient(lora), drawn)
    return losses.reverse_contrastive(
        concept[:, :, 0], others[:, :, 0], others[:, :, 1:], level.temperature, level.rsc_form
    )


def _early(setup: Setup, steps: int) -> int:
    """How many of the denoising steps L_rsc looks at."""
    return max(1, round(setup.settings.upper.early * steps))


def _weighted(metrics: Metrics, level: Lower | Upper) -> Float[Array, ""]:
    """The losses' sum under the weights of the same names."""
    return sum((getattr(level, name) * value for name, value in metrics.items()), jnp.zeros(()))


def _joint(
    state: State, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[State, Metrics]:
    """One step for the sum of both levels' losses, with the lower level's optimiser.

    The adaptive sum (`losses.adaptive_sum`) then looks at the preserving loss again, on the same
    samples: Adam lets w grow where the step made it worse and fall where it made it better.
    Metrics are all losses, the gradient's norm `joint_gradient` and, if it adapts, w as `balance`.
    """
    keys = jax.random.split(key)
    given = {"params": params, "bank": bank, "setup": setup}
    adaptive = setup.settings.adaptive
    balance, balance_state = state.own["balance"]

    def loss(lora: PyTree) -> tuple[Array, Metrics]:
        erasing, metrics = lower_losses(lora, key=keys[0], **given)
        preserving, more = upper_losses(lora, key=keys[1], **given)
        both = losses.adaptive_sum(erasing, preserving, balance)
        total = both if adaptive else erasing + preserving
        return total, metrics | more | {"preserving": preserving}

    step = optimiser(setup.settings.lower)
    lora, lower, metrics = descend(loss, state.lora, state.own["lower"], step)
    before = metrics.pop("preserving")
    metrics["joint_gradient"] = metrics.pop("gradient")
    if adaptive:
        after, _ = upper_losses(lora, key=keys[1], **given)
        change, balance_state = balancer().update(before - after, balance_state, balance)
        balance = balance + jnp.asarray(change)
        metrics["balance"] = balance
    own = {"lower": lower, "balance": (balance, balance_state)}
    return state.replace(lora=lora, own=state.own | own), metrics


def balancer() -> optax.GradientTransformation:
    """Adam on w, with its decay in the gradient."""
    return optax.chain(optax.add_decayed_weights(BALANCE_DECAY), optax.adam(BALANCE_RATE))


def _drawn_lower(key: PRNGKeyArray, setup: Setup, counts: Counts) -> Drawn:
    return {"lower": ("trajectories", draw_places(counts.trajectories, key, setup, counts.steps))}


def _drawn_upper(key: PRNGKeyArray, setup: Setup, counts: Counts) -> Drawn:
    lora_key, rsc_key = jax.random.split(key)
    latents_key, _ = jax.random.split(rsc_key)
    level, drawn = setup.settings.upper, {}
    if level.lora:
        rows, steps, _ = draw_pictures(counts.pictures, lora_key, setup, counts.steps)
        drawn["lora"] = ("pictures", (rows, steps))
    if level.rsc:
        early = _early(setup, counts.steps)
        places = draw_places(counts.trajectories, latents_key, setup, early)
        drawn["rsc"] = ("trajectories", places)
    return drawn


def _drawn_joint(key: PRNGKeyArray, setup: Setup, counts: Counts) -> Drawn:
    lower, upper = jax.random.split(key)
    return {**_drawn_lower(lower, setup, counts), **_drawn_upper(upper, setup, counts)}


def _start_joint(lora: PyTree, config: Config) -> dict[str, PyTree]:
    """W starts at 0."""
    balance = jnp.zeros(())
    return {
        "lower": optimiser(config.lower).init(lora),
        "balance": (balance, balancer().init(balance)),
    }


def _losses_joint(key: PRNGKeyArray, own: Mapping[str, PyTree]) -> Parts:
    del own
    lower, upper = jax.random.split(key)
    return {"lower": (lower_losses, lower), "upper": (upper_losses, upper)}


LOWER = descending(
    "lower", lower_losses, lambda config: config.lower, lambda own: own.lower, _drawn_lower
)
UPPER = descending(
    "upper", upper_losses, lambda config: config.upper, lambda own: own.upper, _drawn_upper
)
JOINT = Step(in_every_run(_joint), _start_joint, _losses_joint, _drawn_joint)
lower_update, upper_update, joint_update = LOWER.update, UPPER.update, JOINT.update


def steps(config: Config) -> Mapping[str, Step]:
    """One update of each level in turn, or one of both."""
    if config.alternation != "bilevel":
        return {"joint": JOINT}
    preserves = {"upper": UPPER} if config.upper.lora or config.upper.rsc else {}
    return {"lower": LOWER, **preserves}


def weights(config: Config) -> dict[str, float]:
    """Of all four losses."""
    return {
        **{name: getattr(config.lower, name) for name in ("esd", "attn")},
        **{name: getattr(config.upper, name) for name in ("lora", "rsc")},
    }


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Sentences with synonyms and irrelevant words where L_rsc looks at them; kept pictures."""
    del pipe
    lower, upper = config.lower, config.upper
    # Without another word the concept stands for itself: L_rsc then leads towards other things, and
    # away from nothing, since nothing is nearer to the concept than it is.
    synonyms = config.synonyms or (config.concept,)
    shown = kept_prompts(config, upper.prompts, upper.pictures, upper.without_concept)
    return Needs(
        # Without L_rsc nothing looks at the other forms.
        pools=(synonyms, *words.pools) if upper.rsc else (),
        bare=upper.rsc_form == "released",
        stand_in=lower.stand_in,
        towards=lower.erase_to,
        eta=lower.eta,
        shown=shown if upper.lora else (),
        folder=upper.folder if upper.lora else None,
    )


def problems(config: Config) -> Iterator[str]:
    """What is wrong between fields that are right by themselves."""
    upper = config.upper
    if upper.folder and (upper.prompts or upper.without_concept):
        yield (
            f"upper.folder = {upper.folder!r} brings captions of its own: leave upper.prompts and "
            "upper.without_concept out"
        )
    for prompt in upper.prompts if upper.without_concept else ():
        try:
            as_template(prompt, config.concept)
        except InputError as error:
            yield f"upper.{error}, or leave upper.without_concept out"
    if upper.rsc and len(set(config.irrelevant)) < upper.negatives and not config.language_model:
        yield (
            f"irrelevant = {config.irrelevant!r} has fewer than upper.negatives = "
            f"{upper.negatives} different words: name more, or set upper.rsc to 0"
        )
    if not (config.lower.esd or config.lower.attn):
        yield "lower.esd = lower.attn = 0: nothing would be erased; make one of them positive"


METHOD = Method(
    title="EraseAnything",
    # `lower`, `upper` and `alternation` are fields of every configuration.
    settings=None,
    needs=needs,
    steps=steps,
    compiled=Levels.of,
    weights=weights,
    problems=problems,
)
