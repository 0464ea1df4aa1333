"""How much memory a device has, and what to do where it does not suffice."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from flux_jax.errors import RunError

MENDS = (
    "What needs less: --config.model.remat; --config.model.quantize=int8; more devices for the "
    "weights, --config.mesh.fsdp; a smaller --config.batch_size, --config.bank.batch, "
    "--config.bank.sentences, --config.evaluation.batch, --config.height or --config.width"
)


@contextlib.contextmanager
def explains_memory(mends: str = MENDS) -> Iterator[None]:
    """Says what helps where a device's memory does not suffice.

    Args:
        mends: what helps.

    Raises:
        RunError: it does not.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0]
        raise RunError(f"a device has too little memory ({said}). {mends}") from error


def memory(devices: Sequence[Any]) -> int | None:
    """Bytes that each of the devices offers; None where they do not say, as CPUs."""
    # Only a process's own devices answer.
    local_device = next(device for device in devices if device.process_index == jax.process_index())
    return (local_device.memory_stats() or {}).get("bytes_limit")
