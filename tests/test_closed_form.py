"""Closed forms against dense solvers and optimality conditions; UCE and MACE on a model."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from convert.adapters.files import read_adapter, write_lora
from erase.config.schema import Config
from erase.data.make_bank import make_bank
from erase.data.words.irrelevant import listed
from erase.data.words.word_tokens import marks
from erase.methods import mace, uce
from erase.methods.base import Method
from erase.methods.parts import closed_form
from erase.methods.parts.closed_form import Ridge
from erase.methods.parts.layer_inputs import kernels, text_inputs
from erase.methods.planning.configured import plan_of, shapes_of, start
from erase.methods.settings.uce import kept_prompts
from erase.model.attention_maps import concept_mass
from erase.model.open import open_model
from erase.runs import configure, load_config
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.tree import flatten

QUERY, EMBEDDER = "dual_blocks/attn/add_q_proj", "context_embedder"
POOLED = "pooled_embedder/linear_1"


def problem(erased: int = 3, kept: int = 4, inputs: int = 7, outputs: int = 5) -> Any:
    rng = np.random.default_rng(0)
    shapes = ((inputs, outputs), (erased, inputs), (erased, inputs), (kept, inputs))
    return [rng.standard_normal(shape) for shape in shapes]


def objective(change: np.ndarray, given: Any, ridge: float, preserve: float) -> float:
    kernel, erased, guides, kept = given
    missed = erased @ (kernel + change) - guides @ kernel
    return float(
        np.sum(missed**2) + preserve * np.sum((kept @ change) ** 2) + ridge * np.sum(change**2)
    )


def test_an_edit_is_a_dense_least_squares_solution():
    given = problem()
    kernel, erased, guides, kept = given
    a, b = closed_form.edit(*given, Ridge(0.5), preserve=2.0)
    assert a.shape == (7, 3)
    stacked = np.concatenate([erased, np.sqrt(2.0) * kept, np.sqrt(0.5) * np.eye(7)])
    wanted = np.concatenate([(guides - erased) @ kernel, np.zeros((4 + 7, 5))])
    dense, *_ = np.linalg.lstsq(stacked, wanted, rcond=None)
    np.testing.assert_allclose(a @ b, dense, atol=1e-12)


def test_no_change_nearby_is_better_than_an_edit():
    """The gradient of the objective is zero, and it increases in every direction."""
    given = problem()
    kernel, erased, guides, kept = given
    a, b = closed_form.edit(*given, Ridge(0.5), preserve=2.0)
    change = a @ b
    slope = erased.T @ (erased @ (kernel + change) - guides @ kernel)
    slope += 2.0 * kept.T @ kept @ change + 0.5 * change
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    least, rng = objective(change, given, 0.5, 2.0), np.random.default_rng(1)
    for _ in range(20):
        step = 1e-3 * rng.standard_normal(change.shape)
        assert objective(change + step, given, 0.5, 2.0) > least


def test_a_singular_system_names_its_ridge():
    kernel, erased, guides, kept = problem()
    with pytest.raises(InputError, match=r"^uce.ridge is too small: .* raise it to \d"):
        closed_form.edit(kernel, erased, guides, kept[:1], Ridge(0.0, name="uce.ridge"))
    more = np.concatenate([kept, np.random.default_rng(2).standard_normal((9, 7))])
    closed_form.edit(kernel, erased, guides, more, Ridge(0.0))
    # The suggested value is in the configuration's unit, and works.
    advice = []
    for unit in (1.0, 100.0):
        with pytest.raises(InputError, match="raise it to") as refused:
            closed_form.edit(kernel, erased, guides, kept[:1], Ridge(1e-20, unit))
        advice.append(float(str(refused.value).partition("raise it to ")[2].split()[0]))
        closed_form.edit(kernel, erased, guides, kept[:1], Ridge(advice[-1], unit))
    assert advice[0] == pytest.approx(100 * advice[1])


@pytest.mark.parametrize(("erased", "rank"), [(9, 2), (3, 2), (3, 5), (9, 5)])
def test_an_edit_of_a_rank_is_the_best_of_it(erased: int, rank: int):
    """Reduced-rank regression, which inverts a matrix as wide as the layer."""
    given = problem(erased)
    kernel, vectors, guides, kept = given
    matrix = vectors.T @ vectors + 2.0 * kept.T @ kept + 0.5 * np.eye(7)
    wanted = vectors.T @ (guides - vectors) @ kernel
    dense = closed_form.reduced(matrix, wanted, rank)
    a, b = closed_form.edit(*given, Ridge(0.05, 10.0), preserve=2.0, rank=rank)
    assert (a.shape, b.shape) == ((7, rank), (rank, 5))
    np.testing.assert_allclose(a @ b, dense[0] @ dense[1], atol=1e-10)
    # The rank exceeds the number of vectors.
    few = (kernel, vectors[:1], guides[:1], kept[:1])
    a, b = closed_form.edit(*few, Ridge(0.5), rank=rank)
    whole = closed_form.edit(*few, Ridge(0.5))
    assert a.shape == (7, rank)
    np.testing.assert_allclose(a @ b, whole[0] @ whole[1], atol=1e-12)


def test_a_reduced_change_is_the_best_of_its_rank():
    kernel, erased, guides, _ = problem(erased=9)
    matrix = erased.T @ erased + 0.1 * np.eye(7)
    wanted = erased.T @ (guides - erased) @ kernel
    whole = closed_form.reduced(matrix, wanted, 5)
    np.testing.assert_allclose(whole[0] @ whole[1], np.linalg.solve(matrix, wanted), atol=1e-10)

    def value(change: np.ndarray) -> float:
        return float(np.sum(change * (matrix @ change)) - 2 * np.sum(change * wanted))

    a, b = closed_form.reduced(matrix, wanted, 2)
    rng = np.random.default_rng(1)
    for _ in range(20):
        steps = [1e-3 * rng.standard_normal(each.shape) for each in (a, b)]
        assert value((a + steps[0]) @ (b + steps[1])) > value(a @ b)


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return open_model(tiny.run_config(tiny_folder))


def config_of(pipe: Pipeline, folder: Path, method: str, **changes: Any) -> Config:
    usual: dict[str, Any] = dataclasses.asdict(tiny.run_config(folder)) | {"method": method}
    usual["bank"] |= {"trajectories": 3, "batch": 3}
    return load_config(configure(**usual | changes))


@pytest.mark.slow
def test_inputs_are_those_of_the_layers(pipe: Pipeline, tiny_folder: Path):
    """Embedders get the encoders' outputs; inputs of blocks are means over the steps."""
    config = config_of(pipe, tiny_folder, "uce")
    prompts = ["a photo of a cat", "cat", "", "a tree"]
    tokens = np.array([[3, 0], [0, 1], [0, 0], [1, 2]], np.int32)
    found = text_inputs(pipe, config, (QUERY, EMBEDDER, POOLED), prompts, tokens)
    encoded = pipe.encode(prompts)
    text = np.stack([np.asarray(encoded.text)[row, at] for row, at in enumerate(tokens)])
    np.testing.assert_allclose(found[EMBEDDER][0], text, atol=1e-5)
    pooled = np.repeat(np.asarray(encoded.pooled)[:, None], 2, axis=1)
    np.testing.assert_allclose(found[POOLED][0], pooled, atol=1e-5)
    assert found[QUERY].shape == (2, 4, 2, 32)
    # The first block's: AdaLN of the embedded text, in one step of both.
    alone = text_inputs(pipe, config, (QUERY,), prompts[:1], tokens[:1])
    np.testing.assert_allclose(found[QUERY][:, :1], alone[QUERY], atol=1e-4)
    with pytest.raises(InputError, match="is not single text tokens"):
        text_inputs(pipe, config, ("dual_blocks/attn/to_q",), prompts, tokens)


