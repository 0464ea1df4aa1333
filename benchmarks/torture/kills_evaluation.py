"""Kills of evaluation, attack and comparison: each ends with the same bytes as one left alone.

Every try starts a command in an empty folder, ends it at a random moment by SIGKILL or SIGTERM,
starts it again and compares all files. After SIGTERM the exit code must be 75, or 0 if the command
had just finished.
"""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.torture.kills import context
from benchmarks.torture.row import Row
from erase.config.schema import BankConfig, Checkpoints, Config

TRIES = 20
CASES = ("evaluation", "attack", "compare")
# Longest time of a command, in seconds.
LONGEST = 300
# The file of long messages, which the message on stderr names.
MESSAGES = "erase-anything-*.log"


def rows(scale: float, folder: Path) -> Iterator[Row]:
    """Yield a row for each command.

    Args:
        scale: share of the tries.
        folder: an empty folder for the commands' files.
    """
    processes = context(folder)
    for case in CASES:
        yield _row(processes, case, max(1, round(scale * TRIES)), folder / case)


def _row(processes: Any, case: str, tries: int, folder: Path) -> Row:
    began, rng, faults = time.monotonic(), np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    # The first one compiles.
    for name in ("first", "whole"):
        started = time.monotonic()
        if (code := _run(processes, case, folder / name)) != 0:
            faults.append(f"undisturbed: exit code {code}")
    duration, wanted = time.monotonic() - started, contents(folder / "whole")
    for number in range(tries):
        how = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        at, where = rng.uniform(0, duration), folder / str(number)
        code = _run(processes, case, where, at, how)
        allowed = {signal.SIGKILL: (-signal.SIGKILL, 0), signal.SIGTERM: (75, 0)}[how]
        again = _run(processes, case, where)
        changed = sorted(n for n, c in contents(where).items() ^ wanted.items())
        if code not in allowed or again != 0 or changed:
            faults.append(f"{how.name} at {at:.1f} s: {code}, then {again}; {changed[:3]}")
    return Row(
        what=f"kills of {case}: same end",
        tried=tries,
        held=tries - len(faults),
        seconds=time.monotonic() - began,
        peak_mb=None,
        note="; ".join(faults[:3]),
    )


def _run(
    processes: Any, case: str, folder: Path, at: float = LONGEST, how: int = signal.SIGKILL
) -> int:
    """Run a command and return its exit code; a signal ends it after a time in seconds."""
    ready = processes.Event()
    process = processes.Process(target=begin, args=(case, str(folder), ready))
    process.start()
    # Until a command listens, SIGTERM ends it as it ends any program.
    ready.wait(LONGEST)
    process.join(at)
    if process.is_alive():
        os.kill(process.pid, how)
    process.join(LONGEST)
    return process.exitcode


def begin(case: str, folder: str, ready: Any) -> None:
    """Run a command in a process of its own; it ends like the command-line program."""
    from tqdm import tqdm

    from erase.runtime.signals import listening
    from flux_jax.errors import exits_cleanly

    # Locks shared between processes would outlive a killed process.
    tqdm.set_lock(threading.RLock())
    Path(folder).mkdir(exist_ok=True)
    tempfile.tempdir = folder
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)

    @exits_cleanly
    @listening()
    def main() -> None:
        ready.set()
        command(case, Path(folder))

    main()


def command(case: str, folder: Path) -> None:
    """Run an evaluation, an attack or a comparison of the shipped model."""
    from erase.attacks.attack import attack
    from erase.evaluation.evaluate import evaluate
    from erase.model import digest
    from erase.model.open import open_model
    from erase.training.compare import compare, seeded

    config = small()
    if case == "compare":
        names = ("uce", "esd")
        methods = {name: seeded({"cat": replace(config, method=name)}, 1) for name in names}
        compare(methods, folder / "comparison.json", attacks=2)
        return
    files = digest.summary(digest.of_runs({"": config}, evaluation=True)[""])
    pipe = open_model(config)
    if case == "evaluation":
        evaluate(pipe, adapter(pipe), config, folder, files=files)
    else:
        attack(pipe, adapter(pipe), config, folder, 3, files)


def small() -> Config:
    """A run of the shipped model with few pictures and iterations."""
    from configs import emoji_cat
    from erase.runs import load_config

    config = load_config(emoji_cat.get_config())
    settings = replace(
        config.evaluation, pictures=6, batch=2, steps=2, examples=2, attention_examples=1
    )
    return replace(
        config,
        steps=2,
        iterations=4,
        checkpoints=Checkpoints(every=2),
        bank=BankConfig(sentences=2, trajectories=2, batch=4),
        evaluation=settings,
    )


def adapter(pipe: Any) -> Any:
    """An adapter with random numbers."""
    import jax

    from flux_jax import Adapter, lora

    rng = np.random.default_rng(0)
    tree = jax.eval_shape(lambda: lora.init(jax.random.key(0), pipe.shapes, rank=2))
    return Adapter(
        jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), tree), 2.0
    )


def contents(folder: Path) -> dict[str, str]:
    """Content of all files by name, without times and without what libraries said of the stop."""
    found = {}
    files = {path for path in folder.rglob("*") if path.is_file()} - {*folder.glob(MESSAGES)}
    for path in sorted(files):
        content = path.read_bytes()
        if path.name == "comparison.json":
            result = json.loads(content)
            for method in result["methods"].values():
                method["seconds"] = 0
            content = json.dumps(result).encode()
        found[path.relative_to(folder).as_posix()] = content.hex()
    return found
