"""Files that are there whole or not at all."""

import os
from pathlib import Path

from erase.runtime import processes


def write(path: Path, content: bytes | str) -> None:
    """Writes a file; it appears under its name only when complete.

    Where several processes run the same program, the first one writes.
    """
    if not processes.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
