"""Files as read by diffusers and PEFT: the resulting weights equal ours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from helpers import tiny
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from convert.adapters.files import read_layers, write_layers
from convert.adapters.layers import Full, Layers
from convert.adapters.names import SPLIT

pytestmark = [
    # PEFT mistakes biases for parts of a sharded matrix.
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.* have invalid shape"),
    # "proj_out" is the name of one layer and the suffix of others' names.
    pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters, an inconsistency"),
]
WIDTH = 32
NAMES = {layer.targets[0]: layer.name for layer in SPLIT}
Weights = dict[str, torch.Tensor]


@pytest.fixture
def model() -> FluxTransformer2DModel:
    return tiny.transformer()


def weights_of(model: Any) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def by_ours(base: Weights, layers: Layers) -> Weights:
    """The weights with each layer's change, as read by `convert.adapters.layers`."""
    made = dict(base)
    for (target, block), layer in layers.items():
        name = NAMES[target].format(i=block)
        if isinstance(layer, Full):
            change = layer.delta
        else:
            change = float(layer.alpha) / layer.rank * layer.up @ layer.down
        weight = base[f"{name}.weight"] + torch.tensor(np.asarray(change))
        magnitude = None if isinstance(layer, Full) else layer.magnitude
        if magnitude is not None:
            weight *= (torch.tensor(magnitude) / weight.norm(dim=1))[:, None]
        made[f"{name}.weight"] = weight
        if layer.bias is not None:
            made[f"{name}.bias"] = base[f"{name}.bias"] + torch.tensor(layer.bias)
    return made


def assert_weights(found: Weights, wanted: Weights, base: Weights) -> None:
    """Assert equal weights, some of which differ from the base model's."""
    assert found.keys() == wanted.keys()
    changed = [name for name in wanted if not torch.equal(wanted[name], base[name])]
    assert changed
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=2e-5, atol=2e-6, msg=name)


def by_diffusers(model: FluxTransformer2DModel, file: Path) -> Weights:
    """The weights after `FluxPipeline.load_lora_weights`."""
    parts: dict[str, Any] = dict.fromkeys(
        ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    )
    pipeline = FluxPipeline(**parts, transformer=model)
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return weights_of(model)


def random_pairs(names: dict[str, tuple[int, int]], rank: int = 4, **parts: str) -> Weights:
    """Matrices for layers of these outputs and inputs; suffixes .lora_A and .lora_B by default."""
    generator = torch.Generator().manual_seed(0)
    down, up = parts.get("down", ".lora_A.weight"), parts.get("up", ".lora_B.weight")
    tensors = {}
    for name, (outputs, inputs) in names.items():
        tensors[name + down] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        tensors[name + up] = torch.randn(outputs, rank, generator=generator)
    return tensors


SQUARE = (WIDTH, WIDTH)
OUTSIDE = {
    "transformer.x_embedder": (WIDTH, 16),
    "transformer.context_embedder": (WIDTH, 24),
    "transformer.time_text_embed.timestep_embedder.linear_1": (WIDTH, 256),
    "transformer.time_text_embed.guidance_embedder.linear_2": SQUARE,
    "transformer.time_text_embed.text_embedder.linear_1": (WIDTH, 16),
    "transformer.norm_out.linear": (2 * WIDTH, WIDTH),
    # (For this one diffusers 0.42.1 uses the alpha for the blocks' proj_out too.)
    "transformer.proj_out": (16, WIDTH),
    "transformer.transformer_blocks.1.norm1.linear": (6 * WIDTH, WIDTH),
    "transformer.single_transformer_blocks.2.norm.linear": (3 * WIDTH, WIDTH),
    "transformer.single_transformer_blocks.0.proj_mlp": (4 * WIDTH, WIDTH),
}
ATTENTION = {
    f"transformer.transformer_blocks.{i}.attn.to_{x}": SQUARE for i in (0, 1) for x in "qk"
}
ONETRAINER = {name.replace(".", "_"): shape for name, shape in ATTENTION.items()}
DOWN_UP = {"down": ".lora_down.weight", "up": ".lora_up.weight"}


def alphas(tensors: Weights, *values: float) -> Weights:
    """An alpha for each layer, from these values in turn."""
    stems = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    told = {f"{s}.alpha": torch.tensor(values[i % len(values)]) for i, s in enumerate(stems)}
    return tensors | told


def xlabs(prefix: str = "") -> Weights:
    names = {}
    for block in (0, 1):
        for stream in "12":
            names[f"{prefix}double_blocks.{block}.processor.qkv_lora{stream}"] = (3 * WIDTH, WIDTH)
            names[f"{prefix}double_blocks.{block}.processor.proj_lora{stream}"] = SQUARE
    names[f"{prefix}single_blocks.1.processor.qkv_lora"] = (3 * WIDTH, WIDTH)
    names[f"{prefix}single_blocks.1.processor.proj_lora"] = (WIDTH, 5 * WIDTH)
    return random_pairs(names, down=".down.weight", up=".up.weight")


def kohya() -> Weights:
    """Kohya's file with CLIP's layers in it, which diffusers reads too."""
    stem = "lora_unet_double_blocks_1_txt_attn_"
    names = {f"{stem}qkv": (3 * WIDTH, WIDTH), f"{stem}proj": SQUARE}
    names["lora_unet_single_blocks_0_modulation_lin"] = (3 * WIDTH, WIDTH)
    names["lora_te1_text_model_encoder_layers_0_self_attn_q_proj"] = (16, 16)
    return alphas(random_pairs(names, **DOWN_UP), 2.0, 1.0)


