"""Adapter files: what diffusers loads, and the conversion back."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from helpers import tiny
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert.adapters.files import read_adapter, read_lora, write_layers, write_lora
from convert.adapters.names import TABLE
from convert.adapters.stacked import unstack
from flux_jax.errors import InputError
from flux_jax.tree import flatten, nest
from flux_jax.weights.mapping import to_torch
from flux_jax.weights.safetensors_files import read_component
from flux_jax.weights.tables import TRANSFORMER

TEXT = ("dual_blocks/attn/add_q_proj", "dual_blocks/attn/add_k_proj")
EVERY_KIND = (*TEXT, "dual_blocks/attn/to_out", "dual_blocks/ff/linear_2", "single_blocks/proj_out")
WIDTHS = {"dual_blocks/ff/linear_2": (128, 32), "single_blocks/proj_out": (160, 32)}
KEY = "transformer.transformer_blocks.{}.attn.add_{}_proj.{}"


def adapter(targets, rank, dtype=np.float32):
    """A random adapter for the tiny transformer (2 dual-stream, 3 single-stream blocks)."""
    generator = np.random.default_rng(0)
    flat = {}
    for target in targets:
        depth = 2 if target.startswith("dual") else 3
        inputs, outputs = WIDTHS.get(target, (32, 32))
        flat[f"{target}/A"] = generator.normal(size=(depth, inputs, rank)).astype(dtype)
        flat[f"{target}/B"] = generator.normal(size=(depth, rank, outputs)).astype(dtype)
    return nest(flat)


def assert_equal_trees(one, two):
    one, two = flatten(one), flatten(two)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        assert leaf.dtype == two[path].dtype, path
        assert leaf.shape == two[path].shape, path
        assert leaf.tobytes() == two[path].tobytes(), path


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("alpha", [4.0, 10.0, 0.1])
def test_round_trip_through_both_layouts_is_exact(tmp_path, alpha, dtype):
    lora = adapter(EVERY_KIND, 4, dtype)
    write_lora(tmp_path / "one", lora, alpha, {"steps": "300"})
    first = read_adapter(tmp_path / "one")
    layers = unstack(tmp_path, first.lora, first.alpha)
    write_layers(tmp_path / "two", "flax", layers, first.metadata)
    second = read_adapter(tmp_path / "two")
    assert (first.layout, second.layout) == ("diffusers", "flax")
    assert first.alpha == second.alpha == alpha
    assert first.metadata == second.metadata == {"steps": "300"}
    assert_equal_trees(lora, first.lora)
    assert_equal_trees(lora, second.lora)


def test_keys_and_header_are_those_of_diffusers(tmp_path):
    lora = adapter(TEXT, 4)
    write_lora(tmp_path / "adapter.safetensors", lora, 4.0)
    with safe_open(tmp_path / "adapter.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {
            KEY.format(block, letter, f"lora_{part}.weight")
            for block in (0, 1)
            for letter in "qk"
            for part in "AB"
        }
        stored = file.get_tensor(KEY.format(1, "k", "lora_A.weight"))
    np.testing.assert_array_equal(stored, lora["dual_blocks"]["attn"]["add_k_proj"]["A"][1].T)


def test_every_dense_layer_of_the_blocks_is_a_target(tiny_folder):
    kernels = {
        name.removesuffix(".weight")
        for name, tensor in read_component(tiny_folder / "transformer").items()
        if "transformer_blocks." in name and name.endswith(".weight") and len(tensor.shape) == 2
    }
    layers = {row.torch.removeprefix("transformer.").rsplit(".lora_", 1)[0] for row in TABLE.rows}
    filled = {layer.format(i=block) for layer in layers for block in range(3)}
    assert kernels <= filled
    assert len(layers) == len({row.torch for row in TABLE.rows}) // 2


@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_diffusers_adds_alpha_over_rank_times_product(tmp_path, tiny_folder, alpha):
    lora = adapter(EVERY_KIND, 4)
    write_lora(tmp_path, lora, alpha)
    pipeline = FluxPipeline.from_pretrained(tiny_folder)
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    pipeline.load_lora_weights(tmp_path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    after = pipeline.transformer.state_dict()

    flat = flatten(lora)
    change = {
        f"{path.removesuffix('/A')}/kernel": alpha / 4 * flat[path] @ flat[path[:-1] + "B"]
        for path in flat
        if path.endswith("/A")
    }
    expected = to_torch(TRANSFORMER, nest(change))
    assert len(expected) == 4 * 2 + 3
    for name, value in before.items():
        wanted = value + torch.tensor(expected[name].copy()) if name in expected else value
        torch.testing.assert_close(after[name], wanted, rtol=1e-6, atol=2e-6)


def test_unfused_adapter_gives_what_merged_weights_give(tmp_path, tiny_folder):
    pipeline = FluxPipeline.from_pretrained(tiny_folder)
    lora = adapter(TEXT, 2)
    write_lora(tmp_path, lora, 3.0)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 4, 16, generator=generator),
        "encoder_hidden_states": torch.randn(1, 5, 24, generator=generator),
        "pooled_projections": torch.randn(1, 16, generator=generator),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    merged = tiny.transformer()
    with torch.no_grad():
        for block, layer in enumerate(merged.transformer_blocks):
            for name in ("add_q_proj", "add_k_proj"):
                pair = lora["dual_blocks"]["attn"][name]
                change = 1.5 * (pair["A"][block] @ pair["B"][block]).T
                getattr(layer.attn, name).weight += torch.tensor(change)
        base = pipeline.transformer(**inputs).sample
        pipeline.load_lora_weights(tmp_path)
        adapted = pipeline.transformer(**inputs).sample
        wanted = merged(**inputs).sample
    assert (adapted - base).abs().max() > 1e-2
    torch.testing.assert_close(adapted, wanted, rtol=1e-5, atol=1e-5)


def test_alpha_in_diffusers_own_header_is_read(tmp_path, tiny_folder):
    lora = adapter(TEXT, 4)
    write_lora(tmp_path / "ours", lora, 4.0)
    pipeline = FluxPipeline.from_pretrained(tiny_folder)
    pipeline.load_lora_weights(tmp_path / "ours", adapter_name="default")
    config = pipeline.transformer.peft_config["default"]
    config.lora_alpha = 12
    layers: dict[str, torch.nn.Module | torch.Tensor] = {
        name.removeprefix("transformer.").replace(".default", ""): torch.tensor(value)
        for name, value in load_file(tmp_path / "ours/pytorch_lora_weights.safetensors").items()
    }
    FluxPipeline.save_lora_weights(
        tmp_path / "theirs", layers, transformer_lora_adapter_metadata=config.to_dict()
    )
    again, alpha = read_lora(tmp_path / "theirs")
    assert alpha == 12.0
    assert_equal_trees(lora, again)


def broken(change, tmp_path):
    """Change an adapter file of diffusers' layout; return the error's message."""
    write_lora(tmp_path / "adapter.safetensors", adapter(TEXT, 4), 8.0)
    tensors = load_file(tmp_path / "adapter.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(InputError) as caught:
        read_lora(tmp_path / "adapter.safetensors")
    return str(caught.value)


def test_defects_are_told_in_one_line(tmp_path):
    def change(tensors):
        del tensors[KEY.format(0, "q", "lora_B.weight")]
        tensors[KEY.format(1, "k", "lora_A.weight")] = np.zeros((3, 32), np.float32)

    message = broken(change, tmp_path)
    assert "adapter.safetensors: 2 layers cannot be used" in message
    assert f"{KEY.format(0, 'q', '')[:-1]} has no up matrix" in message
    assert f"{KEY.format(1, 'k', '')[:-1]} is [3, 32] down and [32, 4] up" in message

    def add(tensors):
        tensors["transformer.transformer_blocks.0.norm.lora_A.weight"] = np.zeros((4, 32), "f4")

    message = broken(add, tmp_path)
    assert "12 keys belong to an adapter but these do not" in message
    assert "transformer.transformer_blocks.0.norm.lora_A.weight" in message


def test_a_missing_partner_is_refused(tmp_path):
    def drop_all_b(tensors):
        for name in [name for name in tensors if "add_k_proj.lora_B" in name]:
            del tensors[name]

    message = broken(drop_all_b, tmp_path)
    assert all(f"{KEY.format(i, 'k', '')[:-1]} has no up matrix" in message for i in (0, 1))


def test_foreign_layout_is_named(tmp_path):
    save_file({"lora_unet_x.lora_up.weight": np.zeros((2, 2), "f4")}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"no known adapter layout.*lora_unet_x"):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("path", "shape", "told"),
    [
        ("dual_blocks/attn/add_q_proj/B", (2, 3, 32), "misshapen: dual_blocks/attn/add_q_proj/B"),
        ("dual_blocks/attn/add_q_proj/B", (1, 4, 32), "expected [2, 4, 32]"),
        (
            "dual_blocks/attn/nothing/A",
            (2, 32, 4),
            "surplus: dual_blocks/attn/nothing/A [2, 32, 4]",
        ),
    ],
)
def test_trees_that_no_file_can_hold_are_refused(tmp_path, path, shape, told):
    flat = flatten(adapter(TEXT, 4)) | {path: np.zeros(shape, np.float32)}
    with pytest.raises(InputError) as caught:
        write_lora(tmp_path / "new", nest(flat), 4.0)
    assert told in str(caught.value)
    assert not (tmp_path / "new").exists()


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "convert.lora", *map(str, arguments)],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_converts_there_and_back_and_refuses_to_overwrite(tmp_path):
    lora = adapter(EVERY_KIND, 4)
    write_lora(tmp_path / "one.safetensors", lora, 10.0)
    assert command(tmp_path / "one.safetensors", tmp_path / "flax").returncode == 0
    assert command(tmp_path / "flax", tmp_path / "two.safetensors").returncode == 0
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()

    again = command(tmp_path / "flax", two)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "exists" in again.stderr
    assert "Traceback" not in again.stderr


def test_command_on_damaged_and_missing_files_exits_with_2(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x80\x00\x00\x00\x00\x00\x00\x00{")
    for source in ("cut.safetensors", "nowhere.safetensors"):
        result = command(tmp_path / source, tmp_path / "new")
        assert result.returncode == 2
        assert source in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()
