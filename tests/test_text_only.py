"""Adapters that change text tokens only, in layers of single-stream blocks."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small import BANK, KEY, SIZES, T, random_tree
from test_methods import runs_of

from convert import lora as convert_lora
from convert import merge
from convert.adapters.files import FLAX_FILE, read_adapter, read_lora, write_lora
from erase.cli import compose
from erase.training import run
from flux_jax.errors import InputError
from flux_jax.lora import Adapter, combine, init, unscaled
from flux_jax.models.layers import Dense
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.programs import Denoiser
from flux_jax.settings import JOINED_LAYERS, TEXT_QUERY_KEY
from flux_jax.tree import flatten
from flux_jax.weights.loading import abstract_params

# In the last block, only keys and values of text tokens reach the picture.
TWO = SIZES | {"num_single_layers": 2}
MODEL = FluxTransformer(FluxConfig.from_dict(TWO))
PARAMS = random_tree(abstract_params("transformer", TWO), 1)
ALL = tuple(f"{layer}/text" for layer in JOINED_LAYERS)


def tree_of(targets: tuple[str, ...] = ALL, seed: int = 2, rank: int = 2) -> Any:
    return random_tree(init(KEY, PARAMS, targets, rank), seed, 1.0)


@jax.jit
def velocity(lora: Any) -> jax.Array:
    model = Denoiser(MODEL, PARAMS, BANK.image_ids, 3.5, lora)
    return model.velocity(BANK.trajectories[:2, 1], BANK.sentences[:2, 0], jnp.float32(0.8))


def test_a_layer_changes_the_first_tokens_only():
    rng = np.random.default_rng(0)
    x, kernel, a, b = (rng.standard_normal(s) for s in ((2, 5, 3), (3, 4), (3, 2), (2, 4)))
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(4)}
    half = {"A": jnp.asarray(a, jnp.float32), "B": jnp.asarray(b, jnp.float32)}
    variables = {"params": params, "lora": {"text": half}}
    found = Dense(4).apply(variables, jnp.asarray(x, jnp.float32), 2)
    expected = x @ kernel
    expected[:, :2] += x[:, :2] @ a @ b
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", JOINED_LAYERS)
def test_in_the_model_rows_of_picture_tokens_stay(layer: str):
    """The model with an adapter, and with the same change added to its layer's output."""
    # The same change in both blocks.
    tree = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), tree_of((f"{layer}/text",)))
    a, b = (np.asarray(leaf)[0] for leaf in flatten(tree).values())

    def added(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and "/".join(context.module.path) == layer:
            text = jnp.arange(out.shape[1])[:, None] < T
            out = out + jnp.where(text, args[0] @ a @ b, 0)
        return out

    with nn.intercept_methods(added):
        model = Denoiser(MODEL, PARAMS, BANK.image_ids, 3.5)
        expected = model.velocity(BANK.trajectories[:2, 1], BANK.sentences[:2, 0], jnp.float32(0.8))
    np.testing.assert_allclose(velocity(tree), expected, rtol=2e-4, atol=2e-5)
    assert np.abs(velocity(tree) - velocity(None)).max() > 1e-3


def test_at_strength_0_and_for_all_tokens_it_is_another_adapter():
    tree = tree_of()
    still = combine([(unscaled(tree), 0.0)])
    np.testing.assert_allclose(velocity(still), velocity(None), rtol=1e-5, atol=1e-6)
    whole = tree_of(JOINED_LAYERS)
    assert np.abs(velocity(tree) - velocity(whole)).max() > 1e-3


@pytest.mark.parametrize("target", ["dual_blocks/attn/to_q/text", "x_embedder/text"])
def test_layers_with_tokens_of_one_kind_are_refused(target: str):
    with pytest.raises(InputError, match=f"targets: '{target}' is not a layer of the model"):
        init(KEY, PARAMS, (target,))


def test_the_projects_format_keeps_it_and_no_other_is_written(tmp_path: Path, capsys: Any):
    lora = jax.tree.map(np.asarray, tree_of((*ALL, *TEXT_QUERY_KEY)))
    assert write_lora(tmp_path, lora, 3.0, {"concept": "cat"}) == tmp_path / FLAX_FILE
    found, alpha = read_lora(tmp_path)
    assert alpha == 3.0
    assert flatten(found).keys() == flatten(lora).keys()
    for path, leaf in flatten(lora).items():
        np.testing.assert_array_equal(flatten(found)[path], leaf)
    convert_lora.main([str(tmp_path), str(tmp_path / "again.safetensors"), "--to", "flax"])
    assert flatten(read_adapter(tmp_path / "again.safetensors").lora).keys() == flatten(lora).keys()
    for layout in ("diffusers", "kohya", "original"):
        target = tmp_path / f"{layout}.safetensors"
        with pytest.raises(SystemExit):
            convert_lora.main([str(tmp_path / FLAX_FILE), str(target), "--to", layout])
        said = capsys.readouterr().err.strip()
        assert " on text tokens only (10 layers in all), which no PyTorch layout can" in said
        assert len(said.splitlines()) == 1
        assert not target.exists()


def test_it_is_not_merged_into_weights(tiny_folder: Path, tmp_path: Path, capsys: Any):
    lora = jax.tree.map(np.asarray, tree_of())
    write_lora(tmp_path / "one", lora, 2.0)
    with pytest.raises(SystemExit):
        merge.main([str(tiny_folder), str(tmp_path / "one"), str(tmp_path / "out")])
    assert "which weights cannot do; apply it with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_compositions_add_up(tmp_path: Path, capsys: Any):
    """Of different ranks, and with an adapter of other layers."""
    trees = (tree_of(seed=3, rank=1), tree_of(TEXT_QUERY_KEY, 4, rank=3))
    for name, tree in zip(("one", "two"), trees, strict=True):
        write_lora(tmp_path / name, jax.tree.map(np.asarray, tree), 2.0, {"concept": name})
    parts = [str(tmp_path / "one"), f"{tmp_path / 'two'}:0.5"]
    compose.main([*parts, "--method", "sum", "--out", str(tmp_path / "sum")])
    both = combine([(Adapter(trees[0], 2.0), 1.0), (Adapter(trees[1], 2.0), 0.5)])
    made = combine([(Adapter(*read_lora(tmp_path / "sum")), 1.0)])
    np.testing.assert_allclose(velocity(made), velocity(both), rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        compose.main([*parts, "--method", "fusion", "--out", str(tmp_path / "fused")])
    assert "fusion" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["erase_anything", "esd", "uce", "mace"])
def test_methods_train_and_solve_it(method: str, tiny_folder: Path, tmp_path: Path):
    targets = ("single_blocks/attn/to_k/text", "single_blocks/proj_mlp/text")
    adapter = dict(rank=2, alpha=None, targets=targets)
    runs = runs_of(tiny_folder, method, adapter=adapter, mace={"edit_rank": 2})
    made = run.run(runs, tmp_path / "run")[""]
    found = read_adapter(tmp_path / "run" / "adapter")
    assert sorted({path.rpartition("/")[0] for path in flatten(found.lora)}) == sorted(targets)
    for a, b in zip(*map(jax.tree.leaves, (made.lora, found.lora)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(np.asarray(a)).max() > 0
    # The same command finds everything done, and the card says how to use the file.
    run.run(runs, tmp_path / "run")
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "load_lora_weights" not in card
    assert "erase-anything sample" in card
