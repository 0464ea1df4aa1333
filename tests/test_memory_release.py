"""Memory that the C allocator holds free goes back to the system."""

import ctypes
from pathlib import Path

import pytest

from erase.runtime import memory

# Blocks that are too small to be returned one by one, 64 MB in all.
BLOCKS, SIZE = 2_048, 32 << 10


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_free_memory_goes_back():
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        pytest.skip("another C library than glibc")
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    blocks = [library.malloc(ctypes.c_size_t(SIZE)) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    full = resident()
    # The last one holds the end of the heap.
    for block in blocks[:-1]:
        library.free(block)
    memory.release()
    assert resident() < full - BLOCKS * SIZE // 2
    library.free(blocks[-1])


def test_other_c_libraries_keep_theirs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    memory.release()
