"""Starts the server of the page in a process of its own, which ends with this one.

Only the server's process reads the run's folder, so that training waits for nothing.
"""

import contextlib
import json
import os
import socket
import subprocess  # nosec B404
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from erase.runtime import processes
from flux_jax.errors import InputError, say

# Other computers cannot reach it.
HOST = "127.0.0.1"
# Of the server's process; its argument is the socket.
PROGRAM = "from erase.watch.server import serve; serve()"
# Seconds for the server to end, after which it is killed.
ENDING = 5.0


@dataclass(frozen=True)
class Listener:
    """Where the page will be served.

    Attributes:
        port: its port.
        socket: listens there; None in all processes but the first.
    """

    port: int
    socket: socket.socket | None

    @property
    def address(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.port}"


def listen(port: int) -> Listener:
    """Listen at a port of this computer, in the first process.

    Args:
        port: the port; 0 takes a free one.

    Raises:
        InputError: the port is in use, or needs rights that this process lacks.
    """
    opened: list[socket.socket] = []

    def bind() -> int:
        try:
            # It may be the port of a page that has just ended.
            opened.append(socket.create_server((HOST, port)))
        except OSError as error:
            # Without the address, which the socket module adds to the text.
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise InputError(
                f"watch = {port}: the port cannot be used ({reason}); give another one, "
                "or --watch=0 for any free one"
            ) from None
        return opened[0].getsockname()[1]

    found = processes.from_first(bind, int)
    return Listener(found, opened[0] if opened else None)


@contextlib.contextmanager
def served(listener: Listener | None, workdir: Path, names: Sequence[str]) -> Iterator[None]:
    """Serve the page of runs within this context, and print its address.

    Args:
        listener: where; None serves nothing.
        workdir: folder that contains the runs' folders.
        names: names of the runs.
    """
    if listener is None or listener.socket is None:
        yield
        return
    with listener.socket as listening:
        number = listening.fileno()
        # This interpreter, with a program of this file.
        server = subprocess.Popen(  # nosec B603
            [sys.executable, "-c", PROGRAM, str(number)],
            # It ends when its input does, so also when this process is killed.
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[number],
            # Ctrl-C is for the training, which then ends the server.
            start_new_session=True,
        )
    assert server.stdin is not None, "a pipe"
    with contextlib.suppress(BrokenPipeError):
        job = {"workdir": str(workdir.absolute()), "names": list(names)}
        server.stdin.write(json.dumps(job).encode() + b"\n")
        server.stdin.flush()
    say(f"Training in view: {listener.address}")
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            server.stdin.close()
        try:
            server.wait(ENDING)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
