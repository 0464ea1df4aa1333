"""Results of an unfinished command on disk, so that a restart does not compute them again.

A cache is named by a digest of everything that its results are computed from: results of another
model, adapter or setting are never used. It is removed when the command has finished; it may be
deleted at any time.
"""

import base64
import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from erase.runtime import processes
from erase.runtime.files import write

T = TypeVar("T")

# Bytes of SHA-256 in front of each file's content.
SEAL = hashlib.sha256().digest_size
# Largest file that is read back, in bytes, unless the caller knows better.
MOST = 1 << 28


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value of JSON types, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Cache:
    """Files with the results of one computation.

    Attributes:
        root: folder of all caches of a command; removed with the last of them.
        folder: folder of this one.
    """

    root: Path
    folder: Path

    @classmethod
    def opened(cls, root: Path, part: str, inputs: object) -> "Cache":
        """Open the cache of a computation; those of the same part with other inputs are removed.

        Args:
            root: folder of all caches of the command.
            part: name of the computation, for instance "evaluation".
            inputs: everything that its results are computed from, of JSON types.
        """
        folder = root / part / digest_of(inputs)[:32]
        if processes.first() and folder.parent.is_dir():
            for other in folder.parent.iterdir():
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
        return cls(root, folder)

    def part(self, name: str) -> "Cache":
        """Return the cache of a part of the results, by any name."""
        return Cache(self.root, self.folder / digest_of(name)[:32])

    def read(self, name: str, most: int = MOST) -> bytes | None:
        """Return the content saved under a name; None if it is missing or damaged.

        Args:
            name: any text.
            most: largest content in bytes; a larger file counts as damaged.
        """

        def content() -> str | None:
            path = self._path(name)
            try:
                if not path.is_file() or path.stat().st_size > most + SEAL:
                    return None
                sealed = path.read_bytes()
            except OSError:
                return None
            intact = hashlib.sha256(sealed[SEAL:]).digest() == sealed[:SEAL]
            return base64.b64encode(sealed[SEAL:]).decode() if intact else None

        # Only the first process may see the folder, and all must agree on what is done.
        sent = processes.from_first(content, str | None)
        return None if sent is None else base64.b64decode(sent)

    def write(self, name: str, content: bytes) -> None:
        """Save content under a name."""
        write(self._path(name), hashlib.sha256(content).digest() + content)

    def value(self, name: str, make: Callable[[], T]) -> T:
        """Return the value saved under a name, or make and save it.

        Args:
            name: any text.
            make: computes the value, which must be of JSON types.
        """
        if (content := self.read(name)) is None:
            content = json.dumps(make()).encode()
            self.write(name, content)
        return json.loads(content)

    def remove(self) -> None:
        """Remove this cache, and the folders above it up to the root once they are empty."""
        if not processes.first():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.folder.parents:
            if not folder.is_relative_to(self.root):
                break
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _path(self, name: str) -> Path:
        return self.folder / digest_of(name)[:32]
