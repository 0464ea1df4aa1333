"""Attacks that search: gradients, projections, the genetic search, seeds, access and budgets."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from configs import emoji_cat
from erase.attacks import families, search, tokens
from erase.attacks.attack import attack
from erase.attacks.families import InversionBudget, TokensBudget, chosen
from erase.attacks.points import Points, make_points
from erase.attacks.protocol import Target, search_of
from erase.attacks.ring_a_bell import evolve
from erase.attacks.slots import TokenModel, encode, held_out_errors, slot_prompts, table_of
from erase.attacks.vocabulary import allowed_tokens, spells
from erase.config.schema import Config, Evaluation
from erase.model.open import open_model
from erase.runs import load_config
from erase.runtime.cache import Cache
from erase.runtime.signals import listening
from flux_jax import Adapter, load, lora
from flux_jax.errors import InputError, PreemptedError, RunError
from flux_jax.pipeline import Pipeline

# Small enough for seconds on the tiny model.
SMALL = {
    "inversion": {"restarts": 2, "steps": 3, "batch": 2, "examples": 2},
    "tokens": {"restarts": 2, "steps": 3, "batch": 2, "examples": 2, "tokens": 2, "candidates": 3},
    "ring_a_bell": {"restarts": 2, "tokens": 3, "population": 8, "generations": 3},
    "relearn": {"restarts": 2, "steps": 2, "examples": 2},
}


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def adapter(pipe: Pipeline) -> Adapter:
    return Adapter(lora.init(jax.random.key(0), pipe.shapes, rank=2), 2.0)


@pytest.fixture(scope="module")
def config(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tiny.judge(tmp_path_factory.mktemp("judge"))
    settings = Evaluation(judge=str(folder), pictures=3, batch=2, steps=2)
    return tiny.run_config(tiny_folder, synonyms=("kitty",), evaluation=settings)


@pytest.fixture(scope="module")
def target(pipe: Pipeline, adapter: Adapter, config: Config) -> Target:
    return Target(pipe, [(adapter, 1.0)], config)


@pytest.fixture(scope="module")
def points(target: Target) -> tuple[Points, Points]:
    return make_points(target, 2, None)


@pytest.fixture(scope="module")
def model(target: Target, pipe: Pipeline) -> TokenModel:
    return TokenModel.of(pipe, target.denoiser(), slot_prompts(pipe, target.templates, 1))


@pytest.mark.slow
def test_own_words_in_the_open_places_give_the_prompt_itself(pipe: Pipeline):
    """The encoding with a word's own embeddings is that of the sentence with the word."""
    ids = pipe.tokenizer_2("red apple", add_special_tokens=False).input_ids
    prompts = slot_prompts(pipe, ["a {} above a tree"], len(ids))
    params = pipe.params["text_encoder_2"]
    found = encode(pipe.text_encoder_2, params, prompts, table_of(params)[jnp.asarray(ids)])
    wanted = pipe.encode(["a red apple above a tree"]).text
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_of_a_token_are_those_of_finite_differences(
    model: TokenModel, points: tuple[Points, Points]
):
    """Along the gradient, where float32 leaves the difference most digits."""
    rows, token = jnp.arange(3), model.table[7][None]
    error = jax.jit(model.error)
    gradient = jax.jit(jax.grad(model.error))(token, points[0], rows)
    length = float(jnp.linalg.norm(gradient))
    assert length > 0
    step = 0.02 * gradient / length
    ahead, behind = (float(error(token + s * step, points[0], rows)) for s in (1, -1))
    assert (ahead - behind) / 0.04 == pytest.approx(length, rel=2e-2)


@pytest.mark.slow
def test_the_error_is_that_of_flow_matching(
    target: Target, model: TokenModel, points: tuple[Points, Points]
):
    """In NumPy, from the pipeline's own velocity; and the frozen model's target has no error."""
    pipe, held_out = target.pipe, points[1]
    token = model.table[7][None]
    conditioning = model.encode(model.prompts[held_out.prompts], token)
    velocity = np.asarray(
        pipe.velocity(
            held_out.latents,
            conditioning,
            held_out.times,
            pipe.image_ids(target.config.height, target.config.width),
            target.config.evaluation.guidance,
            target.adapters,
        ),
        np.float64,
    )
    wanted = ((velocity - np.asarray(held_out.targets)) ** 2).mean()
    found = held_out_errors(model, held_out, token[None])
    assert float(found[0]) == pytest.approx(wanted, rel=1e-4)
    own = Target(pipe, [], target.config)
    frozen = TokenModel.of(pipe, own.denoiser(), model.prompts)
    assert tokens.text_error(own, frozen, held_out, target.config.concept) < 1e-8


