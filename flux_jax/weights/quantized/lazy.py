"""An array-like that is computed when it is read, for tensors stored in another format."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Lazy:
    """An array-like that `np.asarray` computes at each call, without caching.

    Attributes:
        shape: of the computed array.
        dtype: of the computed array.
        nbytes: bytes that it takes in its file, with its scales and tables.
        stored_as: name of the file's format, for messages.
        rows: computes a slice of rows (entries of the first axis).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    nbytes: int
    stored_as: str
    rows: Callable[[slice], np.ndarray]

    def __getitem__(self, key: Any) -> np.ndarray:
        """A part of the array; consecutive rows are computed without the others."""
        if isinstance(key, slice) and self.shape:
            start, stop, step = key.indices(self.shape[0])
            if step == 1:
                return self.rows(slice(start, max(start, stop)))
        return np.asarray(self)[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Computes the array."""
        values = self.rows(slice(0, self.shape[0] if self.shape else 1)).reshape(self.shape)
        return np.asarray(values, dtype)
