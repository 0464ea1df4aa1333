"""Write files atomically; `flux_jax.system` reads them."""

import os
from pathlib import Path

from erase.runtime import processes
from flux_jax.errors import names_file
from flux_jax.system.json_files import read_json

__all__ = ["read_json", "write"]


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically: it appears under its name only when complete.

    If several processes run the same program, only the first one writes.
    """
    if not processes.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with names_file(path):
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
