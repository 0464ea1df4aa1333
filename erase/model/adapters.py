"""Read adapters named on the command line."""

from pathlib import Path

from convert.adapters.files import read_lora
from convert.adapters.paths import find_adapter, split_strength
from flux_jax.lora import Adapter


def read_adapter(path: str | Path) -> Adapter:
    """Read an adapter from a file, its folder or a run's folder.

    Raises:
        InputError: the adapter is missing or damaged.
    """
    # Stays on the host until it is checked against the model.
    return Adapter(*read_lora(find_adapter(path)))


def parse_adapter(text: str) -> tuple[Adapter, float]:
    """Read an adapter from "PATH" or "PATH:STRENGTH"; the default strength is 1.

    Raises:
        InputError: the path or the strength cannot be used.
    """
    path, strength = split_strength(text)
    return read_adapter(path), strength
