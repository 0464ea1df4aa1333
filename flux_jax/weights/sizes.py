"""Infers the sizes of models without a `config.json` from their tensors' shapes.

Values that shapes do not determine are those of FLUX.1: the channels that each position axis
rotates, the scale of latents, and the head width of CLIP.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flux_jax.errors import InputError
from flux_jax.weights.rules import Table, match

# Channels of a head for each position axis in FLUX.1.
ROPE_AXES = (16, 56, 56)
# Values that the autoencoder's shapes do not determine.
VAE_FIXED = {
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "norm_num_groups": 32,
    "sample_size": 1024,
}
# Channels of a head in all of OpenAI's text encoders.
CLIP_HEAD = 64
# With this id CLIP's end-of-text token is the largest id, as in FLUX.1's configuration.
CLIP_EOS = 2

# Axes of a convolution's kernel.
CONV = 4

Tensors = Mapping[str, Any]


def transformer(file: Path, tensors: Tensors, table: Table) -> dict[str, Any]:
    """Sizes of a transformer, with diffusers' names.

    Args:
        file: for messages.
        tensors: by the table's names.
        table: the table of either layout.

    Raises:
        InputError: a tensor that determines a size is missing, or the head width is not FLUX.1's.
    """
    torch = {row.flax[0]: row.torch for row in table.rows}

    def shape(leaf: str, axes: int = 2) -> tuple[int, ...]:
        return _shape(file, tensors, torch[leaf].format(i=0), axes)

    def blocks(leaf: str) -> int:
        found = (match(torch[leaf], name) for name in tensors)
        return len({numbers["i"] for numbers in found if numbers})

    width, channels = shape("x_embedder/kernel")
    (head,) = shape("dual_blocks/attn/norm_q/scale", 1)
    if head != sum(ROPE_AXES):
        raise InputError(
            f"{file}: heads have {head} channels and FLUX.1's {sum(ROPE_AXES)}, so the rotary axes "
            "are unknown; use the model in diffusers' layout, whose config.json has axes_dims_rope"
        )
    return {
        "_class_name": "FluxTransformer2DModel",
        "in_channels": channels,
        "out_channels": shape("proj_out/kernel")[0],
        "num_layers": blocks("dual_blocks/attn/norm_q/scale"),
        "num_single_layers": blocks("single_blocks/attn/norm_q/scale"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shape("context_embedder/kernel")[1],
        "pooled_projection_dim": shape("pooled_embedder/linear_1/kernel")[1],
        "guidance_embeds": torch["guidance_embedder/linear_1/kernel"] in tensors,
        "axes_dims_rope": list(ROPE_AXES),
        "patch_size": 1,
    }


def vae(file: Path, tensors: Tensors, block: str) -> dict[str, Any]:
    """Sizes of an autoencoder, with diffusers' names.

    Args:
        file: for messages.
        tensors: by the layout's names.
        block: regular expression of the start of the encoder's block names, with groups for level
            and block.

    Raises:
        InputError: a tensor that determines a size is missing.
    """
    firsts: dict[tuple[int, int], str] = {}
    for name in tensors:
        match = re.match(f"({block})", name)
        if match:
            firsts[int(match[2]), int(match[3])] = f"{match[1]}conv1.weight"
    count = len({level for level, _ in firsts})
    missing = next((level for level in range(count) if (level, 0) not in firsts), None)
    if missing is not None or not count:
        raise InputError(f"{file}: a level of the encoder is missing; fetch the file again")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [
            _shape(file, tensors, firsts[level, 0], CONV)[0] for level in range(count)
        ],
        "layers_per_block": len([level for level, _ in firsts if level == 0]),
        "latent_channels": _shape(file, tensors, "decoder.conv_in.weight", CONV)[1],
        "in_channels": _shape(file, tensors, "encoder.conv_in.weight", CONV)[1],
        "out_channels": _shape(file, tensors, "decoder.conv_out.weight", CONV)[0],
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        **VAE_FIXED,
    }


def levels(config: Mapping[str, Any]) -> int:
    """Number of levels of an autoencoder with this `config.json`."""
    return len(config.get("block_out_channels", [64]))


def clip(file: Path, tensors: Tensors) -> dict[str, Any]:
    """Sizes of CLIP's text encoder, with transformers' names.

    Raises:
        InputError: a tensor that determines a size is missing, or the width is not a multiple of
            the head width.
    """
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    vocabulary, width = _shape(file, plain, "embeddings.token_embedding.weight")
    if width % CLIP_HEAD:
        raise InputError(
            f"{file}: CLIP's width {width} does not determine its number of heads; put its "
            "config.json into a folder text_encoder beside the file"
        )
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(file, plain, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(plain, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // CLIP_HEAD,
        "max_position_embeddings": _shape(file, plain, "embeddings.position_embedding.weight")[0],
        "hidden_act": "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": CLIP_EOS,
        "pad_token_id": 1,
    }


def t5(file: Path, tensors: Tensors) -> dict[str, Any]:
    """Sizes of T5's encoder, with transformers' names.

    Raises:
        InputError: a tensor that determines a size is missing.
    """
    first = "encoder.block.0.layer"
    table = "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight"
    vocabulary, width = _shape(file, tensors, table)
    bias = f"{first}.0.SelfAttention.relative_attention_bias.weight"
    buckets, heads = _shape(file, tensors, bias)
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": _shape(file, tensors, f"{first}.0.SelfAttention.q.weight")[0] // heads,
        "d_ff": _shape(file, tensors, f"{first}.1.DenseReluDense.wi_0.weight")[0],
        "num_layers": _count(tensors, r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
    }


def _shape(file: Path, tensors: Tensors, name: str, axes: int = 2) -> tuple[int, ...]:
    if name not in tensors:
        raise InputError(
            f"{file}: {name} is missing, which determines a size; fetch the file again"
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or not all(shape):
        raise InputError(
            f"{file}: {name} is {list(shape)} and must have {axes} axes, none of length 0; fetch "
            "the file again"
        )
    return shape


def _count(tensors: Tensors, pattern: str) -> int:
    """Number of distinct numbers at the pattern's group in the names."""
    matches = (re.match(pattern, name) for name in tensors)
    return len({match[1] for match in matches if match})