def test_projections_are_the_nearest_allowed_words():
    rng = np.random.default_rng(0)
    table, allowed = rng.normal(size=(50, 6)), rng.random(50) < 0.6
    for point in rng.normal(size=(20, 6)):
        distances = np.where(allowed, np.linalg.norm(table - point, axis=1), np.inf)
        found = tokens.project(*map(jnp.asarray, (point, table, allowed)), 5)
        assert found.tolist() == np.argsort(distances)[:5].tolist()


@pytest.mark.slow
def test_a_proposal_replaces_one_word_along_the_gradient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokens, "NEAREST", 1)
    monkeypatch.setattr(tokens, "LENGTHS", (1.0, 1.0001))
    table = jnp.asarray(np.random.default_rng(0).normal(size=(30, 4)), jnp.float32)
    ids, allowed = jnp.asarray([3, 8, 5]), jnp.arange(30) > 2
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    seen = set()
    for seed in range(20):
        found = tokens.propose(ids, gradient, table, allowed, jax.random.key(seed))
        (at,) = np.flatnonzero(np.asarray(found != ids))
        seen.add(int(at))
        size = np.linalg.norm(table[ids[at]]) / np.linalg.norm(gradient[at])
        point = np.asarray(table[ids[at]] - size * gradient[at])
        distances = np.linalg.norm(np.asarray(table) - point, axis=1)
        distances[[0, 1, 2, int(ids[at])]] = np.inf
        assert int(found[at]) == distances.argmin()
    assert seen == {0, 1, 2}


@pytest.mark.slow
def test_the_genetic_search_finds_a_planted_optimum():
    planted = jnp.asarray([7, 3, 19, 11])

    def distances(population: jax.Array) -> jax.Array:
        return jnp.mean(population != planted, axis=1)

    allowed = jnp.arange(2, 20)
    start = jax.random.choice(jax.random.key(0), allowed, (60, 4))
    assert float(distances(start).min()) > 0
    keys = jax.random.split(jax.random.key(1), 60)
    found = jax.jit(lambda each: evolve(distances, each, allowed, 0.1, keys))(start)
    assert found[jnp.argmin(distances(found))].tolist() == planted.tolist()
    assert set(np.unique(found)) <= set(range(2, 20))


def test_the_concepts_own_words_are_not_used(pipe: Pipeline):
    tokenizer = pipe.tokenizer_2
    size = pipe.text_encoder_2.config.vocab_size
    every, fewer = (allowed_tokens(tokenizer, size, words) for words in ((), ("soccer ball",)))
    assert every.sum() > fewer.sum() > 0
    texts = tokenizer.convert_ids_to_tokens(np.flatnonzero(fewer).tolist())
    assert not any("soccer" in text.lower() for text in texts)
    assert not every[tokenizer.all_special_ids].any()
    assert spells("a soc cer", ("soccer ball",))
    assert not spells("a tree", ("soccer ball",))
    ranked = iter([[1], [2], [3]])
    names = {1: "Soccer", 2: "", 3: "tree"}
    read = tokens.readable(lambda ids: names[ids[0]], ranked, ("soccer ball",), 2)
    assert read == ["tree"]
    with pytest.raises(RunError, match="--own_words"):
        tokens.readable(lambda ids: "soccer", iter([[1]]), ("soccer ball",), 2)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(SMALL))
