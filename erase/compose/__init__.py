"""One adapter in the place of several."""

from flux_jax import moved

# Before there were packages these names were here.
__getattr__ = moved.names(__name__, "erase.compose.combine")

METHODS = ("sum", "concat", "normalized", "svd", "fusion")
