"""Conversions between adapter layouts preserve every bit and the change that each file means."""

import itertools
import json

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux_lora_to_diffusers,
)
from helpers.adapters import BLOCKS, WIDTH, assert_same, only, random_layers, small_shapes
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert.adapters.files import read_layers, read_lora, write_layers
from convert.adapters.joined import join
from convert.adapters.layers import Pair, same
from convert.adapters.names import LAYOUTS, SPLIT, label
from convert.adapters.stacked import unstack
from flux_jax.errors import InputError

BFLOAT = ml_dtypes.bfloat16
TORCH = ("diffusers", "kohya", "original")
QKV = "lora_unet_double_blocks_0_txt_attn_qkv"
LINEAR1 = "lora_unet_single_blocks_1_linear1"
TARGETS = {
    "text": ("add_q_proj", "add_k_proj"),
    "attention": ("attn",),
    "q": ("to_q",),
    "mlp": ("proj_mlp", "ff"),
    "all": ("",),
}
KINDS = {
    "plain": {},
    "bfloat16": {"types": (BFLOAT,)},
    "uneven ranks": {"ranks": (1, 3, 8)},
    "uneven scales": {"ranks": (2, 3), "alphas": (1, 0.1, 10)},
    "mixed types": {"types": (BFLOAT, np.float16, np.float32), "alphas": (4, 0.3)},
    "zeros": {"size": 0.0},
}


def random_some(kind, targets):
    return only(random_layers(small_shapes(), **KINDS[kind]), TARGETS[targets])


@pytest.mark.slow
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_adapter_goes_through_all_pytorch_layouts_bit_for_bit(tmp_path, kind, targets):
    given = random_some(kind, targets)
    layers = given
    files = []
    for number, layout in enumerate((*TORCH, *reversed(TORCH))):
        file = tmp_path / f"{number}.safetensors"
        files.append(write_layers(file, layout, layers, {"concept": "cat"}))
        found = read_layers(file)
        assert found.layout == layout
        assert found.metadata == {"concept": "cat"}
        assert_same(found.layers, given)
        layers = found.layers
    for there, back in zip(files, reversed(files), strict=True):
        assert there.read_bytes() == back.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("alpha_type", [np.float32, BFLOAT])
@pytest.mark.parametrize("targets", ["text", "attention", "q", "mlp"])
def test_an_even_adapter_goes_through_flax_too(tmp_path, targets, alpha_type):
    given = only(random_layers(small_shapes(), types=(BFLOAT,)), TARGETS[targets])
    given = {
        (target, block): Pair(pair.down, pair.up, pair.alpha.astype(alpha_type))
        for (target, block), pair in given.items()
        if block is not None
    }
    for first, second in itertools.permutations(LAYOUTS, 2):
        write_layers(tmp_path / first / second, first, given)
        write_layers(
            tmp_path / second / first, second, read_layers(tmp_path / first / second).layers
        )
        assert_same(read_layers(tmp_path / second / first).layers, given)
    lora, alpha = read_lora(tmp_path / "kohya" / "flax")
    assert_same(unstack(tmp_path, lora, alpha, alpha_type), given)


def test_separate_layers_become_a_block_diagonal(tmp_path):
    given = {
        place: Pair(pair.down, pair.up, np.array(2 * pair.rank, np.float32))
        for place, pair in random_some("uneven ranks", "text").items()
    }
    tensors = load_file(write_layers(tmp_path, "kohya", given))
    query, key = (given[f"dual_blocks/attn/{name}", 0] for name in TARGETS["text"])
    rank = query.rank + key.rank
    down, up = (tensors[f"{QKV}.lora_{part}.weight"] for part in ("down", "up"))
    np.testing.assert_array_equal(down, np.concatenate([query.down, key.down]))
    wanted = np.zeros((3 * WIDTH, rank), np.float32)
    wanted[:WIDTH, : query.rank], wanted[WIDTH : 2 * WIDTH, query.rank :] = query.up, key.up
    np.testing.assert_array_equal(up, wanted)
    assert tensors[f"{QKV}.alpha"] == 2 * rank
    assert len(tensors) == 3 * BLOCKS


