"""Configuration of a run: frozen dataclasses, and the checks of their fields."""

from flux_jax import moved

# Former import path of these names.
__getattr__ = moved.names(__name__, "erase.config.schema")
