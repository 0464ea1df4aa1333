"""CLIP: the text encoder that FLUX.1 has, the image tower, and both as one model."""

from flux_jax import moved

# Former import path of these names.
__getattr__ = moved.names(__name__, "flux_jax.models.clip.text", "flux_jax.models.clip.blocks")
