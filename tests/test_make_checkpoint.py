"""Random checkpoints of FLUX.1's size: names and shapes are those of the PyTorch models."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from helpers import warm
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.make_checkpoint import configs, make, random_tensor
from flux_jax.errors import InputError
from flux_jax.pipeline import load
from flux_jax.weights import original
from flux_jax.weights.loading import abstract_params
from flux_jax.weights.mapping import torch_shapes
from flux_jax.weights.safetensors_files import read_component, read_file
from flux_jax.weights.tables import COMPONENTS

MODELS = {
    "transformer": lambda config: FluxTransformer2DModel.from_config(config),
    "vae": lambda config: AutoencoderKL.from_config(config),
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    "text_encoder_2": lambda config: T5EncoderModel(T5Config(**config)),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dev", "schnell"])
@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_pytorchs_at_full_size(name: str, variant: str):
    config = dict(configs(variant)[name])
    with torch.device("meta"):
        model = MODELS[name](config)
    table = COMPONENTS[name]
    ours = torch_shapes(table, abstract_params(name, config))
    theirs = {
        table.prefix + key.removeprefix(table.prefix): tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        if table.prefix + key.removeprefix(table.prefix) not in table.copies
    }
    assert ours == theirs


def test_the_size_is_flux_dev_s():
    sizes = configs("dev")
    numbers = {
        name: sum(int(np.prod(leaf.shape)) for leaf in _leaves(abstract_params(name, config)))
        for name, config in sizes.items()
    }
    assert numbers["transformer"] == 11_901_408_320
    assert numbers["text_encoder_2"] == 4_762_310_656
    assert numbers["text_encoder"] == 123_060_480
    assert numbers["vae"] == 83_819_683


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def small() -> dict[str, dict]:
    """The same pipeline with fewer and narrower blocks."""
    sizes = {name: dict(config) for name, config in configs("dev").items()}
    sizes["transformer"] |= {
        "num_attention_heads": 1, "num_layers": 2, "num_single_layers": 2,
        "joint_attention_dim": 24, "pooled_projection_dim": 16,
    }  # fmt: skip
    sizes["text_encoder"] |= {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "projection_dim": 16, "vocab_size": 1026,
    }  # fmt: skip
    sizes["text_encoder_2"] |= {
        "d_ff": 48, "d_kv": 8, "d_model": 24, "num_heads": 3, "num_layers": 2, "vocab_size": 640,
    }  # fmt: skip
    sizes["vae"] |= {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
    return sizes


@pytest.mark.slow
def test_both_layouts_load_and_diffusers_reads_its_own(tmp_path: Path):
    make(tmp_path / "diffusers", small(), t5_tokens=32)
    theirs = FluxPipeline.from_pretrained(tmp_path / "diffusers", dtype=torch.bfloat16)
    for name in COMPONENTS:
        read = read_component(tmp_path / "diffusers" / name)
        state = getattr(theirs, name).state_dict()
        assert {key.removeprefix("text_model.") for key in read} <= {
            key.removeprefix("text_model.") for key in state
        }
    ours = load(tmp_path / "diffusers")
    drawn = ours(["a cat"], seeds=[0], steps=2, height=32, width=32)
    assert drawn.shape == (1, 32, 32, 3)
    assert drawn.std() > 1

    make(tmp_path / "original", small(), layout="original", t5_tokens=32)
    assert (tmp_path / "original" / "ae.safetensors").is_file()
    other = load(tmp_path / "original")
    assert other.transformer.config.num_attention_heads == 1
    assert other(["a cat"], seeds=[0], steps=2, height=32, width=32).std() > 1
    with pytest.raises(InputError, match="exists; choose another DST"):
        make(tmp_path / "original", small())


def test_tensors_are_seeded_and_keep_the_scale(tmp_path: Path):
    name, shape = "double_blocks.0.img_attn.qkv.weight", (96, 1024)
    one, same, other = (np.asarray(random_tensor(name, shape, seed, len_of)) for seed in (0, 0, 1))
    assert one.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.9
    assert abs(one.astype(np.float32).std() * 1024**0.5 - 1) < 0.02
    scale = np.asarray(random_tensor("norm.query_norm.scale", (128,), 0, len_of), np.float32)
    bias = np.asarray(random_tensor("img_in.bias", (128,), 0, len_of), np.float32)
    assert abs(scale.mean() - 1) < 0.01
    assert abs(bias.mean()) < 0.01


def len_of(read: int) -> None:
    """No progress is counted."""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["--layout=original"])
def test_bad_input_ends_with_code_2(layout: str, tmp_path: Path):
    done = warm.run("-m", "benchmarks.make_checkpoint", tmp_path, layout)
    assert done.returncode == 2
    assert f"error: {tmp_path} exists" in done.stderr


def test_original_names_are_the_tables(tmp_path: Path):
    make(tmp_path / "new", small(), layout="original", t5_tokens=32)
    written = read_file(tmp_path / "new" / "flux1.safetensors")
    config = small()["transformer"]
    shapes = torch_shapes(original.TRANSFORMER, abstract_params("transformer", config))
    assert {key: tensor.shape for key, tensor in written.items()} == shapes
