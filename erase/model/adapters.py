"""Adapters that the command line names."""

from pathlib import Path

from convert.adapters.files import read_lora
from convert.adapters.paths import find_adapter, split_strength
from flux_jax.lora import Adapter


def read_adapter(path: str | Path) -> Adapter:
    """Reads an adapter from a file, from its folder or from a run's folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    # On the host, until it is known to fit the model.
    return Adapter(*read_lora(find_adapter(path)))


def parse_adapter(text: str) -> tuple[Adapter, float]:
    """Reads "PATH" or "PATH:STRENGTH"; the strength is 1 if left out.

    Raises:
        InputError: the path or the strength cannot be used.
    """
    path, strength = split_strength(text)
    return read_adapter(path), strength
