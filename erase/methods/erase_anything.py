"""EraseAnything: a lower level erases, an upper level preserves, on the same adapter.

The paper's Algorithm 1 makes one update of each in turn; others make one of their sum. What the
levels minimise is in `erase.methods.levels`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from erase.config.schema import Config
from erase.data.plan import Needs, kept_prompts
from erase.data.words.irrelevant import Words
from erase.methods.base import Drawn, Method, Parts, Step, adamw_step, on_trajectories
from erase.methods.levels import Levels, Settings, early_steps, lower_losses, upper_losses
from erase.methods.parts import losses
from erase.methods.parts.compiled import StepContext
from erase.methods.parts.forward import RunInputs
from erase.methods.parts.samples import Counts, sample_pictures, sample_places
from erase.methods.parts.settings import FIELDS
from erase.methods.parts.step import Metrics, State, Update, adamw, jit_over_runs
from flux_jax import moved
from flux_jax.pipeline import Pipeline

__getattr__ = moved.names(__name__, "erase.methods.levels")

# Of Adam on the balance between the levels, as the code of EraseAnything++ has them.
BALANCE_RATE, BALANCE_DECAY = 0.3, 0.01


def _joint_gradient(
    state: State, run: RunInputs[Levels], key: PRNGKeyArray
) -> tuple[PyTree, Metrics]:
    """Of the sum of both levels' losses; the adaptive sum's weight w is `balance`."""
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
    """The adaptive sum's weight w after a step of the adapter, which joins the metrics.

    The preserving loss is looked at again, on the same samples: Adam lets w grow where the step
    made it worse and fall where it made it better.
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
    """Adam on w, with its decay in the gradient."""
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
    """W starts at 0."""
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
    """One update of each level in turn, or one of both."""
    own = config.method_settings(Settings)
    if own.alternation != "bilevel":
        return {"joint": JOINT}
    preserves = {"upper": UPPER} if own.upper.lora or own.upper.rsc else {}
    return {"lower": LOWER, **preserves}


def weights(config: Config) -> dict[str, float]:
    """Of all four losses."""
    own = config.method_settings(Settings)
    lower, upper = own.lower, own.upper
    return {"esd": lower.esd, "attn": lower.attn, "lora": upper.lora, "rsc": upper.rsc}


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Sentences with synonyms and irrelevant words where L_rsc looks at them; kept pictures."""
    del pipe
    own = config.method_settings(Settings)
    lower, upper = own.lower, own.upper
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


def contrasted_words(config: Config) -> int:
    """How many irrelevant words L_rsc draws; 0 without it, which nothing else looks at."""
    upper = config.method_settings(Settings).upper
    return upper.negatives if upper.rsc else 0


METHOD = Method(
    title="EraseAnything",
    fields=FIELDS["erase_anything"],
    needs=needs,
    steps=steps,
    compiled=Levels.of,
    weights=weights,
    wants_synonyms=lambda config: contrasted_words(config) > 0,
    irrelevant_words=contrasted_words,
)