def jointly_trained(dtype=np.float32):
    """Kohya's file as written by a trainer that trains joined layers jointly."""
    rng = np.random.default_rng(0)
    tensors = {}
    for stem, outputs in ((QKV, 3 * WIDTH), (LINEAR1, 7 * WIDTH)):
        tensors[f"{stem}.lora_down.weight"] = rng.normal(size=(4, WIDTH)).astype(dtype)
        tensors[f"{stem}.lora_up.weight"] = rng.normal(size=(outputs, 4)).astype(dtype)
        tensors[f"{stem}.alpha"] = np.array(2, dtype)
    return tensors


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT])
def test_a_jointly_trained_file_shares_down_and_comes_back(tmp_path, dtype):
    trained = jointly_trained(dtype)
    save_file(trained, tmp_path / "theirs.safetensors", {"ss_network_dim": "4"})
    found = read_layers(tmp_path / "theirs.safetensors")
    assert len(found.layers) == 3 + 4
    for letter, rows in zip("qkv", range(3), strict=True):
        pair = found.layers[f"dual_blocks/attn/add_{letter}_proj", 0]
        np.testing.assert_array_equal(pair.down, trained[f"{QKV}.lora_down.weight"])
        up = trained[f"{QKV}.lora_up.weight"][rows * WIDTH : (rows + 1) * WIDTH]
        np.testing.assert_array_equal(pair.up, up)
        assert pair.alpha == 2
    assert len(found.layers["single_blocks/proj_mlp", 1].up) == 4 * WIDTH
    for layout in TORCH:
        write_layers(tmp_path / layout, layout, found.layers, found.metadata)
        back = write_layers(
            tmp_path / "back" / layout, "kohya", read_layers(tmp_path / layout).layers
        )
        tensors = load_file(back)
        assert tensors.keys() == trained.keys()
        for name, tensor in trained.items():
            assert tensor.dtype == tensors[name].dtype
            assert tensor.tobytes() == tensors[name].tobytes()


def test_a_block_diagonal_of_another_program_comes_apart(tmp_path):
    # As converted by sd-scripts: equal ranks, and no note of it in the header.
    parts = [
        pair for (target, _), pair in random_some("plain", "attention").items() if "to_" in target
    ]
    made = join(parts[:3], [WIDTH] * 3)
    tensors = {"lora_down.weight": made.down, "lora_up.weight": made.up, "alpha": made.alpha}
    save_file({f"{QKV}.{name}": part for name, part in tensors.items()}, tmp_path / "a.safetensors")
    layers = list(read_layers(tmp_path / "a.safetensors").layers.values())
    assert [layer.rank for layer in layers] == [4, 4, 4]
    assert all(map(same, layers, parts))


def test_what_the_tensors_do_not_tell_is_told_and_only_believed_if_it_fits(tmp_path):
    given = random_some("zeros", "text")
    file = write_layers(tmp_path, "kohya", given)
    with safe_open(file, "numpy") as opened:
        told = json.loads(opened.metadata()["joined_layers"])
    assert told.keys() == {f"double_blocks.{i}.txt_attn.qkv" for i in range(BLOCKS)}
    assert_same(read_layers(file).layers, given)
    # Another program continued the training and left the header unchanged.
    tensors = load_file(file)
    tensors[f"{QKV}.lora_up.weight"][:] = 1
    with safe_open(file, "numpy") as opened:
        save_file(tensors, file, opened.metadata())
    layers = read_layers(file).layers
    joined = join([layers[f"dual_blocks/attn/add_{x}_proj", 0] for x in "qkv"], [WIDTH] * 3)
    for part in ("down", "up"):
        np.testing.assert_array_equal(getattr(joined, part), tensors[f"{QKV}.lora_{part}.weight"])
    plain = random_some("plain", "text")
    with safe_open(write_layers(tmp_path / "plain", "kohya", plain), "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", KINDS)
def test_joining_keeps_the_change(kind):
    layers = list(random_some(kind, "all").items())
    pairs = [pair for (target, _), pair in layers if target.startswith("dual_blocks/attn/to_")][:3]
    joined = join([pairs[0], None, pairs[2]], [WIDTH] * 3)
    change = float(joined.scale) * joined.up.astype(float) @ joined.down.astype(float)
    parts = [
        float(pair.scale) * pair.up.astype(float) @ pair.down.astype(float) if pair else 0
        for pair in (pairs[0], None, pairs[2])
    ]
    for found, wanted in zip(np.split(change, 3), parts, strict=True):
        np.testing.assert_allclose(
            found, np.broadcast_to(wanted, found.shape), rtol=1e-6, atol=1e-9
        )


def as_torch(tensors):
    return {name: torch.tensor(tensor) for name, tensor in tensors.items()}


def changes(state):
    """Output for ones of every layer of a state in diffusers' names, without alpha."""
    return {
        name.removesuffix(".lora_A.weight").removeprefix("transformer."): (
            state[name.replace("lora_A", "lora_B")] @ state[name].sum(dim=1)
        ).numpy()
        for name in state
        if name.endswith("lora_A.weight")
    }


