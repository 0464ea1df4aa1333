"""Training with several processes: start-up, agreement on settings, output by the first process.

Every process runs the same program on the same global arrays; only the first one writes files and
prints. JAX is imported where needed, since most usage errors can be reported without it.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import pydantic

from flux_jax.errors import EraseError, InputError, PreemptedError, RunError

T = TypeVar("T")
ERRORS = {kind.__name__: kind for kind in (EraseError, InputError, RunError, PreemptedError)}


def initialise(given: Any) -> None:
    """Join the other processes. Call this before any computation.

    Args:
        given: values of the flags.

    Raises:
        InputError: the flags are incomplete, or the other processes cannot be reached.
    """
    named = {name: given[name].value for name in ("coordinator", "processes", "process")}
    missing = [f"--{name}" for name, value in named.items() if value is None]
    if len(missing) == len(named) and not given.distributed:
        return
    if missing and len(missing) < len(named):
        raise InputError(
            f"{', '.join(missing)} missing: give --coordinator, --processes and --process, or let "
            "--distributed detect all three"
        )
    if not missing and named["process"] >= named["processes"]:
        raise InputError(
            f"process = {named['process']} must be below processes = {named['processes']}"
        )
    import jax

    try:
        jax.distributed.initialize(named["coordinator"], named["processes"], named["process"])
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"cannot join the other processes ({error}): give --coordinator HOST:PORT, --processes "
            "and --process"
        ) from error


def first() -> bool:
    """Whether this is the first process, which writes files."""
    import jax

    # Querying the index claims an accelerator, which writing a report does not need.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def from_first(make: Callable[[], T], kind: Any = None) -> T:
    """Compute a value in the first process and broadcast it, so that only one reads files or asks.

    Args:
        make: computes the value.
        kind: type of the value, which pydantic converts to JSON and back, so that received values
            are validated as data.

    Raises:
        EraseError: `make` raised one; it is raised in all processes.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return make()
    content = np.frombuffer(written(make, kind) if first() else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(size, np.uint8)
    padded[: len(content)] = content
    return read(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes(), kind)


def written(make: Callable[[], Any], kind: Any) -> bytes:
    """Serialize the value of `make`, or the error that it raised, as JSON."""
    try:
        message = {"made": pydantic.TypeAdapter(kind).dump_python(make(), mode="json")}
    except EraseError as error:
        message = {"error": type(error).__name__, "message": str(error)}
    return json.dumps(message).encode()


def read(content: bytes, kind: Any) -> Any:
    """Deserialize the output of `written`.

    Raises:
        EraseError: the content is an error.
    """
    message = json.loads(content)
    if "error" in message:
        raise ERRORS[message["error"]](message["message"])
    return pydantic.TypeAdapter(kind).validate_python(message["made"])


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Silence the output and progress bars of the other processes; errors pass through."""
    if first():
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def agree(settings: Mapping[str, Any]) -> None:
    """Check that all processes have the same settings.

    Args:
        settings: settings by name, of JSON types; the names are the same in all processes.

    Raises:
        InputError: settings differ. Raised in every process, with their names.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    digests = [
        zlib.crc32(json.dumps(value, sort_keys=True).encode()) for value in settings.values()
    ]
    gathered = np.asarray(multihost_utils.process_allgather(np.array(digests, np.uint32)))
    same = (gathered == gathered[0]).all(axis=0)
    differing = [name for name, equal in zip(settings, same, strict=True) if not equal]
    if differing:
        raise InputError(
            f"{', '.join(differing)} differ between the {jax.process_count()} processes: start "
            "each with the same command"
        )


def any_of(here: bool) -> bool:
    """Whether a condition holds in any of the processes."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return here
    return bool(np.asarray(multihost_utils.process_allgather(np.array(here))).any())
