"""EraseAnything: a lower level erases and an upper level preserves, on the same adapter.

The paper's Algorithm 1 alternates one update of each level; the other alternations make one update
on the sum of their losses. `erase.methods.parts.levels` has the losses.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.plan import Features, Needs, Plan, kept_prompts
from erase.data.words.irrelevant import Words
from erase.methods.base import Drawn, Method, Parts, Step, adamw_step, on_trajectories
from erase.methods.parts import losses
from erase.methods.parts.compiled import StepContext
from erase.methods.parts.contrast import add_features, early_steps
from erase.methods.parts.forward import RunInputs
from erase.methods.parts.levels import Levels, both_losses, lower_losses, upper_losses
from erase.methods.parts.samples import Counts, sample_noises, sample_pictures, sample_places
from erase.methods.parts.step import Metrics, State, Update, adamw, jit_over_runs
from erase.methods.settings.erase_anything import FIELDS, Settings
from flux_jax.pipeline import Pipeline

# Learning rate and decay of Adam on the balance between the levels, from EraseAnything++'s code.
BALANCE_RATE, BALANCE_DECAY = 0.3, 0.01


def _joint_gradient(
    state: State, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[PyTree, Metrics]:
    """Gradient of the sum of both levels' losses; the adaptive sum's weight w is `balance`."""
    lower_key, upper_key = jax.random.split(key)
    balance, _ = state.own["balance"]

    def loss(lora: PyTree) -> tuple[Array, Metrics]:
        (erasing, metrics), (preserving, more) = both_losses(lora, run, lower_key, upper_key)
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
        pictures = counts.pictures
        if level.noises:
            rows, _, steps = sample_noises(pictures, level.noises, lora_key, batch, counts.steps)
        else:
            rows, steps, _ = sample_pictures(pictures, lora_key, batch, counts.steps)
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
        noises=upper.noises if upper.lora else 0,
        features=(
            Features(
                steps=early_steps(upper, config.steps),
                last=upper.blocks == "last" or upper.rsc_form == "released",
                text=upper.rsc_form == "released",
            )
            if upper.rsc and upper.rsc_features == "frozen"
            else None
        ),
    )


def completes(config: Config, pipe: Pipeline, planned: Plan, bank: Bank) -> Bank:
    """Add the frozen model's features to the bank, if L_rsc uses them."""
    del planned
    upper = config.method_settings(Settings).upper
    if upper.rsc and upper.rsc_features == "frozen":
        return add_features(config, pipe, bank, upper)
    return bank


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
    completes=completes,
)