@pytest.mark.parametrize("layout", ["kohya", "original"])
def test_names_are_those_that_diffusers_converts_at_flux_1s_widths(tmp_path, layout):
    shapes = {}
    width = 3072
    for layer in SPLIT:
        (target,) = layer.targets
        inputs = {"x_embedder": 64, "context_embedder": 4096}.get(target, width)
        outputs = {"proj_mlp": 4 * width, "linear": 2 * width}.get(target.split("/")[-1], width)
        shapes[target, 0 if "{i}" in layer.name else None] = (outputs, inputs)
    # For the second-to-last layer diffusers omits alpha.
    layers = random_layers(shapes, ranks=(2, 3), alphas=(1, 6))
    for place in (("norm_out/linear", None), ("proj_out", None)):
        pair = layers[place]
        layers[place] = Pair(pair.down, pair.up, np.array(pair.rank, np.float32))
    file = write_layers(tmp_path, layout, layers)
    theirs = changes(_convert_kohya_flux_lora_to_diffusers(as_torch(load_file(file))))
    assert theirs.keys() == {label(place) for place in layers}
    for place, pair in layers.items():
        wanted = float(pair.alpha) / pair.rank * (pair.up @ pair.down.sum(axis=1))
        np.testing.assert_allclose(theirs[label(place)], wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "base_model.model."])
@pytest.mark.parametrize("parts", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_other_spellings_of_the_original_layout_are_read(tmp_path, prefix, parts):
    given = random_some("bfloat16", "all")
    tensors = {}
    for name, tensor in load_file(write_layers(tmp_path, "original", given)).items():
        renamed = prefix + name.removeprefix("diffusion_model.")
        for ours, theirs in zip(("lora_down", "lora_up"), parts, strict=True):
            renamed = renamed.replace(ours, theirs)
        tensors[renamed] = tensor
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_layers(tmp_path / "a.safetensors")
    assert found.layout == "original"
    assert_same(found.layers, given)


@pytest.mark.parametrize(
    ("before", "after"),
    [("transformer.", ""), (".lora_A.", ".lora_down."), ("transformer.", "lora_transformer_")],
)
def test_other_spellings_of_diffusers_layout_are_read(tmp_path, before, after):
    given = random_some("bfloat16", "all")
    tensors = {}
    for name, tensor in load_file(write_layers(tmp_path, "diffusers", given)).items():
        renamed = name.replace(before, after, 1).replace(
            "lora_B", "lora_up" if "down" in after else "lora_B"
        )
        if after.endswith("_"):
            stem, dot, part = (
                renamed.partition(".lora_") if ".lora_" in renamed else renamed.rpartition(".")
            )
            renamed = stem.replace(".", "_") + dot + part
        tensors[renamed] = tensor
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_layers(tmp_path / "a.safetensors")
    assert found.layout == "diffusers"
    assert_same(found.layers, given)


@pytest.mark.parametrize(
    ("kind", "targets", "told"),
    [
        ("plain", "all", None),
        ("uneven ranks", "text", "ranks from"),
        ("bfloat16", "text", None),
    ],
)
def test_what_does_not_stack_is_refused_for_flax_alone(tmp_path, kind, targets, told):
    layers = random_some(kind, targets)
    first = next(iter(layers))
    if told is None:
        layers[first] = Pair(layers[first].down, layers[first].up, np.array(1, np.float32))
        told = r"alpha = 8.0 on \d+ layers, 1.0 on 1 layer:"
    with pytest.raises(InputError, match=told) as caught:
        write_layers(tmp_path / "new", "flax", layers)
    message = str(caught.value).replace(str(tmp_path), "")
    assert "\n" not in message
    assert len(message) <= 400
    assert "write diffusers', kohya's or the original layout" in message
    assert not (tmp_path / "new").exists()
    for layout in TORCH:
        assert_same(read_layers(write_layers(tmp_path, layout, layers)).layers, layers)


def test_alphas_that_are_absent_whole_numbers_or_in_the_header(tmp_path):
    given = random_some("plain", "text")
    file = write_layers(tmp_path, "kohya", given)
    tensors = load_file(file)
    del tensors[f"{QKV}.alpha"]
    name = QKV.replace("0", "1") + ".alpha"
    save_file(tensors | {name: np.array(16, np.int64)}, file)
    layers = read_layers(file).layers
    assert {block: float(pair.scale) for (_, block), pair in layers.items()} == {0: 1, 1: 2}

    config = {"transformer.lora_alpha": 2, "transformer.alpha_pattern": {"0.attn.add_k_proj": 12}}
    plain = {place: Pair(p.down, p.up, np.array(4, np.float32)) for place, p in given.items()}
    file = write_layers(tmp_path, "diffusers", plain)
    header = {"lora_adapter_metadata": json.dumps(config)}
    save_file(load_file(file), file, header)
    found = read_layers(file)
    alphas = {label(place): float(pair.alpha) for place, pair in found.layers.items()}
    assert alphas.pop("transformer_blocks.0.attn.add_k_proj") == 12
    assert set(alphas.values()) == {2}
    assert not found.metadata
