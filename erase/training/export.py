"""Export a run's adapter to a file that diffusers loads, where it can."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import jax
import numpy as np

from convert.adapters.files import write_lora
from erase.config.schema import Config
from erase.methods import method_of
from erase.runtime.run_folder import ADAPTER
from flux_jax.lora import Adapter

PACKAGE = "erase-anything-jax"


def write_adapter(adapter: Adapter, config: Config, workdir: Path) -> Path:
    """Write `adapter/pytorch_lora_weights.safetensors`, which diffusers loads; return the file.

    An adapter that changes text tokens only in some layers is `adapter/flax_lora.safetensors`.
    """
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    settings = dataclasses.asdict(config)
    # The adapter is the same bytes whether somebody watched the training or not.
    del settings["samples"]
    metadata = {
        "concept": config.concept,
        "base_model": config.model.path,
        "method": method_of(config).title,
        "version": version,
        "settings": json.dumps(settings),
    }
    lora = jax.tree.map(np.asarray, adapter.lora)
    return write_lora(workdir / ADAPTER, lora, adapter.alpha, metadata)
