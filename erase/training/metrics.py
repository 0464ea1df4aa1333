"""Metrics of iterations: log files in the runs' folders, progress display and weighted loss.

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
from erase.runtime.run_folder import (
    METRICS,
    SKIPPED,
    MetricsRecord,
    kind_of,
    lines_until,
    record_line,
)
from flux_jax.errors import names_file


class SampledRecord(TypedDict):
    """Samples of a loss: prompts, or rows of the bank if the prompts are unknown, and timesteps."""

    prompts: list[str] | list[int]
    t: list[float]


class SkippedRecord(TypedDict):
    """A line of `skipped.jsonl`: an iteration with a skipped update.

    Attributes:
        step: the iteration.
        lost: names of the non-finite metrics.
        seed: seed of the run.
        numbers: the finite metrics.
        drawn: sampled prompts and timesteps, by loss.
    """

    step: int
    lost: list[str]
    seed: int
    numbers: dict[str, float]
    drawn: dict[str, SampledRecord]


@dataclass(frozen=True)
class RunLog:
    """Log files of a run's iterations; only the first process writes them.

    Attributes:
        metrics: `metrics.jsonl`, open for appending.
        skipped: path of `skipped.jsonl`, which is created with its first line.
    """

    metrics: TextIO
    skipped: Path

    def add_metrics(self, record: MetricsRecord) -> None:
        """Add a line to `metrics.jsonl`; `flush` writes it to disk."""
        with names_file(self.metrics.name):
            print(record_line(record), file=self.metrics)

    def add_skipped(self, record: SkippedRecord) -> None:
        """Append a line to `skipped.jsonl` immediately."""
        if processes.first():
            with names_file(self.skipped), self.skipped.open("a") as file:
                print(json.dumps(record), file=file, flush=True)
                os.fsync(file.fileno())

    def flush(self) -> None:
        """Write the buffered lines of `metrics.jsonl` to disk; a power cut does not lose them."""
        with names_file(self.metrics.name):
            self.metrics.flush()
            if processes.first():
                os.fsync(self.metrics.fileno())


@contextlib.contextmanager
def opened_logs(workdir: Path, names: Sequence[str], done: int) -> Iterator[dict[str, RunLog]]:
    """Open the runs' logs by name, without lines of iterations after the checkpoint.

    Args:
        workdir: folder that contains the runs' folders.
        names: names of the runs.
        done: iteration of the checkpoint from which the runs resume.
    """
    with contextlib.ExitStack() as stack:
        logs = {}
        for name in names:
            metrics, skipped = workdir / name / METRICS, workdir / name / SKIPPED
            for path in (metrics, skipped):
                drop_lines_after(path, done)
            # By lines, for readers of an unfinished run.
            file = (metrics if processes.first() else Path(os.devnull)).open("a", buffering=1)
            logs[name] = RunLog(stack.enter_context(_closing(file)), skipped)
        yield logs


@contextlib.contextmanager
def _closing(file: TextIO) -> Iterator[TextIO]:
    """Close a file, which writes its last lines; an error has the file's name."""
    try:
        yield file
    finally:
        with names_file(file.name):
            file.close()


def drop_lines_after(path: Path, done: int) -> None:
    """Remove a file's lines of iterations after `done`, in the first process.

    Raises:
        InputError: a line of an earlier iteration is damaged.
    """
    if processes.first() and path.is_file():
        write(path, lines_until(path, done))


def mean_weighted_loss(
    config: Config, metrics: Mapping[str, np.ndarray], active: np.ndarray
) -> float:
    """Compute the weighted sum of losses, mean over the active runs, to compare checkpoints.

    Args:
        config: configuration of any of the runs.
        metrics: losses and norms of gradients [R], by name.
        active: whether each run is still training [R].

    Returns:
        The mean over the active runs whose sum is finite; infinite if there are none.
    """
    weights = method_of(config).weights(config)
    sums = sum(weights[name] * values for name, values in metrics.items() if name in weights)
    finite = np.asarray(sums)[active & np.isfinite(np.asarray(sums))]
    return float(finite.mean()) if finite.size else math.inf


def mean_losses(metrics: Mapping[str, np.ndarray], active: np.ndarray) -> dict[str, str]:
    """Return each loss's mean over the active runs as text; empty without active runs."""
    if not active.any():
        return {}
    losses = {name: each for name, each in metrics.items() if kind_of(name) == "loss"}
    return {name: f"{values[active].mean():.3g}" for name, values in losses.items()}


def named(name: str, text: str, separator: str = ": ") -> str:
    """Prefix a message with the run's name, if it has one."""
    return f"{name}{separator}{text}" if name else text
