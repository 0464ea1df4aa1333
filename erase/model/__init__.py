"""The frozen model: opening, sampling, attention maps."""

from flux_jax import moved

# Former import path of these names.
__getattr__ = moved.names(__name__, "erase.model.open")
