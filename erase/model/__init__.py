"""The frozen model: opened, drawn with, its attention looked at."""

from flux_jax import moved

# Before there were packages these names were here.
__getattr__ = moved.names(__name__, "erase.model.open")
