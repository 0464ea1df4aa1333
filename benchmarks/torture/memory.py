"""Memory of a long run: after 3,000 iterations as much as after 300."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.torture.kills import context, start
from benchmarks.torture.row import Row
from erase.runtime.run_folder import CHECKPOINTS
from erase.training.checkpoints import steps_in

ITERATIONS = 3000
# Share of the iterations after which memory is compared first, and the largest growth since.
EARLY, GROWTH = 0.1, 0.03
# Longest time, in seconds.
LONGEST = 1800.0


def rows(scale: float, folder: Path) -> Iterator[Row]:
    """Yield a row.

    Args:
        scale: share of the iterations.
        folder: an empty folder for the run.
    """
    began, every = time.monotonic(), max(10, round(scale * ITERATIONS * EARLY))
    last = round(every / EARLY)
    processes, where = context(folder), folder / "long"
    # One interval more, in which the memory after the last is measured.
    more = {"iterations": last + every, "checkpoints": {"every": every}}
    process = start(processes, "one run", where, **more)
    sizes: dict[int, list[float]] = defaultdict(list)
    while process.is_alive() and time.monotonic() - began < LONGEST:
        done = max(steps_in(where / CHECKPOINTS), default=0)
        if (size := resident(process.pid)) is not None:
            sizes[done].append(size)
        process.join(0.05)
    if process.is_alive():
        process.kill()
    process.join()
    seconds = time.monotonic() - began
    if not (sizes[every] and sizes[last]) or process.exitcode:
        note = f"exit code {process.exitcode}"
        yield Row("memory of a long run", 1, 0, seconds, note=note)
        return
    early, late = (statistics.median(sizes[step]) for step in (every, last))
    growth = late / early - 1
    note = f"{early:.0f} MB after {every} iterations, {late:.0f} MB after {last}: {growth:+.1%}"
    peak = max(size for each in sizes.values() for size in each)
    yield Row("memory of a long run", 1, int(growth <= GROWTH), seconds, peak, note)


def resident(pid: int) -> float | None:
    """Return the resident memory of a process in MB; None if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return sizes[0] * 1024 / 1e6 if sizes else None
