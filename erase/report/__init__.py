"""What a run leaves for people to read."""

from flux_jax import moved

# Before there were packages these names were here.
__getattr__ = moved.names(
    __name__,
    "erase.report.report",
    "erase.report.pictures",
    "erase.report.charts",
    "erase.report.colours",
)