def made(method: Method, config: Config, pipe: Pipeline) -> Adapter:
    planned = plan_of(config, pipe, listed(config))
    pipe.remember(planned.prompts, 4)
    assert method.exports is not None
    return method.exports(config, pipe, planned, None, Adapter({}, 1.0))


@pytest.mark.parametrize("targets", [(QUERY,), (EMBEDDER, POOLED)], ids=["paper", "native"])
def test_uce_maps_the_concept_to_its_guide(
    pipe: Pipeline, tiny_folder: Path, tmp_path: Path, targets: tuple[str, ...]
):
    changes: dict[str, Any] = {
        "synonyms": ("kitty",),
        "adapter": {"targets": targets},
        "uce": {"guide": "dog", "ridge": 1e-6, "preserve": 0.0},
    }
    config = config_of(pipe, tiny_folder, "uce", **changes)
    adapter = made(uce.METHOD, config, pipe)
    leaves = flatten(adapter.scaled())
    pairs = [*uce.erased(config), *uce.guides(config)]
    assert [prompt for prompt, _ in pairs] == ["cat", "kitty", "dog", "dog"]
    seen = text_inputs(pipe, config, targets, [p for p, _ in pairs], uce.last_tokens(pipe, pairs))
    for target in targets:
        for block, kernel in enumerate(kernels(pipe, target)):
            a, b = (np.asarray(leaves[f"{target}/{part}"], np.float64) for part in "AB")
            change = a[block] @ b[block] if a.ndim == 3 else a @ b
            cat, kitty, dog, _ = seen[target][block, :, 0]
            wanted = dog @ kernel
            # The more similar two concepts are, the less both conditions can be satisfied.
            assert np.linalg.norm(cat @ (kernel + change) - wanted) < 0.02 * np.linalg.norm(wanted)
            assert np.linalg.norm(kitty @ (kernel + change) - wanted) < 0.02 * np.linalg.norm(
                wanted
            )
    assert adapter.rank == 2
    pipe.check(adapter)
    # Written and read back, including layers outside the blocks.
    write_lora(tmp_path, adapter.lora, adapter.alpha, {})
    again = flatten(read_adapter(tmp_path).lora)
    for path, leaf in flatten(adapter.lora).items():
        np.testing.assert_array_equal(again[path], leaf)


