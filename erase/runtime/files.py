"""Write files atomically; `flux_jax.system` reads them."""

from pathlib import Path

from erase.runtime import processes
from flux_jax.errors import InputError
from flux_jax.system.files import check_folder
from flux_jax.system.json_files import read_json
from flux_jax.weights.safetensors_files import replacing

__all__ = ["read_json", "write"]


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically: it appears under its name only when complete and on disk.

    If several processes run the same program, only the first one writes.

    Raises:
        InputError: a folder has the name, or a file that of a folder above it.
    """
    if not processes.first():
        return
    if not path.name or path.is_dir():
        raise InputError(f"{path} is a folder; name a file to write")
    check_folder(path.parent, "folder")
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
