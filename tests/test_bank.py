"""The bank of training inputs that the frozen model samples, encodes and denoises once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from erase.config.schema import BankConfig
from erase.data.bank import Bank, bank_shapes, stack_banks
from erase.data.make_bank import make_bank
from erase.data.plan import CONCEPT, FILLER, POOL, SYNONYM, Plan
from erase.data.words.irrelevant import Words
from erase.methods import erase_anything
from erase.methods.planning.configured import plan_of
from erase.methods.settings.erase_anything import Lower, Upper
from erase.model.draw import png
from erase.runs import RunConfig
from flux_jax import load
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline

CONFIG = RunConfig(
    concept="soccer ball",
    prompts=("a photo of a {}", "a {} and a dog on the grass"),
    synonyms=("football", "futbol"),
    irrelevant=("apple", "tree", "cat", "rocket"),
    height=16,
    width=12,
    steps=3,
    seed=5,
    bank=BankConfig(sentences=3, trajectories=4, batch=3, teacher="computed"),
    lower=Lower(erase_to="a dog", eta=0.5),
    upper=Upper(pictures=3, prompts=("a cat", "a pizza"), negatives=2),
)


WORDS = Words(CONFIG.concept, (CONFIG.irrelevant[:3], CONFIG.irrelevant[3:]), "a test")


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def planned(pipe: Pipeline) -> Plan:
    return plan_of(CONFIG, pipe, WORDS)


@pytest.fixture(scope="module")
def made(pipe: Pipeline, planned: Plan) -> Bank:
    return make_bank(CONFIG, pipe, planned)


def test_a_plan_follows_the_seed_alone(pipe: Pipeline, planned: Plan):
    again = plan_of(CONFIG, pipe, WORDS)
    assert (again.groups, again.trajectory_seeds) == (planned.groups, planned.trajectory_seeds)
    other = plan_of(replace(CONFIG, seed=6), pipe, WORDS)
    assert other.trajectory_seeds != planned.trajectory_seeds
    seeds = (*planned.trajectory_seeds, *planned.picture_seeds)
    assert len(set(seeds)) == 7


@pytest.mark.slow
def test_sizes(made: Bank):
    tokens, text = 4 * 3, 32
    assert made.sentences.text.shape == (3, 7, text, 24)
    assert made.sentences.pooled.shape == (3, 7, 16)
    assert made.masks.shape == (3, 7, text)
    assert made.kinds.tolist() == [CONCEPT, SYNONYM, SYNONYM, POOL, POOL, POOL, POOL + 1]
    assert made.anchors.text.shape == (3, 2, text, 24)
    assert made.trajectories.shape == (4, 4, tokens, 16)
    assert made.trajectory_sentences.tolist() == [0, 1, 2, 0]
    assert made.pictures.shape == (3, tokens, 16)
    assert made.picture_prompts.text.shape == (3, text, 24)
    assert made.image_ids.shape == (tokens, 3)
    assert float(made.eta) == 0.5


def test_shapes_are_known_before_anything_is_made(pipe: Pipeline, made: Bank):
    shapes = bank_shapes(
        CONFIG, pipe.transformer, 4 * 3, 32, erase_anything.needs(CONFIG, WORDS, None)
    )
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == described


def test_every_form_is_encoded_in_its_place(pipe: Pipeline, planned: Plan, made: Bank):
    for m, group in enumerate(planned.groups):
        expected = pipe.encode(group.prompts)
        np.testing.assert_allclose(made.sentences.text[m], expected.text, atol=1e-5)
        np.testing.assert_allclose(made.sentences.pooled[m], expected.pooled, atol=1e-5)
    expected = pipe.encode(["", "a dog", "a cat", "a pizza", "a cat"])
    np.testing.assert_allclose(made.anchors.text[1], expected.text[:2], atol=1e-5)
    np.testing.assert_allclose(made.picture_prompts.pooled, expected.pooled[2:], atol=1e-5)


def test_masks_mark_the_word_of_each_form(pipe: Pipeline, planned: Plan, made: Bank):
    for m, group in enumerate(planned.groups):
        for v, (prompt, word) in enumerate(zip(group.prompts, group.words, strict=True)):
            ids = np.array(pipe.tokenizer_2(prompt).input_ids)
            marked = ids[np.asarray(made.masks[m, v][: len(ids)], bool)]
            assert pipe.tokenizer_2.decode(marked).strip() == word


@pytest.mark.slow
def test_trajectories_are_the_frozen_models(pipe: Pipeline, planned: Plan, made: Bank):
    noise = pipe.noise(planned.trajectory_seeds, 16, 12)
    np.testing.assert_allclose(made.trajectories[:, 0], noise, atol=1e-6)
    sigmas = pipe.schedule.sigmas(3, 12)
    np.testing.assert_allclose(made.times, sigmas[:-1])
    concept = made.sentences[np.array([0, 1, 2, 0]), 0]
    for step in range(2):
        x, t = made.trajectories[:, step], np.full(4, sigmas[step])
        velocity = pipe.velocity(x, concept, t, made.image_ids, CONFIG.guidance)
        expected = x + (sigmas[step + 1] - sigmas[step]) * velocity
        np.testing.assert_allclose(made.trajectories[:, step + 1], expected, atol=2e-4)


def test_pictures_are_what_the_frozen_model_draws(pipe: Pipeline, planned: Plan, made: Bank):
    noise = pipe.noise(planned.picture_seeds, 16, 12)
    expected = pipe.denoise(noise, made.picture_prompts, made.image_ids, 3, CONFIG.guidance)
    np.testing.assert_allclose(made.pictures, expected, atol=2e-4)


def test_pictures_show_the_first_sentence_by_default(pipe: Pipeline):
    config = replace(CONFIG, upper=replace(CONFIG.upper, prompts=()))
    assert plan_of(config, pipe, WORDS).shown == ("a photo of a soccer ball",) * 3


def test_pictures_may_leave_the_concept_out(pipe: Pipeline):
    upper = replace(CONFIG.upper, prompts=(), without_concept=True)
    assert plan_of(replace(CONFIG, upper=upper), pipe, WORDS).shown == ("a photo of",) * 3


@pytest.mark.slow
def test_a_users_pictures_take_the_place_of_the_models(pipe: Pipeline, tmp_path: Path):
    rng = np.random.default_rng(0)
    for name in ("b", "a"):
        pixels = rng.integers(256, size=(16, 12, 3), dtype=np.uint8)
        (tmp_path / f"{name}.png").write_bytes(png(pixels))
        (tmp_path / f"{name}.txt").write_text(f"a cat named {name}\n")
    upper = replace(CONFIG.upper, prompts=(), folder=str(tmp_path))
    config = replace(CONFIG, upper=upper)
    planned = plan_of(config, pipe, WORDS)
    assert planned.shown == ("a cat named a", "a cat named b")
    made = make_bank(config, pipe, planned)
    expected = pipe.encode(planned.shown)
    np.testing.assert_allclose(made.picture_prompts.text, expected.text, atol=1e-5)
    assert planned.pictures is not None
    latents = pipe.encode_pictures(planned.pictures)
    np.testing.assert_allclose(made.pictures, latents, atol=1e-4)
    assert made.trajectories.shape == (4, 4, 12, 16)


def test_the_authors_code_looks_at_bare_words_where_the_concept_stood(pipe: Pipeline):
    config = replace(CONFIG, upper=replace(CONFIG.upper, rsc_form="released"))
    planned = plan_of(config, pipe, WORDS)
    usual = plan_of(CONFIG, pipe, WORDS)
    for group, original, masks in zip(planned.groups, usual.groups, planned.masks, strict=True):
        assert group.prompts == (original.prompts[0], *group.words[1:])
        assert (masks == masks[0]).all()
    np.testing.assert_array_equal(planned.masks[:, 0], usual.masks[:, 0])


def test_a_sentence_may_be_its_own_anchor(pipe: Pipeline):
    config = replace(CONFIG, lower=Lower(stand_in="thing"))
    planned = plan_of(config, pipe, WORDS)
    assert planned.masks.shape == (3, 7, 32)
    for group, (anchor,) in zip(planned.groups, planned.anchors, strict=True):
        assert len(group.prompts) == 7
        assert anchor == group.prompts[0].replace("soccer ball", "thing")
    left_out = plan_of(replace(config, lower=Lower(stand_in="")), pipe, WORDS)
    for group, (anchor,) in zip(left_out.groups, left_out.anchors, strict=True):
        assert anchor.split() == group.prompts[0].replace("soccer ball", "").split()


def test_banks_of_runs_are_stacked_with_fillers(pipe: Pipeline, made: Bank):
    config = replace(CONFIG, synonyms=("football",), lower=Lower())
    planned = plan_of(config, pipe, WORDS)
    small = make_bank(config, pipe, planned)
    both = stack_banks([made, small])
    assert both.kinds.tolist() == [made.kinds.tolist(), [*small.kinds.tolist(), FILLER]]
    np.testing.assert_array_equal(both.sentences.text[0], made.sentences.text)
    np.testing.assert_array_equal(both.masks[1, :, :6], small.masks)
    np.testing.assert_array_equal(both.anchors.text[1, :, 1], small.anchors.text[:, 0])
    assert both.times.shape == made.times.shape
    assert both.image_ids.shape == made.image_ids.shape
    fewer = made.replace(pictures=made.pictures[:2])
    with pytest.raises(InputError, match=r"equally many pictures, not \{2, 3\}"):
        stack_banks([made, fewer])


def test_few_velocities_are_computed_in_batches_of_the_same_size_as_many(
    pipe: Pipeline, planned: Plan, monkeypatch: pytest.MonkeyPatch
):
    """So that a run that is extended has the same bits."""
    compute, sizes = Pipeline.velocity, []

    def velocity(self: Pipeline, latents: Any, *given: Any) -> Any:
        sizes.append(len(latents))
        return compute(self, latents, *given)

    monkeypatch.setattr(Pipeline, "velocity", velocity)
    points = np.array([[0, 0], [1, 1], [1, 0]])
    few, many = (make_bank(CONFIG, pipe, planned, points[:n]).velocities for n in (1, 3))
    assert set(sizes) == {CONFIG.bank.batch}
    assert few is not None
    assert many is not None
    np.testing.assert_array_equal(few[0, 0], many[0, 0])
    # The trajectories have those of the concept.
    assert np.isinf(few[1, 1, 1:]).all()
    assert np.isfinite(many[1, :2]).all()


def test_without_contrast_other_words_are_not_prepared(pipe: Pipeline):
    config = replace(CONFIG, upper=replace(CONFIG.upper, rsc=0.0), synonyms=())
    assert plan_of(config, pipe, WORDS).masks.shape == (3, 1, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ("a dog",)}, "'a dog' does not hold the concept 'soccer ball'"),
        ({"height": 18}, "height = 18 is not a multiple of 4"),
        ({"prompts": ("a {} " * 20,)}, "over the limit of 32"),
        ({"lower": Lower(erase_to="dog " * 40)}, "over the limit of 32"),
        ({"synonyms": ("日本",)}, "characters that the tokenizer's vocabulary lacks"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    pipe: Pipeline, changes: dict, message: str
):
    with pytest.raises(InputError, match=message):
        plan_of(replace(CONFIG, **changes), pipe, WORDS)
