"""Write the trained networks as a pipeline folder in diffusers' layout, in bfloat16."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jaxtyping import PyTree

from convert.pipeline import MODEL_INDEX, write_json
from flux_jax.weights.mapping import to_torch
from flux_jax.weights.safetensors_files import write_component
from flux_jax.weights.tables import COMPONENTS

DIFFUSERS_VERSION = "0.42.1"
TRANSFORMERS_VERSION = "5.23.0"
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": DIFFUSERS_VERSION,
    "base_image_seq_len": 64,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": True,
}
STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


def export(out: Path, configs: Mapping[str, Any], params: Mapping[str, PyTree]) -> None:
    """Write configurations, weights, scheduler and index; the tokenizers must exist already.

    Args:
        out: the pipeline folder.
        configs: `config.json` of every component.
        params: parameters of every component, in any floating dtype.
    """
    for name, stem in STEMS.items():
        versions = (
            {"_diffusers_version": DIFFUSERS_VERSION}
            if stem.startswith("diffusion")
            # Transformers loads weights in this dtype, diffusers in float32 by default; the two
            # have to match.
            else {"dtype": "float32", "transformers_version": TRANSFORMERS_VERSION}
        )
        write_json(out / name / "config.json", configs[name] | versions)
        rounded = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float32).astype(ml_dtypes.bfloat16), params[name]
        )
        tensors = to_torch(COMPONENTS[name], rounded)
        write_component(out / name, tensors, stem, {"format": "pt"})
    write_json(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(out / "model_index.json", MODEL_INDEX)
