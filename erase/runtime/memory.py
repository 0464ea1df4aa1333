"""Memory of a device, and advice when it is too small."""

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from flux_jax.errors import RunError, shortened

MENDS = (
    "To save memory: --config.model.remat; --config.model.quantize=int8; more devices for the "
    "weights, --config.mesh.fsdp; a smaller --config.batch_size, --config.bank.batch, "
    "--config.bank.sentences, --config.evaluation.batch, --config.height or --config.width"
)
# Of devices, and of XLA on a CPU, which calls it an internal error.
NO_MEMORY = re.compile("RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)


def mends_of_drawing(batch: int, height: int | None, width: int | None) -> str:
    """Advice for commands that only draw: their flags, with the values that were given."""
    given = f"a smaller --batch, now {batch}"
    for name, value in (("--height", height), ("--width", width)):
        if value is not None:
            given += f"; a smaller {name}, now {value}"
    return f"To save memory: {given}"


@contextlib.contextmanager
def explains_memory(mends: str = MENDS) -> Iterator[None]:
    """Turn out-of-memory errors of a device into a message with advice.

    Args:
        mends: the advice.

    Raises:
        RunError: the device ran out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not NO_MEMORY.search(str(error)):
            raise
        said = shortened(str(error).splitlines()[0], 200)
        raise RunError(f"a device has too little memory ({said}). {mends}") from error


def release() -> None:
    """Return what C's allocator holds free to the system; only glibc's keeps much and can.

    Each checkpoint leaves freed pieces among those in use: without this, the resident memory of a
    small run grows by a twentieth from 300 to 3,000 iterations, though as much is in use.
    """
    # No such function: another C library, or another system.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def host_memory() -> int | None:
    """Bytes of the machine's memory; None on systems that do not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def memory(devices: Sequence[Any]) -> int | None:
    """Bytes of memory per device; None if the devices do not report it, such as CPUs."""
    # Only local devices can be queried.
    local_device = next(device for device in devices if device.process_index == jax.process_index())
    return (local_device.memory_stats() or {}).get("bytes_limit")
