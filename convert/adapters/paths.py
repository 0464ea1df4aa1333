"""Adapters as commands name them: "PATH", or "PATH:STRENGTH"."""

import math
import os
from pathlib import Path

from flux_jax.errors import InputError


def split_strength(text: str) -> tuple[Path, float]:
    """Path and strength of "PATH" or "PATH:STRENGTH"; the strength is 1 if left out.

    Raises:
        InputError: the strength is no finite number.
    """
    path, colon, strength = text.rpartition(":")
    if not colon or os.path.exists(text):
        return Path(text), 1.0
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"adapter = {text!r}: the strength {strength!r} is not a finite number; write PATH:0.8"
        )
    return Path(path), number


def find_adapter(path: str | Path) -> Path:
    """The file or folder of an adapter, of which the run's folder may be given.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise InputError(f"adapter = {str(path)!r} does not exist; check the path")
    inner = path / "adapter"
    return inner if inner.is_dir() else path
