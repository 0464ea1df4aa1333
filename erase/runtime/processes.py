"""Several processes that train together: how they find each other, agree, and who writes.

Every process runs the same program on the same global arrays; the first one alone writes files and
speaks. JAX is imported where it is needed: most that is wrong on a command line is told without it.
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
    """Joins the other processes; to be called before anything is computed.

    Args:
        given: the flags' values.

    Raises:
        InputError: the flags do not say enough, or the others cannot be reached.
    """
    named = {name: given[name].value for name in ("coordinator", "processes", "process")}
    missing = [f"--{name}" for name, value in named.items() if value is None]
    if len(missing) == len(named) and not given.distributed:
        return
    if missing and len(missing) < len(named):
        raise InputError(
            f"{', '.join(missing)} missing: name coordinator, processes and process, or let "
            "--distributed find all three"
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
            f"cannot join the other processes ({error}): name them with --coordinator HOST:PORT, "
            "--processes and --process"
        ) from error


def first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    # Asking for the index takes an accelerator, which who only writes a report does not need.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def from_first(make: Callable[[], T], kind: Any = None) -> T:
    """What the first process makes, in all of them: it alone asks and looks at the disk.

    Args:
        make: makes it.
        kind: its type, of which pydantic makes JSON and back: what other processes send is data.

    Raises:
        EraseError: it raised one; it is raised in all.
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
    """What is made, or the error that it ends with, as JSON."""
    try:
        message = {"made": pydantic.TypeAdapter(kind).dump_python(make(), mode="json")}
    except EraseError as error:
        message = {"error": type(error).__name__, "message": str(error)}
    return json.dumps(message).encode()


def read(content: bytes, kind: Any) -> Any:
    """The inverse of `written`.

    Raises:
        EraseError: what was made is one.
    """
    message = json.loads(content)
    if "error" in message:
        raise ERRORS[message["error"]](message["message"])
    return pydantic.TypeAdapter(kind).validate_python(message["made"])


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Keeps the other processes from printing and from drawing bars; errors pass through."""
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
    """Makes sure that all processes were given the same.

    Args:
        settings: by name, of types that JSON knows; the names are the same everywhere.

    Raises:
        InputError: values differ; names them, in every process.
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
    """Whether something is so in any of the processes."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return here
    return bool(np.asarray(multihost_utils.process_allgather(np.array(here))).any())
