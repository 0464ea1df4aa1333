"""Double starts: two commands in one folder. One is refused, the other ends as usual."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.torture.kills import contents, context, end, start
from benchmarks.torture.row import Row

STARTS = 20
CASE = "one run"
# Longest time between the two starts, in seconds.
APART = 2.0


def rows(scale: float, folder: Path) -> Iterator[Row]:
    """Yield a row.

    Args:
        scale: share of the starts.
        folder: an empty folder for the runs.
    """
    began, rng, faults = time.monotonic(), np.random.default_rng(0), []
    processes, starts = context(folder), max(1, round(scale * STARTS))
    end(start(processes, CASE, folder / "whole"))
    wanted = contents(folder / "whole")
    for number in range(starts):
        where, both = folder / str(number), []
        for _ in range(2):
            both.append(start(processes, CASE, where))
            time.sleep(rng.uniform(0, APART))
        codes = [end(process) for process in both]
        said = Path(f"{where}.log").read_text()
        refused = both[codes.index(2)].pid if 2 in codes else None
        holder = next((process.pid for process in both if process.pid != refused), None)
        if sorted(codes) != [0, 2]:
            faults.append(f"exit codes {codes}")
        elif "another command writes to this folder" not in said or f" {holder}, " not in said:
            faults.append("the message does not name the holder")
        elif contents(where) != wanted:
            faults.append("another end")
    seconds, held = time.monotonic() - began, starts - len(faults)
    yield Row("double starts: one refusal", starts, held, seconds, note="; ".join(faults[:3]))
