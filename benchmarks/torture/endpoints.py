"""A hundred behaviours of a language model's endpoint, all at once.

Every question ends within its limit, with words or with a message; none shows the key.
"""

import contextlib
import functools
import json
import resource
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture.behaviours import KEY, SILENT, Behaviour, every
from benchmarks.torture.row import Row
from erase.data.words import endpoint, irrelevant
from flux_jax.errors import InputError

# Seconds by which a question may pass its limit on a busy machine.
SLACK = 5.0
# The least seconds of a try, and of all tries; and the least number of questions at once.
LEAST = (1.0, 2.0)
LEAST_AT_ONCE = 12


@dataclass(frozen=True)
class Outcome:
    """How a question ended.

    Attributes:
        behaviour: of the endpoint.
        seconds: until the end.
        problem: what is wrong with the end; empty if nothing is.
    """

    behaviour: Behaviour
    seconds: float
    problem: str


class Servers:
    """A port on loopback for each behaviour."""

    def __init__(self, behaviours: Sequence[Behaviour]):
        """Starts them."""
        self.over = threading.Event()
        self.ports, self._selector = [], selectors.DefaultSelector()
        for behaviour in behaviours:
            listener = socket.create_server(("127.0.0.1", 0))
            self.ports.append(listener.getsockname()[1])
            self._selector.register(listener, selectors.EVENT_READ, behaviour)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Ends them and their connections."""
        self.over.set()

    def _accept(self) -> None:
        while not self.over.is_set():
            for key, _ in self._selector.select(0.1):
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                connection, _ = listener.accept()
                serve = functools.partial(self._serve, connection, key.data)
                threading.Thread(target=serve, daemon=True).start()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _serve(self, connection: socket.socket, behaviour: Behaviour) -> None:
        connection.settimeout(0.1)
        # The client ends connections that last too long.
        with connection, contextlib.suppress(OSError):
            if behaviour.reads:
                _read_request(connection)
            for piece in behaviour.first:
                self._send(connection, piece)
            while behaviour.then and not self.over.is_set():
                for piece in behaviour.then:
                    self._send(connection, piece)

    def _send(self, connection: socket.socket, piece: bytes | float) -> None:
        if isinstance(piece, bytes):
            connection.settimeout(5.0)
            connection.sendall(piece)
        elif piece == SILENT:
            connection.settimeout(0.5)
            while not self.over.is_set():
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(2**16):
                        return
        else:
            self.over.wait(piece)


def _read_request(connection: socket.socket) -> None:
    connection.settimeout(5.0)
    text = b""
    while b"\r\n\r\n" not in text:
        text += _received(connection)
    headers, _, body = text.partition(b"\r\n\r\n")
    lines = [line for line in headers.lower().split(b"\r\n") if line.startswith(b"content-length")]
    length = int(lines[0].partition(b":")[2])
    while len(body) < length:
        body += _received(connection)
    json.loads(body)


def _received(connection: socket.socket) -> bytes:
    if not (data := connection.recv(2**16)):
        raise ConnectionError("the client is gone")
    return data


def outcome(behaviour: Behaviour, port: int, limits: endpoint.Limits) -> Outcome:
    """Ask an endpoint for words.

    Args:
        behaviour: of the endpoint.
        port: of the endpoint.
        limits: of the question, if the reply is not usable.
    """
    # Usable replies come at once, unless the machine is busy.
    limits = endpoint.Limits() if behaviour.usable else limits
    asked = endpoint.Endpoint(f"http://127.0.0.1:{port}/v1", "a-model", KEY)
    began, problem = time.monotonic(), ""
    try:
        endpoint.ask(asked, "?", lambda text: irrelevant.check(text, "nude", (), 2), limits)
    except InputError as error:
        message = str(error)
        if behaviour.usable:
            problem = message
        elif KEY in message or len(message) > 400:
            problem = "the message has the key or is long"
    # Any other error is what this is about.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:200]
    else:
        problem = "" if behaviour.usable else "the reply was used"
    seconds = time.monotonic() - began
    if not problem and seconds > limits.total + SLACK:
        problem = f"took {seconds:.0f} s"
    return Outcome(behaviour, seconds, problem)


def outcomes(
    behaviours: Sequence[Behaviour], limits: endpoint.Limits, at_once: int
) -> list[Outcome]:
    """Ask all endpoints.

    Args:
        behaviours: of the endpoints.
        limits: of each question.
        at_once: number of questions at the same time.
    """
    servers = Servers(behaviours)
    try:
        with ThreadPoolExecutor(at_once) as pool:
            ask = functools.partial(outcome, limits=limits)
            return list(pool.map(ask, behaviours, servers.ports))
    finally:
        servers.close()


def rows(scale: float, folder: Path) -> Iterator[Row]:
    """A row for each group of behaviours.

    Args:
        scale: of the limits and of the number of questions at once; 1 is the product's limits, and
            all questions at once.
        folder: not used.
    """
    del folder
    real, behaviours = endpoint.Limits(), every()
    seconds, total = max(LEAST[0], scale * real.seconds), max(LEAST[1], scale * real.total)
    at_once = max(LEAST_AT_ONCE, round(scale * len(behaviours)))
    ends = outcomes(behaviours, endpoint.Limits(seconds, total), at_once)
    # In kB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    for group in dict.fromkeys(_group(end.behaviour) for end in ends):
        mine = [end for end in ends if _group(end.behaviour) == group]
        wrong = [f"{end.behaviour.name}: {end.problem}" for end in mine if end.problem]
        longest = max(end.seconds for end in mine)
        yield Row(
            f"endpoints: {group}",
            len(mine),
            len(mine) - len(wrong),
            longest,
            peak,
            "; ".join(wrong) or f"limits of {seconds:g} s a try and {total:g} s in all",
        )


def _group(behaviour: Behaviour) -> str:
    return behaviour.name.partition(":")[0]