def ranks() -> Weights:
    """Two ranks, in some of the blocks."""
    first, *rest = OUTSIDE.items()
    return random_pairs(dict([first])) | random_pairs(dict(rest), rank=2)


FILES = {
    "outside the blocks": lambda: alphas(random_pairs(OUTSIDE), 2.0, 8.0, -3.0),
    "other ranks": ranks,
    "alpha 0": lambda: alphas(random_pairs(ATTENTION), 0.0, 2.0),
    "down and up in diffusers' names": lambda: random_pairs(ATTENTION, **DOWN_UP),
    "onetrainer": lambda: alphas(
        random_pairs({f"lora_{name}": shape for name, shape in ONETRAINER.items()}, **DOWN_UP), 2.0
    ),
    "xlabs": xlabs,
    "xlabs with a prefix": lambda: xlabs("diffusion_model."),
    "kohya with clip": kohya,
}


@pytest.mark.parametrize("kind", FILES)
def test_files_mean_what_diffusers_makes_of_them(tmp_path, model, kind):
    file = tmp_path / "adapter.safetensors"
    save_file(FILES[kind](), file)
    base = weights_of(model)
    if kind == "kohya with clip":
        # The pipeline here has no text encoder to load that part into.
        state = FluxPipeline.lora_state_dict(file)
        only = {name: value for name, value in state.items() if name.startswith("transformer.")}
        assert len(only) < len(state)
        save_file({n: v.clone() for n, v in only.items()}, tmp_path / "theirs.safetensors")
        theirs = by_diffusers(model, tmp_path / "theirs.safetensors")
    else:
        theirs = by_diffusers(model, file)
    assert_weights(theirs, by_ours(base, read_layers(file).layers), base)


TARGETS = ["attn.to_q", "attn.add_k_proj", "proj_mlp", "norm_out.linear"]
CONFIGS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 8},
    "patterns": {
        "lora_alpha": 8,
        "alpha_pattern": {"attn.to_q": 2, "single_transformer_blocks.1.proj_mlp": 6},
        "rank_pattern": {"attn.to_q": 2, "^transformer_blocks.1.attn.add_k_proj": 3},
    },
    "rslora": {"lora_alpha": 3, "use_rslora": True, "rank_pattern": {"attn.to_q": 9}},
    "dora": {"lora_alpha": 8, "use_dora": True},
    "bias": {"lora_alpha": 8, "lora_bias": True},
}


def random_adapter(model: Any, generator: torch.Generator) -> None:
    """Randomise the matrices and biases of an adapter."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name or "lokr" in name or "hada" in name:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data = values / parameter.shape[-1] ** 0.5
        elif "magnitude" in name:
            parameter.data *= 1 + torch.rand(parameter.shape, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["adapter", "pipeline", "peft"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_and_diffusers_save_is_what_they_applied(tmp_path, model, kind, saved):
    config = LoraConfig(r=4, target_modules=TARGETS, **CONFIGS[kind])
    base = weights_of(model)
    generator = torch.Generator().manual_seed(1)
    if saved == "peft":
        wrapped = get_peft_model(model, config)
        random_adapter(wrapped, generator)
        wrapped.save_pretrained(tmp_path)
        theirs = weights_of(wrapped.merge_and_unload())
    else:
        model.add_adapter(config)
        random_adapter(model, generator)
        model.save_lora_adapter(tmp_path)
        if saved == "pipeline":
            (file,) = tmp_path.glob("*.safetensors")
            layers: Any = load_file(file)
            told = model.peft_config["default"].to_dict()
            told["target_modules"] = sorted(told["target_modules"])
            FluxPipeline.save_lora_weights(tmp_path, layers, transformer_lora_adapter_metadata=told)
        model.fuse_lora()
        model.unload_lora()
        theirs = weights_of(model)
    assert_weights(theirs, by_ours(base, read_layers(tmp_path).layers), base)


@pytest.mark.parametrize(
    "config",
    [
        LoKrConfig(r=2, alpha=6, target_modules=TARGETS),
        LoKrConfig(r=2, alpha=6, target_modules=TARGETS, decompose_both=True, decompose_factor=4),
        # The rank is so large that neither factor is decomposed.
        LoKrConfig(r=40, alpha=6, target_modules=TARGETS, alpha_pattern={"attn.to_q": 80}),
        LoHaConfig(r=3, alpha=6, target_modules=TARGETS),
    ],
    ids=["lokr", "lokr of two products", "lokr of two matrices", "loha"],
)
def test_lokr_and_loha_of_peft_are_what_it_merges(tmp_path, model, config):
    base = weights_of(model)
    wrapped = get_peft_model(model, config)
    random_adapter(wrapped, torch.Generator().manual_seed(2))
    wrapped.save_pretrained(tmp_path)
    theirs = weights_of(wrapped.merge_and_unload())
    layers = read_layers(tmp_path).layers
    assert all(isinstance(layer, Full) for layer in layers.values())
    assert_weights(theirs, by_ours(base, layers), base)


@pytest.mark.parametrize("kind", ["dora", "bias"])
def test_dora_and_biases_are_written_so_that_diffusers_reads_them(tmp_path, model, kind):
    base = weights_of(model)
    model.add_adapter(LoraConfig(r=4, target_modules=TARGETS, **CONFIGS[kind]))
    random_adapter(model, torch.Generator().manual_seed(3))
    model.save_lora_adapter(tmp_path / "theirs")
    layers = read_layers(tmp_path / "theirs").layers
    file = write_layers(tmp_path / "ours", "diffusers", layers)
    wanted = by_ours(base, layers)
    assert_weights(by_ours(base, read_layers(file).layers), wanted, base)
    assert_weights(by_diffusers(tiny.transformer(), file), wanted, base)
