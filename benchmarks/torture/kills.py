"""Kills of training: a run that is killed ten times ends with the bytes of one left alone.

One run, several at once, and one whose best checkpoint becomes the adapter. SIGKILL and SIGTERM
come at random moments; after SIGTERM the exit code must be 75, or 0 if the run had just finished.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.torture.row import Row

# Kills of each case, and of each run in it.
KILLS = {"one run": 40, "three runs at once": 40, "the best checkpoint": 60}
EACH = 10
# Longest time of a command, in seconds.
LONGEST = 600.0
# Exit codes of a process that finishes, or receives a signal.
ALLOWED = {signal.SIGKILL: (0, -signal.SIGKILL), signal.SIGTERM: (0, 75)}


def rows(scale: float, folder: Path) -> Iterator[Row]:
    """Yield a row for each case.

    Args:
        scale: share of the kills.
        folder: an empty folder for the runs.
    """
    processes = context(folder)
    for case, kills in KILLS.items():
        yield _row(processes, case, max(1, round(scale * kills)), folder / case.replace(" ", "-"))


def context(folder: Path) -> Any:
    """Return a context whose processes have imported the program, and share a compilation cache."""
    processes = multiprocessing.get_context("forkserver")
    # No arrays are created there: a process that has computed cannot be forked.
    processes.set_forkserver_preload(["erase.training.run", "erase.training.compare", __name__])
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return processes


def _row(processes: Any, case: str, kills: int, folder: Path) -> Row:
    began, rng, held, faults = time.monotonic(), np.random.default_rng(0), 0, []
    folder.mkdir(parents=True)
    # The first one compiles.
    for name in ("first", "whole"):
        started = time.monotonic()
        if code := end(start(processes, case, folder / name)):
            faults.append(f"undisturbed: exit code {code}")
    duration, wanted = time.monotonic() - started, contents(folder / "whole")
    for first in range(0, kills, EACH):
        where, wrong = folder / str(first), []
        for number in range(first, min(first + EACH, kills)):
            how = (signal.SIGKILL, signal.SIGTERM)[number % 2]
            process = start(processes, case, where)
            process.join(rng.uniform(0, duration))
            if process.is_alive():
                os.kill(process.pid, how)
            if (code := end(process)) not in ALLOWED[how]:
                wrong.append(f"{how.name}: exit code {code}")
        if code := end(start(processes, case, where)):
            wrong.append(f"at the end: exit code {code}")
        changed = sorted(name for name, _ in contents(where).items() ^ wanted.items())
        wrong += [f"{name} differs" for name in dict.fromkeys(changed)][:3]
        held += 0 if wrong else min(EACH, kills - first)
        faults += wrong
    seconds = time.monotonic() - began
    return Row(f"kills of {case}: same end", kills, held, seconds, note="; ".join(faults[:3]))


def start(processes: Any, case: str, folder: Path, **more: Any) -> Any:
    """Start a command; it has set its handlers of signals when this returns."""
    ready = processes.Event()
    process = processes.Process(target=begin, args=(case, str(folder), ready, more))
    process.start()
    ready.wait(LONGEST)
    return process


def end(process: Any) -> int:
    """Wait for a process, and return its exit code; it is killed after the longest time."""
    process.join(LONGEST)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def begin(case: str, folder: str, ready: Any, more: dict[str, Any]) -> None:
    """Train in a process of its own; it ends like the command-line program."""
    from tqdm import tqdm

    from erase.cli.ending import ends
    from erase.runs import load_runs
    from erase.runtime.signals import listening
    from erase.training.run import run
    from flux_jax.errors import exits_cleanly

    # Locks shared between processes would outlive a killed process.
    tqdm.set_lock(threading.RLock())
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(log, number)

    @exits_cleanly
    def main() -> None:
        with listening():
            ready.set()
            run(load_runs(settings(case, **more)), Path(folder), command="torture")

    with ends():
        main()


def settings(case: str, **more: Any) -> Any:
    """Configure short runs of the shipped model."""
    from configs import emoji

    names = ("cat", "car", "airplane") if case == "three runs at once" else ("cat",)
    config = emoji(*names)
    values: dict[str, Any] = {
        "steps": 2,
        "iterations": 16,
        "evaluation": {"pictures": 0},
        "upper": {"pictures": 2},
        "bank": {"sentences": 2, "trajectories": 2, "batch": 4},
        "checkpoints": {
            "every": 3,
            "last": 1,
            "adapter": "best" if case == "the best checkpoint" else "last",
        },
    }
    config.update(values)
    config.update(more)
    return config


def contents(folder: Path) -> dict[str, bytes]:
    """Content of adapters and metrics by name, without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "pytorch_lora_weights.safetensors":
            found[name] = path.read_bytes()
        if path.name == "metrics.jsonl":
            found[name] = b"\n".join(
                line.partition(b', "seconds"')[0] for line in path.read_bytes().splitlines()
            )
    return found
