"""Adapters and models to merge, for tests."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from convert.adapters.files import write_lora
from convert.pipeline import convert as convert_pipeline
from flux_jax import lora
from flux_jax.weights import sizes
from flux_jax.weights.loading import abstract_params
from flux_jax.weights.source import open_source
from helpers import tiny

PARTS = ("dual_blocks/attn/to_k", "dual_blocks/attn/add_q_proj", "single_blocks/proj_mlp")


def shapes_of(folder: Path) -> Any:
    return abstract_params("transformer", open_source(folder, "transformer").config)


def write_adapter(
    folder: Path, model: Path, targets=None, *, rank=3, alpha=4.5, seed=0, scale=0.1
) -> Path:
    """A random adapter for a model, of all stacked layers unless targets are passed."""
    shapes = shapes_of(model)
    tree = lora.init(jax.random.key(0), shapes, targets or list(lora.stacked(shapes)), rank)
    rng = np.random.default_rng(seed)
    filled = jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape).astype("f4"), tree)
    write_lora(folder, filled, alpha)
    return folder


def pair_in(folder: Path, model: Path) -> list[tuple[Path, float]]:
    """Two adapters for a model with strengths, one of which has every target."""
    every = write_adapter(folder / "every", model)
    parts = write_adapter(folder / "parts", model, PARTS, rank=2, alpha=2.0, seed=1)
    return [(every, 0.7), (parts, -1.25)]


def originals_in(folder: Path) -> tuple[Path, Path]:
    """A bfloat16 pipeline in diffusers' layout and with single files."""
    tiny.build(folder / "diffusers", axes=sizes.ROPE_AXES, heads=1)
    pipeline = FluxPipeline.from_pretrained(folder / "diffusers", vae=tiny.vae(widths=(32, 64)))
    pipeline.vae.register_to_config(**sizes.VAE_FIXED)
    pipeline.to(torch.bfloat16).save_pretrained(folder / "diffusers")
    convert_pipeline(folder / "diffusers", folder / "original", to="original")
    return folder / "diffusers", folder / "original"
