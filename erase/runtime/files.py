"""Write files atomically; `flux_jax.system` reads them."""

from pathlib import Path

from erase.runtime import processes
from flux_jax.system.json_files import read_json
from flux_jax.weights.safetensors_files import replacing

__all__ = ["read_json", "write"]


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically: it appears under its name only when complete and on disk.

    If several processes run the same program, only the first one writes.
    """
    if not processes.first():
        return
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
