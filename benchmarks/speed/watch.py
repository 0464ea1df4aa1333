"""What `--watch` costs a training on the small model, in CPU time.

    python -m benchmarks.speed.watch --iterations 300 --out benchmarks/speed/watch.json

Trains with `--watch` while a client asks for the page's numbers as often as the page does. The
bookkeeping is the server's process and the event files; the sample pictures are counted apart. All
are shares of the CPU time of the iterations, so that other programs on the machine matter little.
Cost: about five minutes on 2 busy CPU cores. Expected: bookkeeping below 2 %.
"""

import contextlib
import json
import resource
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from absl import app, flags

from configs import emoji
from erase.cli.flags import begin, parse_flags
from erase.runs import load_runs
from erase.runtime.files import write
from erase.training import run
from erase.training.loop import Training
from erase.watch import serving
from erase.watch.events import EventLog
from erase.watch.samples import SampleSet
from flux_jax.errors import exits_cleanly, say

# Seconds between two questions of the page.
EVERY = 3.0
# Iterations at the start that compile, and are not counted.
COMPILING = 2


def define_flags() -> None:
    """Declare the command's flags."""
    flags.DEFINE_integer("iterations", 300, "Training iterations.", lower_bound=10)
    flags.DEFINE_string("out", "benchmarks/speed/watch.json", "File of the result.")


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The function, whose CPU seconds of each call are appended to `spent`."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments, **named)
        finally:
            spent.append(time.process_time() - began)

    return wrapped


def asks(address: str, ended: threading.Event) -> None:
    """Ask like an open page until the end."""
    while not ended.wait(EVERY):
        with contextlib.suppress(OSError):
            # An address of this computer.
            urllib.request.urlopen(f"{address}/state/0.json", timeout=60).close()  # nosec B310


def measure(iterations: int) -> dict[str, float]:
    """Train with `--watch`; return CPU seconds by what they were spent on, and the shares."""
    given = emoji("soccer_ball")
    given.iterations = iterations
    given.evaluation = {"pictures": 0}
    spent: dict[str, list[float]] = {"iterations": [], "events": [], "samples": []}
    ended, listener = threading.Event(), serving.listen(0)
    client = threading.Thread(target=asks, args=(listener.address, ended))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for owner, name, what in (
            (Training, "iterate", "iterations"),
            (EventLog, "add", "events"),
            (SampleSet, "draw", "samples"),
        ):
            wrapped = timed(getattr(owner, name), spent[what])
            stack.enter_context(mock.patch.object(owner, name, wrapped))
        client.start()
        run.run(load_runs(given), Path(folder), watch=listener)
        ended.set()
        client.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    server = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    training = sum(spent["iterations"][COMPILING:])
    # The first samples compile the sampler.
    pictures = sum(spent["samples"][1:])
    return {
        "iterations": iterations,
        "training_s": round(training, 2),
        "server_s": round(server, 3),
        "events_s": round(sum(spent["events"]), 3),
        "samples_s": round(pictures, 2),
        "bookkeeping_share": round((server + sum(spent["events"])) / training, 5),
        "samples_share": round(pictures / training, 4),
    }


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    result = measure(flags.FLAGS.iterations)
    write(Path(flags.FLAGS.out), json.dumps(result, indent=1) + "\n")
    say(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
