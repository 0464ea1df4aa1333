"""What a run is configured by: frozen dataclasses and what their fields take."""

from flux_jax import moved

# Before there were packages these names were here.
__getattr__ = moved.names(__name__, "erase.config.schema")