def test_uce_keeps_what_it_is_to_preserve(pipe: Pipeline, tiny_folder: Path):
    def moved(preserve: float) -> float:
        settings = {"ridge": 1e-3, "preserve": preserve}
        config = config_of(pipe, tiny_folder, "uce", adapter={"targets": (QUERY,)}, uce=settings)
        leaves = flatten(made(uce.METHOD, config, pipe).scaled())
        pairs = kept_prompts(config)
        assert [prompt for prompt, _ in pairs] == ["tree", "sun", "key"]
        prompts = [prompt for prompt, _ in pairs]
        seen = text_inputs(pipe, config, (QUERY,), prompts, uce.last_tokens(pipe, pairs))
        change = np.asarray(leaves[f"{QUERY}/A"]) @ np.asarray(leaves[f"{QUERY}/B"])
        return float(np.linalg.norm(seen[QUERY][:, :, 0] @ change))

    assert moved(100.0) < 0.05 * moved(0.0)


def test_uce_counts_the_last_token_of_a_word(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def noted(tokenizer: Any, prompts: Any, words: Any) -> Any:
        asked.extend(words)
        return marks(tokenizer, prompts, words)

    monkeypatch.setattr(uce, "marks", noted)
    pairs = [("a soccer ball on grass", "soccer ball"), ("", ""), ("a tree", "")]
    pieces = [
        pipe.tokenizer_2.convert_ids_to_tokens(pipe.tokenize([prompt])[1][0].tolist())
        for prompt, _ in pairs
    ]
    (ball,), (empty,), (tree,) = uce.last_tokens(pipe, pairs)
    # Only prompts with a word are searched: T5's vocabulary does not have every character.
    assert asked == ["soccer ball"]
    before = "".join(pieces[0][: ball + 1]).replace("▁", " ").strip()
    assert before == "a soccer ball"
    assert empty == 0
    assert "".join(pieces[2][: tree + 1]).replace("▁", " ").strip() == "a tree"


def test_words_beside_a_concept_are_found_in_both_sentences():
    own, other = np.array([0, 0, 1, 1, 0, 0.0]), np.array([0, 0, 1, 0, 0, 0.0])
    mine, others = mace.around(own, other)
    assert (mine.tolist(), others.tolist()) == ([0, 1, 4, 5], [0, 1, 3, 4])


@pytest.mark.slow
def test_mace_s_words_forget_the_concept(pipe: Pipeline, tiny_folder: Path):
    """Beside the concept, tokens have the same outputs as beside another word."""
    settings = {"edit_rank": 30, "ridge": 1e-6, "stand_in": "dog"}
    config = config_of(
        pipe, tiny_folder, "mace", adapter={"targets": (QUERY,), "rank": 1}, mace=settings
    )
    planned = plan_of(config, pipe, listed(config))
    pipe.remember(planned.prompts, 4)
    found = mace.METHOD.completes(config, pipe, planned, make_bank(config, pipe, planned))
    leaves = flatten(found.edit)
    prompts = ["a photo of a cat", "a photo of a dog"]
    tokens = np.repeat(np.arange(4, dtype=np.int32)[None], 2, axis=0)
    seen = text_inputs(pipe, config, (QUERY,), prompts, tokens)[QUERY]
    for block, kernel in enumerate(kernels(pipe, QUERY)):
        change = np.asarray(leaves[f"{QUERY}/A"][block]) @ np.asarray(leaves[f"{QUERY}/B"][block])
        cat, dog = seen[block]
        before = np.linalg.norm(cat @ kernel - dog @ kernel)
        assert np.linalg.norm(cat @ (kernel + change) - dog @ kernel) < 0.05 * before
    regions = np.asarray(found.regions)
    size = round(0.4 * regions.shape[1])
    assert (regions.sum(axis=1) == size).all()
    rows = np.asarray(found.trajectory_sentences)
    ends = [np.asarray(found.trajectories[:, at], np.float32) for at in (0, -1)]
    model = pipe.denoiser(jnp.asarray(found.image_ids), config.guidance)
    masks = np.asarray(found.masks)[rows, 0]
    mass = concept_mass(pipe, model, ends[0], ends[1], found.sentences[rows, 0], masks)
    inside, outside = np.where(regions, mass, np.inf), np.where(regions, -np.inf, mass)
    assert (inside.min(axis=1) >= outside.max(axis=1)).all()
    shapes = shapes_of(config, pipe.transformer, 16, 32)
    assert shapes.edit.keys() == found.edit.keys()
    trained = start(jax.random.key(0), pipe.shapes, config).lora
    adapter = Adapter(trained, 1.0)
    assert mace.exports(config, pipe, planned, found, adapter).rank == 31