def test_a_search_is_counted_on_both_models_and_repeats(
    family: str, pipe: Pipeline, adapter: Adapter, config: Config, tmp_path: Path
):
    wanted = chosen([family], SMALL[family])
    result = attack(pipe, adapter, config, tmp_path / "a", 2, None, wanted)
    again = attack(pipe, adapter, config, tmp_path / "b", 2, None, wanted)
    assert result == again == json.loads((tmp_path / "a" / "attacks.json").read_text())
    cells = [family, "relearn, harmless pictures"] if family == "relearn" else [family]
    assert list(result["cells"]) == cells
    for cell in cells:
        assert list(result["cells"][cell]) == ["before", "after"]
        assert result["budgets"][cell].items() >= SMALL[family].items()
        assert result["access"][cell] == families.SEARCHES[family].access
    lines = (tmp_path / "a" / "attacks.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(cells)


@pytest.mark.slow
def test_a_stopped_search_goes_on_and_ends_alike(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search, "PART", 1)
    budget = InversionBudget(**SMALL["inversion"])
    whole = search_of("inversion")(target, budget, None)["inversion"].notes
    packed, saves = search._pack, []

    def stopping(done: int, tree: object) -> bytes:
        saves.append(done)
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return packed(done, tree)

    monkeypatch.setattr(search, "_pack", stopping)
    cache = Cache.opened(tmp_path, "attacks", 1)
    with pytest.raises(PreemptedError, match="run the same command to resume"), listening():
        search_of("inversion")(target, budget, cache)
    found = search_of("inversion")(target, budget, cache)["inversion"].notes
    # The pictures, and each of the three steps once.
    assert saves == [0, 1, 2, 3]
    assert found == whole


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (["inversoin"], {}, "family = 'inversoin' is unknown; did you mean inversion"),
        (["inversion"], {"steps": 0}, "steps = 0 must be at least 1"),
        (["tokens"], {"tokens": 0}, "tokens = 0 must be at least 1"),
        (["ring_a_bell"], {"population": 0}, "population = 0 must be at least 4"),
        (["relearn"], {"rate": 0.0}, "rate = 0.0 must be above 0"),
        (["inversion"], {"eta": 1.0}, "eta = 1.0 has no effect: of the families, only ring_a_bell"),
        ([], {"steps": 3}, "steps = 3 has no effect"),
    ],
)
def test_families_and_budgets_are_checked(names: list[str], given: dict, said: str):
    with pytest.raises(InputError) as raised:
        chosen(names, given)
    assert said in str(raised.value)
    assert len(str(raised.value)) < 400


def test_chosen_families_have_their_own_budgets():
    assert chosen([], {}) == dict.fromkeys(families.DISGUISES)
    both = chosen(["tokens", "inversion"], {"steps": 7, "tokens": 3})
    assert list(both) == ["inversion", "tokens"]
    assert both == {
        "inversion": InversionBudget(steps=7),
        "tokens": TokensBudget(steps=7, tokens=3),
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": Adapter({}, 1.0)}, "changes no layer of the transformer"),
        (
            {
                "adapter": Adapter(
                    {"text_in": {"A": np.zeros((99, 2)), "B": np.zeros((2, 99))}}, 1.0
                )
            },
            "made for another architecture",
        ),
        ({"concept": "zebra"}, "'zebra' is not among the judge's labels"),
    ],
)
def test_a_search_needs_an_adapter_of_this_model_and_a_known_concept(
    pipe: Pipeline, adapter: Adapter, config: Config, tmp_path: Path, changes: dict, said: str
):
    used = changes.get("adapter", adapter)
    asked = replace(config, concept=changes.get("concept", config.concept))
    with pytest.raises(InputError, match=said) as raised:
        attack(pipe, used, asked, tmp_path, 2, None, chosen(["inversion"], SMALL["inversion"]))
    assert len(str(raised.value)) < 400
    assert not list(tmp_path.iterdir())


def test_too_many_tokens_are_refused(pipe: Pipeline, target: Target):
    with pytest.raises(InputError, match=r"tokens = 40: .* over the limit of 32; take fewer"):
        slot_prompts(pipe, target.templates, 40)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("inversion", {"restarts": 3, "steps": 150}),
        ("tokens", {"restarts": 3, "steps": 12, "own_words": True}),
    ],
)
def test_a_search_works_on_the_frozen_model(family: str, given: dict, tmp_path: Path):
    """Otherwise its failure on an erased model would say nothing."""
    from erase.attacks.attack import judged
    from erase.evaluation.eval_prompts import configured_judge

    config = load_config(emoji_cat.get_config())
    target = Target(open_model(config), [], config)
    judge = configured_judge(config)
    assert judge is not None
    attempt = search_of(family)(target, chosen([family], given)[family], None)[family]
    hits = judged(target.pipe, judge, config, attempt, 20, family, None)
    assert hits.mean() >= 0.9
