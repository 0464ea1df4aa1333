"""FLUX.1 in Flax: the model, its text encoders, its autoencoder and its sampler."""

from flux_jax.lora import Adapter
from flux_jax.pipeline import Conditioning, Pipeline, load

__all__ = ["Adapter", "Conditioning", "Pipeline", "load"]
