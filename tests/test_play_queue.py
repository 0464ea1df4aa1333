"""The playground's server without a browser or a model: its queue, and values of wrong types."""

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import warm

from erase.play.page import WAITING, Page, Settings, launch
from erase.play.request import STRIP, Request
from erase.play.studio import Drawn, Pair, Step, Studio

pytestmark = pytest.mark.slow
GOOD = ["a cat", "0", 3, 3.5, 16, 16, "", ""]


class Pretending(Studio):
    """A studio that draws nothing until its folder has the file `go`.

    In the folder each drawing that runs has a file, `running-NUMBER`, and each line of `log` is
    the number of those that ran when one more began.
    """

    def __init__(self, folder: Path) -> None:
        # The class is frozen.
        for name, value in {"adapters": {}, "judge": None, "model": "", "folder": folder}.items():
            object.__setattr__(self, name, value)

    folder: Path

    def check(self, request: Request, concept: str = "") -> None:
        """Nothing is refused."""

    def _work(self) -> Iterator[Step]:
        running = len(list(self.folder.glob("running-*")))
        with (self.folder / "log").open("a") as log:
            log.write(f"{running}\n")
        mine = self.folder / f"running-{time.monotonic_ns()}"
        mine.touch()
        try:
            yield Step(1, 2)
            until((self.folder / "go").exists)
            time.sleep(0.2)
        finally:
            mine.unlink()

    def draw(self, request: Request) -> Iterator[Step | Pair]:
        """Draw black pictures."""
        yield from self._work()
        black = np.zeros((len(request.seeds), 16, 16, 3), np.uint8)
        side = Drawn(black, jnp.zeros((len(request.seeds), 4, 2)))
        yield Pair(side, side)

    def strip(self, request: Request) -> Iterator[Any]:
        """Draw black pictures."""
        del request
        yield from self._work()
        yield [np.zeros((16, 16, 3), np.uint8)] * len(STRIP)


@dataclass
class Served:
    """A page that is served."""

    folder: Path
    address: str
    numbers: dict[str, int]

    @property
    def log(self) -> str:
        """The drawings that ran when each began."""
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    def go(self) -> None:
        """Let drawings end."""
        (self.folder / "go").touch()

    def join(self, visitor: str, event: str, data: list[Any]) -> tuple[int, str]:
        """Ask for an event: the status of the answer, and its text."""
        body = {"data": data, "fn_index": self.numbers[event], "session_hash": visitor}
        request = urllib.request.Request(
            f"{self.address}gradio_api/queue/join",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def result(self, visitor: str) -> dict[str, Any]:
        """The last message of a visitor's event."""
        url = f"{self.address}gradio_api/queue/data?session_hash={visitor}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "process_completed":
                        return message
        raise AssertionError("the event has not ended")


def serve(folder: str, port: int) -> None:
    """Main function of the server's process."""
    page = Page(Pretending(Path(folder)), Settings(3, 3.5, 16, 2, 32, Path(folder))).build()
    numbers = {str(fn.name): number for number, fn in page.fns.items()}
    Path(folder, "numbers.json").write_text(json.dumps(numbers))
    launch(page, "127.0.0.1", port, share=False, password=None)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    code = f"import test_play_queue as t; t.serve({str(tmp_path)!r}, {port})"
    process = warm.Command("-c", code)

    def answers() -> bool:
        assert process.running(), process.wait().stderr
        with socket.socket() as asked:
            return not asked.connect_ex(("127.0.0.1", port))

    until(answers)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    yield Served(tmp_path, f"http://127.0.0.1:{port}/", numbers)
    process.send_signal(signal.SIGKILL)
    process.wait()


def until(condition: Any) -> None:
    """Wait until a condition holds."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not hold after 30 s")


def test_drawings_of_all_kinds_use_the_model_in_turn(served: Served):
    assert served.join("one", "draw", GOOD)[0] == 200
    assert served.join("two", "strip", GOOD[:-1])[0] == 200
    until(lambda: served.log)
    served.go()
    assert all(served.result(visitor)["success"] for visitor in ("one", "two"))
    assert served.log == "0\n0\n"


def test_more_requests_than_may_wait_are_refused_at_once(served: Served):
    assert served.join("first", "draw", GOOD)[0] == 200
    until(lambda: served.log)
    began = time.monotonic()
    answers = [served.join(f"visitor-{n}", "draw", GOOD) for n in range(40)]
    assert time.monotonic() - began < 20
    assert [code for code, _ in answers] == [200] * WAITING + [503] * (40 - WAITING)
    assert "Queue is full" in answers[-1][1]
    assert answers[-1][1].count("\n") == 0
    served.go()
    assert served.result(f"visitor-{WAITING - 1}")["success"]
    assert served.log == "0\n" * (1 + WAITING)


# Place of the value in the request, or None for a request without most of its values.
ODD = {
    "a dictionary as steps": (2, {"a": 1}),
    "a word as steps": (2, "three"),
    "no steps": (2, None),
    "half a step": (2, 1.5),
    "a list as guidance": (3, [3.5]),
    "a dictionary as height": (4, {"x": []}),
    "a huge height": (4, 10**400),
    "a dictionary as seeds": (1, {"a": 1}),
    "few values": (None, None),
}


def test_values_of_other_types_end_in_a_line(served: Served):
    served.go()
    for number, (what, (place, value)) in enumerate(ODD.items()):
        data = GOOD[:3] if place is None else [*GOOD[:place], value, *GOOD[place + 1 :]]
        assert served.join(f"visitor-{number}", "draw", data)[0] == 200
        ended = served.result(f"visitor-{number}")
        assert not ended["success"], what
        said = ended["output"]["error"]
        assert said, what
        assert "\n" not in said
        assert len(said) < 200
    assert served.join("last", "draw", GOOD)[0] == 200
    assert served.result("last")["success"]
