"""Parses adapter arguments of commands: "PATH", or "PATH:STRENGTH"."""

import math
import os
from pathlib import Path

from flux_jax.errors import InputError


def split_strength(text: str) -> tuple[Path, float]:
    """Splits "PATH" or "PATH:STRENGTH" into path and strength; the strength is 1 by default.

    Raises:
        InputError: the strength is not a finite number.
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
    """The file or folder of an adapter; the path may also be the run's folder.

    Raises:
        InputError: the path does not exist.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise InputError(f"adapter = {str(path)!r} does not exist; check the path")
    inner = path / "adapter"
    return inner if inner.is_dir() else path
