"""FLUX.1 in Flax: transformer, text encoders, autoencoder and sampler.

The names below are imported on first access, so that help texts and errors need no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from flux_jax import moved

if TYPE_CHECKING:
    from flux_jax.lora import Adapter
    from flux_jax.pipeline import Pipeline, load
    from flux_jax.programs import Conditioning

__all__ = ["Adapter", "Conditioning", "Pipeline", "load"]

_HOMES = {
    "Adapter": "flux_jax.lora",
    "Conditioning": "flux_jax.programs",
    "Pipeline": "flux_jax.pipeline",
    "load": "flux_jax.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


moved.announce(
    __name__,
    {
        "attention": "flux_jax.models.attention",
        "blocks": "flux_jax.models.blocks",
        "clip": "flux_jax.models.clip.text",
        "compiler": "flux_jax.system.xla_flags",
        "config": "flux_jax.models.config",
        "dora": "flux_jax.models.dora",
        "layers": "flux_jax.models.layers",
        "mesh": "flux_jax.sharding",
        "quantize": "flux_jax.models.quantize",
        "schedule": "flux_jax.sampling",
        "splash": "flux_jax.models.kernels.splash_attention",
        "t5": "flux_jax.models.t5",
        "tokenizers": "flux_jax.models.tokenizers",
        "targets": "flux_jax.settings",
        "transformer": "flux_jax.models.transformer",
        "vae": "flux_jax.models.vae",
        "xla_flags": "flux_jax.system.xla_flags",
    },
)
