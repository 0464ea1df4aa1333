"""Write files atomically, and read JSON files with clear error messages."""

import json
from pathlib import Path
from typing import Any

from erase.runtime import processes
from flux_jax.errors import InputError
from flux_jax.weights.safetensors_files import replacing


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically: it appears under its name only when complete and on disk.

    If several processes run the same program, only the first one writes.
    """
    if not processes.first():
        return
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_json(path: Path, missing: str = "check the path", mend: str = "create it again") -> Any:
    """Read a JSON file that contains an object.

    Args:
        path: the file.
        missing: advice in the message if it is missing.
        mend: advice in the message if it is damaged.

    Raises:
        InputError: the file is missing or damaged, or does not contain an object.
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
        raise InputError(f"{path} is not a JSON object, but {content!r:.30}; {mend}")
    return content
