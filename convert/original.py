"""Black Forest Labs' own files: `flux1-dev.safetensors` and the like, and `ae.safetensors`.

They bring no configuration: sizes are read from the tensors' shapes. Queries, keys and values are
joined, shift stands before scale in the last modulation, and the autoencoder's decoder counts its
levels from the picture up.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.mapping import Row, Table
from convert.rules import CONV, LINEAR, POINTWISE, VECTOR, Joined, Rule, Swapped

# How FLUX.1 shares the channels of a head among the positions' axes.
ROPE_AXES = (16, 56, 56)
# What the autoencoder's shapes do not tell.
VAE_FIXED = {
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "norm_num_groups": 32,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
# Programs that keep several models in one file set this before the transformer's names.
BUNDLED = "model.diffusion_model."


def _rows(
    torch: str, flax: Iterable[str], matrix: Rule = LINEAR, vector: Rule = VECTOR
) -> Iterable[Row]:
    """A dense layer, or several that the file joins."""
    flax = tuple(flax)
    yield Row(f"{torch}.weight", tuple(f"{name}/kernel" for name in flax), matrix)
    yield Row(f"{torch}.bias", tuple(f"{name}/bias" for name in flax), vector)


def _joined(torch: str, flax: Iterable[str]) -> Iterable[Row]:
    return _rows(torch, flax, Joined(LINEAR), Joined(VECTOR))


def _transformer() -> Iterable[Row]:
    yield from _rows("img_in", ["x_embedder"])
    yield from _rows("txt_in", ["context_embedder"])
    for torch, flax in (
        ("time_in", "time_embedder"),
        ("guidance_in", "guidance_embedder"),
        ("vector_in", "pooled_embedder"),
    ):
        yield from _rows(f"{torch}.in_layer", [f"{flax}/linear_1"])
        yield from _rows(f"{torch}.out_layer", [f"{flax}/linear_2"])
    streams = {
        "img": ("norm1", ("to_q", "to_k", "to_v"), "to_out", "ff", "norm_{}"),
        "txt": (
            "norm1_context",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            "to_add_out",
            "ff_context",
            "norm_added_{}",
        ),
    }
    for stream, (norm, projections, out, ff, head_norm) in streams.items():
        torch, flax = f"double_blocks.{{i}}.{stream}", "dual_blocks"
        yield from _rows(f"{torch}_mod.lin", [f"{flax}/{norm}/linear"])
        yield from _joined(f"{torch}_attn.qkv", [f"{flax}/attn/{name}" for name in projections])
        yield from _rows(f"{torch}_attn.proj", [f"{flax}/attn/{out}"])
        yield from _rows(f"{torch}_mlp.0", [f"{flax}/{ff}/linear_1"])
        yield from _rows(f"{torch}_mlp.2", [f"{flax}/{ff}/linear_2"])
        yield from _head_norms(f"{torch}_attn.norm", f"{flax}/attn/{head_norm}/scale")
    torch, flax = "single_blocks.{i}", "single_blocks"
    yield from _rows(f"{torch}.modulation.lin", [f"{flax}/norm/linear"])
    joined = ("attn/to_q", "attn/to_k", "attn/to_v", "proj_mlp")
    yield from _joined(f"{torch}.linear1", [f"{flax}/{name}" for name in joined])
    yield from _rows(f"{torch}.linear2", [f"{flax}/proj_out"])
    yield from _head_norms(f"{torch}.norm", f"{flax}/attn/norm_{{}}/scale")
    yield from _rows(
        "final_layer.adaLN_modulation.1", ["norm_out/linear"], Swapped(LINEAR), Swapped(VECTOR)
    )
    yield from _rows("final_layer.linear", ["proj_out"])


def _head_norms(torch: str, flax: str) -> Iterable[Row]:
    for letter, name in (("q", "query_norm"), ("k", "key_norm")):
        yield Row(f"{torch}.{name}.scale", (flax.format(letter),), VECTOR)


TRANSFORMER = Table(tuple(_transformer()), stem="flux1")


def vae_table(levels: int) -> Table:
    """Names of the autoencoder.

    Args:
        levels: of the picture, each half as high and wide as the one before.
    """
    return Table(tuple(_vae(levels)), stem="ae")


def table(name: str, config: Mapping[str, Any]) -> Table:
    """Names of a model, "transformer" or "vae", of these sizes."""
    return TRANSFORMER if name == "transformer" else vae_table(len(config["block_out_channels"]))


def _vae(levels: int) -> Iterable[Row]:
    for side in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            yield from _rows(f"{side}.{name}", [f"{side}/{name}"], CONV)
        yield from _norm(f"{side}.norm_out", f"{side}/conv_norm_out")
        for index in range(2):
            yield from _resnet(f"{side}.mid.block_{index + 1}", f"{side}/mid_block/resnets_{index}")
        torch, flax = f"{side}.mid.attn_1", f"{side}/mid_block/attentions_0"
        yield from _norm(f"{torch}.norm", f"{flax}/group_norm")
        for name, to in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out")):
            yield from _rows(f"{torch}.{name}", [f"{flax}/{to}"], POINTWISE)
    for level in range(levels):
        for torch, flax, sampler in (
            (f"encoder.down.{level}", f"encoder/down_blocks_{level}", "downsample"),
            (f"decoder.up.{levels - 1 - level}", f"decoder/up_blocks_{level}", "upsample"),
        ):
            yield from _resnet(f"{torch}.block.{{b}}", f"{flax}/resnets_{{b}}")
            yield from _rows(f"{torch}.{sampler}.conv", [f"{flax}/{sampler}rs_0/conv"], CONV)


def _norm(torch: str, flax: str) -> Iterable[Row]:
    yield Row(f"{torch}.weight", (f"{flax}/scale",), VECTOR)
    yield Row(f"{torch}.bias", (f"{flax}/bias",), VECTOR)


def _resnet(torch: str, flax: str) -> Iterable[Row]:
    for name in ("norm1", "norm2"):
        yield from _norm(f"{torch}.{name}", f"{flax}/{name}")
    for name in ("conv1", "conv2"):
        yield from _rows(f"{torch}.{name}", [f"{flax}/{name}"], CONV)
    yield from _rows(f"{torch}.nin_shortcut", [f"{flax}/conv_shortcut"], CONV)


def is_transformer(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names holds FLUX's transformer."""
    return any(name.removeprefix(BUNDLED).startswith("double_blocks.0.") for name in names)


