"""The published configurations of FLUX.1 [dev] and [schnell], known without their files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Variants by their names on the hub.
VARIANTS = {f"black-forest-labs/FLUX.1-{variant}": variant for variant in ("dev", "schnell")}
# Version of diffusers that wrote the published configurations.
VERSION = "0.30.0.dev0"
CLIP_TOKENS = 77
T5_TOKENS = {"dev": 512, "schnell": 256}

Config = Mapping[str, Any]
Configs = Mapping[str, Config]

CLIP: Config = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
    "vocab_size": 49408,
}

T5: Config = {
    "_name_or_path": "google/t5-v1_1-xxl",
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
    "use_cache": True,
    "vocab_size": 32128,
}


@dataclass
class Lengths:
    """Stands in for a tokenizer that is not read: only the length of its encoder's input."""

    model_max_length: int


def variant_of(model: str) -> str | None:
    """The variant of a model, "dev" or "schnell", if it is a name on the hub and no local path."""
    return None if os.path.exists(model) else VARIANTS.get(model)


def configs(variant: str) -> Configs:
    """Contents of the published `config.json` files of FLUX.1's models, by folder.

    Fields missing there have the libraries' defaults: the transformer's `axes_dims_rope`.

    Args:
        variant: "dev" or "schnell".
    """
    return {
        "transformer": _transformer(variant),
        "text_encoder": CLIP,
        "text_encoder_2": T5,
        "vae": _vae(variant),
    }


def _transformer(variant: str) -> Config:
    return {
        "_class_name": "FluxTransformer2DModel",
        "_diffusers_version": VERSION,
        "_name_or_path": f"../checkpoints/flux-{variant}/transformer",
        "attention_head_dim": 128,
        "guidance_embeds": variant == "dev",
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    }


def _vae(variant: str) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "_name_or_path": f"../checkpoints/flux-{variant}",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 16,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": 2,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def describe(model: str, dtype: Any = None, quantize: str | None = None) -> Any:
    """A published pipeline without weights and tokenizers, to plan memory and time.

    Args:
        model: a key of `VARIANTS`.
        dtype: as for `flux_jax.pipeline.load`.
        quantize: as for `flux_jax.pipeline.load`.

    Returns:
        A `flux_jax.pipeline.Pipeline` whose shapes are known and whose weights cannot be read.
    """
    import jax
    import jax.numpy as jnp

    from flux_jax import sharding
    from flux_jax.pipeline import Pipeline
    from flux_jax.sampling import Schedule
    from flux_jax.weights import original
    from flux_jax.weights.loading import Weights, build
    from flux_jax.weights.source import Source

    variant = VARIANTS[model]
    chosen = dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    sources = {name: Source(Path(model), sizes, 0) for name, sizes in configs(variant).items()}
    modules: dict[str, Any] = {
        name: build(name, source.config, chosen) for name, source in sources.items()
    }
    clip: Any = Lengths(CLIP_TOKENS)
    t5: Any = Lengths(T5_TOKENS[variant])
    mesh = sharding.make({})
    return Pipeline(
        **modules,
        params=Weights(sources, chosen, mesh, quantize),
        tokenizer=clip,
        tokenizer_2=t5,
        schedule=Schedule.from_dict(original.schedule_config(variant == "dev")),
        mesh=mesh,
    )
