"""Adapters on the MMDiT against PEFT's, with strengths and in sums."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.flux_case import assert_close
from peft import LoraConfig

from convert.adapters.files import write_lora
from erase.model.sample import sample
from flux_jax import load, lora
from flux_jax.errors import InputError


@pytest.mark.slow
def test_fresh_adapter_gives_the_base_bit_for_bit(case):
    tree = lora.init(jax.random.key(1), case.params, rank=4)
    np.testing.assert_array_equal(case.apply(tree)[0], case.apply()[0])


@pytest.mark.slow
def test_strength_is_traced_and_zero_gives_the_base(case):
    tree = lora.init(jax.random.key(1), case.params, rank=4)
    adapter = lora.Adapter(jax.tree.map(lambda leaf: leaf + 0.1, tree), alpha=4.0)
    run = jax.jit(lambda strength: case.apply(adapter.scaled(strength))[0])
    base = jax.jit(lambda: case.apply()[0])()
    np.testing.assert_array_equal(run(0.0), base)
    assert np.any(np.asarray(run(1.0)) != base)
    assert run._cache_size() == 1


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_adapter_equals_peft(case, alpha):
    targets = (*lora.TEXT_QUERY_KEY, "dual_blocks/attn/to_q", "single_blocks/attn/to_k")
    tree = lora.init(jax.random.key(2), case.params, targets, rank=4)
    tree = jax.tree.map(lambda leaf: leaf + 0.05, tree)
    model = case.torch_model
    names = r"transformer_blocks\.\d+\.attn\.(add_q_proj|add_k_proj|to_q)"
    names = rf"({names})|(single_transformer_blocks\.\d+\.attn\.to_k)"
    model.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=names), "test")
    try:
        blocks = {"dual_blocks": model.transformer_blocks}
        blocks["single_blocks"] = model.single_transformer_blocks
        for target in targets:
            stream, _, layer = target.split("/")
            for index, block in enumerate(blocks[stream]):
                module = getattr(block.attn, layer)
                pair = tree[stream]["attn"][layer]
                module.lora_A["test"].weight.copy_(torch.tensor(np.asarray(pair["A"][index].T)))
                module.lora_B["test"].weight.copy_(torch.tensor(np.asarray(pair["B"][index].T)))
        theirs = model(**case.torch_inputs()).sample
    finally:
        model.delete_adapters("test")
        model.unload_lora()
    ours = case.apply(lora.Adapter(tree, alpha).scaled())[0]
    assert np.max(np.abs(ours - np.asarray(case.apply()[0]))) > 1e-3
    assert_close(ours, theirs)


@pytest.mark.slow
def test_combined_adapters_add_up(case):
    first, second = (
        lora.Adapter(jax.tree.map(lambda leaf: leaf + 0.1, tree), alpha=5.0)
        for tree in (
            lora.init(jax.random.key(0), case.params, rank=2),
            lora.init(jax.random.key(1), case.params, rank=3),
        )
    )
    pair = lora.combine([(first, 0.5), (second, 2.0)])["dual_blocks"]["attn"]["add_q_proj"]
    expected = sum(
        strength
        * (5.0 / a.rank)
        * jnp.einsum(
            "lir,lro->lio",
            *(a.lora["dual_blocks"]["attn"]["add_q_proj"][part] for part in ("A", "B")),
        )
        for a, strength in ((first, 0.5), (second, 2.0))
    )
    assert_close(jnp.einsum("lir,lro->lio", pair["A"], pair["B"]), np.asarray(expected))
    assert lora.combine([]) is None


def test_adapter_target_must_exist(case):
    with pytest.raises(InputError, match="add_z_proj"):
        lora.init(jax.random.key(0), case.params, ("dual_blocks/attn/add_z_proj",))


def test_an_adapter_of_another_architecture_is_refused(tiny_folder: Path, tmp_path: Path):
    pipe = load(tiny_folder)
    fitting = lora.init(jax.random.key(0), pipe.shapes, rank=2)
    pipe.check(lora.Adapter(fitting, 2.0))
    larger = jax.tree.map(lambda leaf: jnp.zeros((19, *leaf.shape[1:])), fitting)
    with pytest.raises(InputError, match=r"mine:0\.5 changes block 18: the model has 2 double bl"):
        pipe.check(lora.Adapter(larger, 2.0), "mine:0.5")
    wider = jax.tree.map(lambda leaf: jnp.zeros((19, 48, 48)), fitting)
    with pytest.raises(InputError, match=r"add_k_proj \[19, 48, 48\] has \[2, 32, 32\] there"):
        pipe.check(lora.Adapter(wider, 2.0))
    attention = fitting["dual_blocks"]["attn"]
    elsewhere = {f"layer_{index}": attention["add_q_proj"] for index in range(40)}
    with pytest.raises(InputError, match=r"layer_0 \[2, 32, 32\] is not there") as caught:
        pipe.check(lora.Adapter({"dual_blocks": {"attn": elsewhere}}, 2.0))
    message = str(caught.value)
    assert "and 37 more (blocks, inputs, outputs); take one that was trained on it" in message
    assert len(message) <= 400
    assert "\n" not in message
    write_lora(tmp_path, jax.tree.map(np.asarray, larger), 2.0)
    said = f"{tmp_path} changes block 18: the model has 2 double blocks"
    with pytest.raises(InputError, match=re.escape(said)):
        sample(tiny_folder, ["a cat"], [0], [str(tmp_path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
