"""Metrics of iterations: written line by line into runs' folders, shown, and weighed.

The lines of `metrics.jsonl` are declared in `erase.runtime.run_folder`.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypedDict

import numpy as np

from erase.config.schema import Config
from erase.methods import method_of
from erase.runtime import processes
from erase.runtime.files import write
from erase.runtime.run_folder import METRICS, SKIPPED, MetricsRecord, kind_of, record_line


class SampledRecord(TypedDict):
    """What a loss sampled: prompts, or rows of the bank where they are not known; and timesteps."""

    prompts: list[str] | list[int]
    t: list[float]


class SkippedRecord(TypedDict):
    """A line of `skipped.jsonl`: an iteration in which an update was left out.

    Attributes:
        step: the iteration.
        lost: names of the metrics that are not finite.
        seed: of the run.
        numbers: the finite metrics.
        drawn: prompts and timesteps, by loss.
    """

    step: int
    lost: list[str]
    seed: int
    numbers: dict[str, float]
    drawn: dict[str, SampledRecord]


@dataclass(frozen=True)
class RunLog:
    """The lines that a run's iterations write; only the first process does.

    Attributes:
        metrics: `metrics.jsonl`, open for more.
        skipped: path of `skipped.jsonl`, which is there once a line is.
    """

    metrics: TextIO
    skipped: Path

    def add_metrics(self, record: MetricsRecord) -> None:
        """Adds a line to `metrics.jsonl`; `flush` writes it."""
        print(record_line(record), file=self.metrics)

    def add_skipped(self, record: SkippedRecord) -> None:
        """Adds a line to `skipped.jsonl` at once."""
        if processes.first():
            with self.skipped.open("a") as file:
                print(json.dumps(record), file=file)

    def flush(self) -> None:
        """Writes the lines of `metrics.jsonl`."""
        self.metrics.flush()


@contextlib.contextmanager
def opened_logs(workdir: Path, names: Sequence[str], done: int) -> Iterator[dict[str, RunLog]]:
    """Runs' logs by name, without lines of iterations that no checkpoint holds.

    Args:
        workdir: holds the runs' folders.
        names: of the runs.
        done: the iteration of the checkpoint from which they go on.
    """
    with contextlib.ExitStack() as stack:
        logs = {}
        for name in names:
            metrics, skipped = workdir / name / METRICS, workdir / name / SKIPPED
            for path in (metrics, skipped):
                drop_lines_after(path, done)
            file = (metrics if processes.first() else Path(os.devnull)).open("a")
            logs[name] = RunLog(stack.enter_context(file), skipped)
        yield logs


def drop_lines_after(path: Path, done: int) -> None:
    """Drops a file's lines of iterations after `done`; the first process does."""
    if processes.first() and path.is_file():
        write(path, "".join(_lines_until(path.read_text().splitlines(keepends=True), done)))


def _lines_until(lines: Sequence[str], done: int) -> Iterator[str]:
    """The lines up to an iteration; the last one may have been cut off."""
    for line in lines:
        try:
            if json.loads(line)["step"] > done:
                return
        except (ValueError, KeyError, TypeError):
            return
        yield line


def mean_weighted_loss(
    config: Config, metrics: Mapping[str, np.ndarray], active: np.ndarray
) -> float:
    """The losses' weighted sum, mean over the active runs: what checkpoints are compared by.

    Args:
        config: of any of the runs.
        metrics: losses and norms of gradients [R], by name.
        active: whether each run goes on [R].

    Returns:
        The mean over those active runs whose sum is finite; infinite where none is.
    """
    weights = method_of(config).weights(config)
    sums = sum(weights[name] * values for name, values in metrics.items() if name in weights)
    finite = np.asarray(sums)[active & np.isfinite(np.asarray(sums))]
    return float(finite.mean()) if finite.size else math.inf


def mean_losses(metrics: Mapping[str, np.ndarray], active: np.ndarray) -> dict[str, str]:
    """Each loss's mean over the active runs, as the progress bar shows it; none without one."""
    if not active.any():
        return {}
    losses = {name: each for name, each in metrics.items() if kind_of(name) == "loss"}
    return {name: f"{values[active].mean():.3g}" for name, values in losses.items()}


def named(name: str, text: str, separator: str = ": ") -> str:
    """A message of a run, after its name where it has one."""
    return f"{name}{separator}{text}" if name else text
