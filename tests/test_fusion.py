"""Fusion: Gram matrices against PyTorch, the closed form against least squares."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.flux_case import Case

from convert.adapters.files import read_adapter, write_lora
from erase.cli.compose import main
from erase.compose import fusion
from erase.compose.combine import read_lines
from erase.compose.fusion import OTHER, PADDING, _grams, check, of_tokens, prompts
from erase.data.words.word_tokens import marks
from erase.methods.parts.least_squares import Moments
from flux_jax import load
from flux_jax.errors import InputError
from flux_jax.models.transformer import FluxTransformer
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.tree import flatten, nest

TARGETS = ("dual_blocks/attn/add_q_proj", "dual_blocks/ff/linear_2", "single_blocks/attn/to_k")
LAYERS = (
    r"transformer_blocks.{}.attn.add_q_proj",
    r"transformer_blocks.{}.ff.net.2",
    r"single_transformer_blocks.{}.attn.to_k",
)
SIGMAS = (0.9, 0.4, 0.0)


@pytest.mark.slow
@torch.no_grad()
def test_gram_matrices_are_those_of_pytorchs_inputs(case: Case):
    tokens = case.inputs["text"].shape[1]
    weights = np.random.default_rng(0).uniform(0.1, 1, (len(case.inputs["text"]), tokens))
    found = _grams(
        Denoiser(FluxTransformer(case.config), case.params, case.image_ids, jnp.asarray(3.5), {}),
        case.inputs["latents"],
        Conditioning(case.inputs["text"], case.inputs["pooled"]),
        jnp.asarray(weights),
        jnp.asarray(SIGMAS),
        targets=TARGETS,
    )
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0])
        )
        for name, module in case.torch_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    given = case.torch_inputs()
    if given["guidance"] is not None:
        given["guidance"] = torch.full_like(given["guidance"], 3.5)
    for level, following in itertools.pairwise(SIGMAS):
        given["timestep"] = torch.full_like(given["timestep"], level)
        velocity = case.torch_model(**given).sample
        given["hidden_states"] = given["hidden_states"] + (following - level) * velocity
    for hook in hooks:
        hook.remove()
    for target, layer in zip(TARGETS, LAYERS, strict=True):
        for block, gram in enumerate(found[target]):
            (*_, last) = given = seen[layer.format(block)]
            own = torch.as_tensor(weights, dtype=last.dtype)
            # The first layer gets the text, the second the picture, the third both.
            shown = torch.full(last.shape[:2], PADDING, dtype=last.dtype)
            both = torch.cat([own, shown[:, tokens:]], 1)
            w = dict(zip(TARGETS, (own, shown, both), strict=True))[target]
            wanted = sum(torch.einsum("bn,bni,bnj->ij", w, h, h) for h in given) / w.sum()
            wanted = (wanted / len(given)).numpy()
            np.testing.assert_allclose(gram, wanted, atol=1e-4 * np.abs(wanted).max())


def example(adapters: int = 3, blocks: int = 2, inputs: int = 6, outputs: int = 5):
    """Inputs and changes of several adapters, and inputs to preserve."""
    rng = np.random.default_rng(0)
    h = rng.normal(size=(adapters, blocks, 40, inputs)) * rng.uniform(0.1, 2, inputs)
    p = rng.normal(size=(blocks, 70, inputs))
    a, b = (
        rng.normal(size=(adapters, blocks, inputs, 2)),
        rng.normal(size=(adapters, blocks, 2, outputs)),
    )
    moments = Moments(*(np.zeros((blocks, inputs, n)) for n in (inputs, outputs, inputs)))
    for i in range(adapters):
        moments.add(h[i].swapaxes(-1, -2) @ h[i] / h.shape[2], a[i], b[i])
    moments.preserve(p.swapaxes(-1, -2) @ p / p.shape[1])
    return moments, h, p, a @ b


@pytest.mark.parametrize("preserve", [0.0, 0.3, 5.0])
def test_the_closed_form_solves_the_least_squares(preserve: float):
    moments, h, p, wanted = example()
    a, b = moments.solve(5, preserve)
    for block in range(h.shape[1]):
        rows = [each[block] / np.sqrt(h.shape[0] * h.shape[2]) for each in h]
        aims = [row @ change[block] for row, change in zip(rows, wanted, strict=True)]
        kept = p[block] * np.sqrt(preserve / len(p[block]))
        exact, *_ = np.linalg.lstsq(
            np.concatenate([*rows, kept]),
            np.concatenate([*aims, np.zeros((len(kept), b.shape[-1]))]),
            rcond=None,
        )
        np.testing.assert_allclose(a[block] @ b[block], exact, atol=1e-4)


def test_adapters_count_what_they_are_given():
    _, h, _, wanted = example()
    blocks, inputs, outputs = wanted.shape[1:]
    moments = Moments(*(np.zeros((blocks, inputs, n)) for n in (inputs, outputs, inputs)))
    counts = (0.2, 3.0, 1.0)
    for rows, change, count in zip(h, wanted, counts, strict=True):
        gram = rows.swapaxes(-1, -2) @ rows
        moments.add(
            gram, change, np.broadcast_to(np.eye(outputs), (blocks, outputs, outputs)), count
        )
    a, b = moments.solve(5, 0.0)
    for block in range(blocks):
        rows = [each[block] * np.sqrt(count) for each, count in zip(h, counts, strict=True)]
        aims = [row @ change[block] for row, change in zip(rows, wanted, strict=True)]
        exact, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(aims), rcond=None)
        np.testing.assert_allclose(a[block] @ b[block], exact, atol=1e-4)


def test_layers_see_the_text_pictures_or_both():
    weights = jnp.asarray([[1.0, 0.1, PADDING]])
    of = {
        "dual_blocks/attn/add_v_proj": [1.0, 0.1, PADDING],
        "dual_blocks/ff_context/linear_1": [1.0, 0.1, PADDING],
        "dual_blocks/attn/to_q": [PADDING] * 2,
        "dual_blocks/norm1_context/linear": [PADDING],
        "single_blocks/proj_mlp": [1.0, 0.1, PADDING, PADDING],
    }
    for target, wanted in of.items():
        found = of_tokens(target, weights, len(wanted))
        np.testing.assert_allclose(found, [wanted], rtol=1e-6, err_msg=target)


def objective(moments: Moments, a: np.ndarray, b: np.ndarray, preserve: float) -> float:
    lost = moments.losses(a, b)
    return lost["missing"] + preserve * lost["spilled"]


def test_no_change_of_the_same_rank_comes_closer():
    moments, _, _, _ = example()
    a, b = moments.solve(2, 0.5)
    least = objective(moments, a, b, 0.5)
    # The best approximation of the exact solution in the Frobenius norm is another.
    exact = np.matmul(*moments.solve(5, 0.5))
    u, values, v = np.linalg.svd(exact, full_matrices=False)
    assert objective(moments, u[..., :2] * values[:, None, :2], v[:, :2], 0.5) > least + 1e-3
    rng = np.random.default_rng(1)
    for _ in range(50):
        near = [leaf + 0.01 * rng.normal(size=leaf.shape) for leaf in (a, b)]
        assert objective(moments, *near, 0.5) >= least


def test_losses_are_what_the_inputs_say():
    moments, h, p, wanted = example()
    a, b = moments.solve(2, 0.5)
    asked = sum(np.mean(np.sum((x @ w) ** 2, -1), -1).sum() for x, w in zip(h, wanted, strict=True))
    missing = sum(
        np.mean(np.sum((x @ (a @ b - w)) ** 2, -1), -1).sum()
        for x, w in zip(h, wanted, strict=True)
    )
    spilled = len(h) * np.mean(np.sum((p @ (a @ b)) ** 2, -1), -1).sum()
    found = moments.losses(a, b)
    assert found == pytest.approx({"missing": missing / asked, "spilled": spilled / asked})


@pytest.mark.parametrize(
    ("rank", "preserve", "message"),
    [
        (6, 1.0, "rank = 6 must be from 1 to 5 for layer"),
        (0, 1.0, "rank = 0 must be from 1 to 5"),
        (2, -1.0, "preserve = -1.0 must be a number of at least 0"),
        (2, np.nan, "preserve = nan"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(rank: int, preserve: float, message: str):
    change = {"layer/A": np.ones((2, 6, 2)), "layer/B": np.ones((2, 2, 5))}
    with pytest.raises(InputError, match=message):
        check(change, rank, preserve)


def test_a_rank_above_that_of_the_change_adds_nothing():
    rng = np.random.default_rng(0)
    moments = Moments(*(np.zeros((1, 6, n)) for n in (6, 5, 6)))
    h, a, b = rng.normal(size=(40, 6)), rng.normal(size=(1, 6, 1)), rng.normal(size=(1, 1, 5))
    moments.add((h.T @ h)[None], a, b)
    for rank in (1, 4):
        np.testing.assert_allclose(np.matmul(*moments.solve(rank, 0.0)), a @ b, atol=1e-4)


def header(folder: Path, **changes) -> dict[str, str]:
    return {"settings": json.dumps(dataclasses.asdict(tiny.run_config(folder, **changes)))}


def test_prompts_come_from_the_settings_and_none_that_stays_names_a_concept(tiny_folder: Path):
    headers = {
        "a": header(tiny_folder, concept="cat", synonyms=("kitten",), irrelevant=("dog", "sun")),
        "b": header(tiny_folder, concept="dog", irrelevant=("tree", "kitten", "dogma")),
    }
    shown = prompts(headers, 4, 0)
    assert set(shown.erased[0]) == {("a photo of a cat", "cat"), ("a photo of a kitten", "kitten")}
    assert shown.erased[1] == (("a photo of a dog", "dog"),) * 4
    assert set(shown.preserved) == {
        "",
        "a photo of a sun",
        "a photo of a tree",
        "a photo of a dogma",
    }
    assert len(shown.preserved) == 4
    assert set(prompts(headers, 4, 0, ["a tree", "a sun"]).preserved) == {"a tree", "a sun"}
    with pytest.raises(InputError, match="keep: 'a big dog' mention a concept to erase"):
        prompts(headers, 4, 0, ["a tree", "a big dog"])
    assert prompts(headers, 4, 0) == shown


def test_sentences_of_a_concept_name_no_other(tiny_folder: Path):
    several = ("a {} and a dog", "a {}", "a cat and a {}")
    headers = {
        "a": header(tiny_folder, concept="cat", prompts=several[:2], irrelevant=("sun",)),
        "b": header(tiny_folder, concept="dog", prompts=several[2:], irrelevant=("sun",)),
    }
    shown = prompts(headers, 2, 0)
    assert {sentence for sentence, _ in shown.erased[0]} == {"a cat"}
    # There are no others.
    assert {sentence for sentence, _ in shown.erased[1]} == {"a cat and a dog"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\xff\xfe\xff", "cannot be read"), (b" \n", "has no sentence")],
)
def test_a_file_of_sentences_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None, message: str
):
    file = tmp_path / "keep.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=rf"keep = '.*keep\.txt' {message}"):
        read_lines(file)


@pytest.mark.parametrize("settings", [{}, {"settings": "{"}, {"settings": "{}"}])
def test_a_file_without_settings_is_named(settings: dict[str, str]):
    with pytest.raises(InputError, match=r"x\.safetensors: its header lacks"):
        prompts({"x.safetensors": settings}, 4, 0)


@pytest.mark.slow
def test_each_concept_counts_the_same_and_its_own_tokens_most(tiny_folder: Path, monkeypatch):
    target, seen = "dual_blocks/attn/add_k_proj", []
    headers = {
        name: header(tiny_folder, concept=name, synonyms=("kitty",), irrelevant=("sun",))
        for name in ("cat", "dog")
    }
    shown = prompts(headers, 1, 0, ["a sun"])
    pipe = load(tiny_folder)

    def grams(pipe, config, targets, change, sentences, weights, *, seed):
        seen.append((sentences, weights))
        return {target: np.broadcast_to(np.eye(32), (2, 32, 32))}

    monkeypatch.setattr(fusion, "grams", grams)
    changes = [
        {f"{target}/A": size * np.ones((2, 32, 1)), f"{target}/B": np.ones((2, 1, 32))}
        for size in (1.0, 10.0)
    ]
    moments = fusion.gather(pipe, changes, shown, 0)[target]
    asked = [2 * 32 * 32 * size**2 for size in (1.0, 10.0)]
    assert moments.weight == pytest.approx(sum(1 / each for each in asked))
    assert moments.asked == pytest.approx(2)
    for (sentence, word), (sentences, weights) in zip(
        [pairs[0] for pairs in shown.erased], seen, strict=False
    ):
        assert sentences == (sentence,)
        own = marks(pipe.tokenizer_2, [sentence], word) > 0
        _, ids = pipe.tokenize([sentence])
        empty = ids == pipe.tokenizer_2.pad_token_id
        assert own.any()
        assert empty.any()
        np.testing.assert_allclose(weights[own], 1)
        np.testing.assert_allclose(weights[empty], PADDING, rtol=1e-6)
        np.testing.assert_allclose(weights[~own & ~empty], OTHER, rtol=1e-6)
    assert set(np.unique(seen[-1][1])) == {np.float32(PADDING), 1}


@pytest.mark.slow
def test_the_command_keeps_a_change_that_all_adapters_share(tiny_folder: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    target = "dual_blocks/attn/add_k_proj"
    flat = {
        f"{target}/A": rng.normal(size=(2, 32, 2)).astype(np.float32),
        f"{target}/B": rng.normal(size=(2, 2, 32)).astype(np.float32) / 8,
    }
    parts = []
    for concept in ("cat", "dog"):
        parts.append(str(tmp_path / concept))
        metadata = {"concept": concept} | header(tiny_folder, concept=concept)
        write_lora(parts[-1], nest(flat), 2.0, metadata)
    out = tmp_path / "out"
    common = ["--method", "fusion", "--prompts", "2", "--preserve", "0", "--out", str(out)]
    keep = tmp_path / "keep.txt"
    keep.write_text("a photo of a tree\n\n  a sun\n")
    main([*parts, *common, "--keep", str(keep)])
    made = flatten(read_adapter(out).lora)
    wanted = flat[f"{target}/A"] @ flat[f"{target}/B"]
    found = made[f"{target}/A"] @ made[f"{target}/B"]
    # In directions without inputs the change is not determined, so it is small instead.
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)
    settings = json.loads(read_adapter(out).metadata["settings"])
    assert (settings["method"], settings["preserve"], settings["prompts"]) == ("fusion", 0, 2)
    assert settings["keep"] == ["a photo of a tree", "a sun"]
    card = (out / "README.md").read_text()
    assert "erases “cat”, “dog”" in card
    assert "--method fusion" in card


def test_targets_blocks_and_ranks_that_an_adapter_has_not_are_zeros(tiny_folder: Path):
    shapes = load(tiny_folder).shapes
    query, key = "dual_blocks/attn/add_q_proj", "dual_blocks/attn/add_k_proj"
    one = {f"{query}/A": np.ones((1, 32, 3)), f"{query}/B": np.ones((1, 3, 32))}
    two = {f"{key}/A": np.ones((2, 32, 1)), f"{key}/B": np.ones((2, 1, 32))}
    found = fusion.completed([one, two], shapes)
    for change, given in zip(found, (one, two), strict=True):
        assert change.keys() == {*one, *two}
        for target in (query, key):
            a, b = change[f"{target}/A"], change[f"{target}/B"]
            product = a @ b
            assert product.shape == (2, 32, 32)
            depth = len(given.get(f"{target}/A", ()))
            assert (product[:depth] > 0).all()
            assert (product[depth:] == 0).all()
    with pytest.raises(InputError, match="changes block 2: the model has 2 double blocks"):
        fusion.completed([{p: np.ones((3, *leaf.shape[1:])) for p, leaf in one.items()}], shapes)


def test_layers_outside_the_blocks_are_refused():
    change = {"context_embedder/A": np.ones((4, 2)), "context_embedder/B": np.ones((2, 4))}
    with pytest.raises(InputError, match="context_embedder are outside them; compose by sum"):
        fusion.check(change, 1, 1.0)
