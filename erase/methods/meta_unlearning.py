"""Meta-Unlearning: to teach the concept again costs related good ones (Gao et al., 2024).

A step goes down

    g = ∇L_esd(θ) + γ1 ∇L_keep(θ) - γ2 ∇L_keep(θ')

where L_keep is flow matching on pictures of related concepts, and θ' is the adapter after a few
AdamW steps of flow matching on the concept's own pictures, taken as a constant apart from θ (first
order). The copy that is taught is the adapter alone, since nothing else is trained. Its authors
also go up the concept's own error at θ', and look at the kept pictures nearly without noise.
Axis letter: B batch.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from erase.config.fields import choice, number
from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.plan import Needs, kept_prompts
from erase.data.words.irrelevant import Words
from erase.data.words.templates import as_template, phrase
from erase.methods import esd
from erase.methods.base import Method, Parts, Step
from erase.methods.parts.compiled import Setup, split_samples
from erase.methods.parts.forward import velocity
from erase.methods.parts.losses import flow_matching
from erase.methods.parts.samples import draw_pictures, noised
from erase.methods.parts.updates import Metrics, State, in_every_run, optimiser
from flux_jax.pipeline import Pipeline
from flux_jax.programs import Conditioning


@dataclass(frozen=True)
class Settings:
    """Meta-Unlearning's.

    Attributes:
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        clip: largest norm of a gradient; by default none is shortened.
        eta: η of L_esd.
        stand_in: see `erase.methods.esd`.
        trajectories: whose way leads to L_esd's x_t: the adapted model's ("student"), or the frozen
            one's.
        guidance: distilled guidance scale of all velocities; by default that of the trajectories.
        keep: γ1.
        meta: γ2.
        inner_steps: that teach the concept again.
        inner_rate: AdamW's, of these.
        pictures: of related concepts.
        related: prompts that they show, in turn; by default the first sentence with each irrelevant
            word in the concept's place.
    """

    learning_rate: float = number(1e-5, above=0)
    weight_decay: float = number(0.01, least=0)
    clip: float | None = number(None, above=0)
    eta: float = number(1.0, least=0)
    stand_in: str | None = None
    trajectories: str = choice("student", "student", "teacher")
    guidance: float | None = number(None, least=0)
    keep: float = number(0.1, least=0)
    meta: float = number(0.1, least=0)
    inner_steps: int = number(3, least=1)
    inner_rate: float = number(1e-4, above=0)
    pictures: int = number(8, least=1)
    related: tuple[str, ...] = ()


def matching(
    lora: PyTree,
    params: PyTree,
    bank: Bank,
    setup: Setup,
    pictures: Float[Array, "F S C"],
    prompts: Conditioning,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Flow matching on some of the pictures."""
    rows, steps, noise_key = draw_pictures(len(pictures), key, setup, len(bank.times))
    latents, times, clean, noise = noised(pictures[rows], steps, noise_key, bank, setup)
    given = (latents, split_samples(setup, prompts[rows]), times, bank)
    predicted = velocity(setup, params, lora, *given, guidance=setup.settings.guidance)
    return flow_matching(predicted, clean, noise)


def keeping(
    lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, ""], Metrics]:
    """L_keep of one run."""
    kept = (bank.pictures, bank.picture_prompts)
    loss = matching(lora, params, bank, setup, *kept, key)
    return loss, {"keep": loss}


def erasing(
    lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, ""], Metrics]:
    """L_esd of one run."""
    own: Settings = setup.settings
    drawn = esd.draw(own.trajectories, lora, params, bank, key, setup)
    loss = esd.erasing(lora, params, bank, setup, jax.lax.stop_gradient(drawn), own.guidance)
    return loss, {"esd": loss}


def teaching(
    lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[Float[Array, ""], Metrics]:
    """Flow matching of one run on the concept's own pictures."""
    shown = bank.sentences[bank.trajectory_sentences, 0]
    loss = matching(lora, params, bank, setup, bank.trajectories[:, -1], shown, key)
    return loss, {"teach": loss}


def taught(lora: PyTree, *, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup) -> PyTree:
    """θ': the adapter after some steps on the concept's own pictures."""
    own: Settings = setup.settings
    adamw = optax.adamw(own.inner_rate)

    def step(index: Array, carry: tuple[PyTree, optax.OptState]) -> tuple[PyTree, optax.OptState]:
        lora, state = carry
        inner = jax.random.fold_in(key, index)
        loss = functools.partial(teaching, params=params, bank=bank, key=inner, setup=setup)
        gradient, _ = jax.grad(loss, has_aux=True)(lora)
        changes, state = adamw.update(gradient, state, lora)
        return optax.apply_updates(lora, changes), state

    taught, _ = jax.lax.fori_loop(0, own.inner_steps, step, (lora, adamw.init(lora)))
    return taught


def _keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]:
    """For L_esd, which has the update's own, for L_keep and for θ'."""
    return key, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)


def _update(
    state: State, params: PyTree, bank: Bank, key: PRNGKeyArray, setup: Setup
) -> tuple[State, Metrics]:
    own: Settings = setup.settings
    erase_key, keep_key, teach_key = _keys(key)
    given = {"params": params, "bank": bank, "setup": setup}
    gradient, metrics = jax.grad(erasing, has_aux=True)(state.lora, key=erase_key, **given)
    near, kept = jax.grad(keeping, has_aux=True)(state.lora, key=keep_key, **given)
    copy = jax.lax.stop_gradient(taught(state.lora, key=teach_key, **given))
    far, lost = jax.grad(keeping, has_aux=True)(copy, key=keep_key, **given)
    total = jax.tree.map(lambda e, k, m: e + own.keep * k - own.meta * m, gradient, near, far)
    changes, optimised = optimiser(own).update(total, state.own["meta"], state.lora)
    metrics |= kept | {"keep_taught": lost["keep"], "meta_gradient": optax.tree.norm(total)}
    lora = optax.apply_updates(state.lora, changes)
    return state.replace(lora=lora, own=state.own | {"meta": optimised}), metrics


def _start(lora: PyTree, config: Config) -> dict[str, PyTree]:
    return {"meta": optimiser(config.own(Settings)).init(lora)}


def _losses(key: PRNGKeyArray, own: Mapping[str, PyTree]) -> Parts:
    del own
    erase_key, keep_key, _ = _keys(key)
    return {"esd": (erasing, erase_key), "keep": (keeping, keep_key)}


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """The concept's sentences, whose pictures teach it again, and pictures of related concepts."""
    del pipe
    own = config.own(Settings)
    template = as_template(config.prompts[0], config.concept)
    every = tuple(phrase(template, word) for pool in words.pools for word in pool)
    shown = kept_prompts(config, own.related or every, own.pictures)
    return Needs(stand_in=own.stand_in, eta=own.eta, shown=shown)


def problems(config: Config) -> Iterator[str]:
    """What is wrong between fields that are right by themselves."""
    if not (config.own(Settings).related or config.irrelevant):
        yield (
            "meta_unlearning.related = () and irrelevant = (): Meta-Unlearning needs related "
            "concepts; name prompts or words"
        )


STEP = Step(in_every_run(_update), _start, _losses)
METHOD = Method(
    title="Meta-Unlearning",
    settings=Settings,
    needs=needs,
    steps=lambda config: {"meta": STEP},
    compiled=lambda config: replace(config.own(Settings), eta=0.0, stand_in=None, related=()),
    weights=lambda config: {"esd": 1.0, "keep": config.own(Settings).keep},
    per_run=("eta", "stand_in", "related"),
    problems=problems,
)
