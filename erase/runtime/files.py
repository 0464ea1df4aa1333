"""Files that are written whole or not at all, and JSON files that are read with a message."""

import json
import os
from pathlib import Path
from typing import Any

from erase.runtime import processes
from flux_jax.errors import InputError


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


def read_json(path: Path, missing: str = "check the path", mend: str = "make it anew") -> Any:
    """What a JSON file holds, an object.

    Args:
        path: of the file.
        missing: what to say where it is not there.
        mend: what to do where it is damaged.

    Raises:
        InputError: it is missing or damaged, or holds no object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{path} is missing: {missing}") from error
        raise InputError(f"{path} cannot be read ({error.strerror}); {missing}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); {mend}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object, but {content!r:.30}; {mend}")
    return content
