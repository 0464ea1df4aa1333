"""Combine several adapters into one."""

from flux_jax import moved

# Former import path of these names.
__getattr__ = moved.names(__name__, "erase.compose.combine")

METHODS = ("sum", "concat", "normalized", "svd", "fusion")
