"""Reads NumPy's NPZ files of unknown origin, within limits, and without pickles."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flux_jax.errors import InputError
from flux_jax.system.files import open_regular

# Most bytes of a file's arrays, decompressed.
MOST_BYTES = 256 << 20


def read_npz(path: Path, names: Sequence[str], mend: str) -> dict[str, np.ndarray]:
    """Reads arrays of floats.

    Args:
        path: the file.
        names: names of the arrays.
        mend: advice in the message.

    Raises:
        InputError: the file is missing, not a regular file, damaged or too large, or an array is
            missing or holds anything but finite floats.
    """
    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as packed:
                size = sum(entry.file_size for entry in packed.infolist())
            if size > MOST_BYTES:
                raise ValueError(f"{size:,} bytes of arrays, over the limit of {MOST_BYTES:,}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                content = {name: arrays[name] for name in names}
    except InputError:
        raise
    # zipfile, zlib and NumPy raise errors of many kinds for damaged files.
    except Exception as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} cannot be read ({problem}); {mend}") from error
    for name, array in content.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise InputError(f"{path}: {name} does not hold finite floats only; {mend}")
    return content
