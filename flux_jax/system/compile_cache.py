"""Keeps compiled programs in the user's cache folder, so that the next command need not compile."""

import hashlib
import os
import platform
import sys
import zlib
from pathlib import Path

# JAX's variables and their values here; those that the user has set take precedence.
FOLDER, LIMIT, SECONDS = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
# Bytes of all programs, of which the least recently used are removed; and the shortest compilation
# that is kept, in seconds.
VALUES = {LIMIT: str(4 << 30), SECONDS: "0.2"}
# Programs that JAX has compressed with zlib, as it does where zstandard is not installed.
ZLIB = b"\x78"
# Written when all programs were read; those that are newer are read again.
CHECKED = "checked"


def use() -> None:
    """Sets JAX's cache of compiled programs, unless the environment chooses one or switches it off.

    It lies in $XDG_CACHE_HOME or ~/.cache. A folder that cannot be written is not used. Call this
    before anything is compiled.
    """
    if FOLDER in os.environ:
        return
    folder = _user_folder() / "erase-anything" / f"compiled-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_torn(folder)
    except OSError:
        return
    for name, value in {FOLDER: str(folder), **VALUES}.items():
        _configure(name, os.environ.setdefault(name, value))


def _user_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _processor() -> str:
    """A name for the processor's instructions.

    Hosts may share a home folder, and another processor may lack a program's instructions.
    """
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    flags = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    text = "\n".join(sorted(set(flags))) or platform.processor()
    return hashlib.sha256(f"{platform.machine()}\n{text}".encode()).hexdigest()[:12]


def _remove_torn(folder: Path) -> None:
    """Removes programs that a killed command has not written to their end.

    JAX does not replace them: it warns and compiles in every later command.
    """
    mark = folder / CHECKED
    since = mark.stat().st_mtime_ns if mark.exists() else 0
    mark.touch()
    for file in folder.glob("*-cache"):
        if file.stat().st_mtime_ns >= since and not _whole(file):
            file.unlink(missing_ok=True)


def _whole(file: Path) -> bool:
    content = file.read_bytes()
    if not content.startswith(ZLIB):
        return bool(content)
    stream = zlib.decompressobj()
    try:
        stream.decompress(content)
    except zlib.error:
        return False
    return stream.eof


def _configure(name: str, value: str) -> None:
    """Sets a value that JAX has read already, if it is imported."""
    if "jax" in sys.modules:
        import jax

        kinds = {LIMIT: int, SECONDS: float}
        jax.config.update(name.lower(), kinds.get(name, str)(value))