def is_vae(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names holds FLUX's autoencoder."""
    return any(name.startswith("decoder.mid.attn_1.") for name in names)


def transformer_config(file: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a transformer, under diffusers' names.

    Raises:
        InputError: a tensor that tells a size is missing, or the file is of another model.
    """
    width, channels = _shape(file, tensors, "img_in.weight")
    (head,) = _shape(file, tensors, "double_blocks.0.img_attn.norm.query_norm.scale")
    if head != sum(ROPE_AXES):
        raise InputError(
            f"{file}: heads are {head} wide and FLUX.1's {sum(ROPE_AXES)}, so how positions turn "
            "them is not known; give the model in diffusers' layout, whose config.json tells"
        )
    return {
        "_class_name": "FluxTransformer2DModel",
        "in_channels": channels,
        "out_channels": _shape(file, tensors, "final_layer.linear.weight")[0],
        "num_layers": _count(tensors, r"double_blocks\.(\d+)\..*"),
        "num_single_layers": _count(tensors, r"single_blocks\.(\d+)\..*"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": _shape(file, tensors, "txt_in.weight")[1],
        "pooled_projection_dim": _shape(file, tensors, "vector_in.in_layer.weight")[1],
        "guidance_embeds": any(name.startswith("guidance_in.") for name in tensors),
        "axes_dims_rope": list(ROPE_AXES),
        "patch_size": 1,
    }


def vae_config(file: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of an autoencoder, under diffusers' names.

    Raises:
        InputError: a tensor that tells a size is missing.
    """
    levels = _count(tensors, r"encoder\.down\.(\d+)\..*")
    firsts = (f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels))
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [_shape(file, tensors, name)[0] for name in firsts],
        "layers_per_block": _count(tensors, r"encoder\.down\.0\.block\.(\d+)\..*"),
        "latent_channels": _shape(file, tensors, "decoder.conv_in.weight")[1],
        "in_channels": _shape(file, tensors, "encoder.conv_in.weight")[1],
        "out_channels": _shape(file, tensors, "decoder.conv_out.weight")[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **VAE_FIXED,
    }


def schedule_config(guidance: bool) -> dict[str, Any]:
    """The sampler's settings: [dev], which embeds guidance, shifts; [schnell] does not."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "use_dynamic_shifting": guidance,
        "shift": 3.0 if guidance else 1.0,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }


def _shape(file: Path, tensors: Mapping[str, Any], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise InputError(f"{file}: {name} is missing, which tells a size; fetch the file again")
    return tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    """How many different numbers stand in the names at the pattern's group."""
    found = (re.fullmatch(pattern, name) for name in tensors)
    return len({match[1] for match in found if match})
