"""Reads what the page shows of runs from their folder; writes nothing there.

It imports neither JAX nor NumPy, so that its process starts at once and stays small.
"""

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erase.runtime import run_folder
from erase.runtime.run_folder import kind_of, parse_record, samples_in, steps_in
from flux_jax.errors import InputError
from flux_jax.system.files import open_regular, read_bytes
from flux_jax.system.json_files import parse_json

# Most points of a chart.
MOST_POINTS = 240
# Most bytes of the log that are read for an answer; the rest is read for the next ones.
MOST_READ = 8 << 20
# Iterations whose durations give the time that is left.
RECENT = 50
# The metrics that Orbax saves with a checkpoint; their most bytes.
CHECKPOINT_METRICS, MOST_METRICS = Path("metrics", "metrics"), 1 << 16


@dataclass
class Log:
    """A `metrics.jsonl`, of which only new lines are read.

    Attributes:
        path: the file.
        identity: what tells the file from one that replaced it.
        offset: bytes that were read.
        series: iterations and values of each metric, by name.
        seconds: durations of the last iterations.
        step: the last iteration.
    """

    path: Path
    identity: tuple[int, int] = (0, 0)
    offset: int = 0
    series: dict[str, tuple[array, array]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    step: int = 0

    def update(self) -> None:
        """Read the lines that are new; a file that was replaced is read from its start."""
        try:
            file = open_regular(self.path)
        except OSError:
            self._restart((0, 0))
            return
        with file:
            found = os.fstat(file.fileno())
            identity = (found.st_dev, found.st_ino)
            if identity != self.identity or found.st_size < self.offset:
                self._restart(identity)
            file.seek(self.offset)
            # The last line may not be complete yet.
            content, end, _ = file.read(MOST_READ).rpartition(b"\n")
        self.offset += len(content + end)
        for line in content.split(b"\n"):
            self._add(line)

    def _restart(self, identity: tuple[int, int]) -> None:
        self.identity, self.offset, self.step = identity, 0, 0
        self.series, self.seconds = {}, []

    def _add(self, line: bytes) -> None:
        try:
            record = parse_record(line)
        except ValueError:
            # Damaged, which the training reports.
            return
        if record["step"] is None:
            return
        self.step = record["step"]
        for name, value in record["metrics"].items():
            steps, values = self.series.setdefault(name, (array("q"), array("d")))
            steps.append(self.step)
            values.append(value)
        if record["seconds"] is not None:
            self.seconds = [*self.seconds, record["seconds"]][-RECENT:]

    def charts(self) -> list[dict[str, Any]]:
        """The metrics for the page: names, kinds, last values and points."""
        return [
            {
                "name": name.replace("_", " "),
                "kind": kind_of(name),
                "last": values[-1],
                "points": thinned(steps, values),
            }
            for name, (steps, values) in self.series.items()
        ]


def thinned(steps: Sequence[int], values: Sequence[float]) -> list[list[float]]:
    """At most `MOST_POINTS` means of successive values, each with its last iteration."""
    width = -(-len(values) // MOST_POINTS) or 1
    points = []
    for start in range(0, len(values), width):
        part = values[start : start + width]
        last = steps[min(start + width, len(steps)) - 1]
        points.append([last, float(f"{sum(part) / len(part):.5g}")])
    return points


@dataclass
class RunView:
    """A run of the page.

    Attributes:
        folder: the run's folder.
        name: name of the run; "" if it is the only one.
        log: its metrics.
    """

    folder: Path
    name: str
    log: Log

    def config(self) -> dict[str, Any]:
        """The run's `config.json`; empty while there is none that can be read."""
        try:
            content = parse_json(read_bytes(self.folder / run_folder.CONFIG))
        except (InputError, OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def samples(self) -> list[dict[str, Any]]:
        """Iterations of the sample pictures with their numbers, the newest first."""
        found = samples_in(self.folder)
        return [{"step": step, "numbers": found[step]} for step in sorted(found, reverse=True)]


@dataclass(frozen=True)
class Page:
    """What the page shows of runs that train together.

    Attributes:
        workdir: folder of the checkpoints.
        runs: the runs.
    """

    workdir: Path
    runs: list[RunView]

    @classmethod
    def of(cls, workdir: Path, names: Sequence[str]) -> "Page":
        """The page of the runs of these names in a folder."""
        folders = {name: workdir / name for name in names}
        logs = {name: Log(folder / run_folder.METRICS) for name, folder in folders.items()}
        return cls(workdir, [RunView(folders[name], name, logs[name]) for name in names])

    def state(self, index: int) -> dict[str, Any]:
        """All that the page shows of a run, for JSON.

        Args:
            index: number of the run.
        """
        run = self.runs[index]
        run.log.update()
        config, log = run.config(), run.log
        total, seconds = config.get("iterations"), log.seconds
        mean = sum(seconds) / len(seconds) if seconds else None
        checkpoints = config.get("checkpoints")
        return {
            "runs": [each.name for each in self.runs],
            "concept": str(config.get("concept", "")),
            "step": log.step,
            "total": total if isinstance(total, int) else None,
            "seconds": mean,
            "best": self.best(total if isinstance(total, int) else None),
            "adapter": checkpoints.get("adapter") if isinstance(checkpoints, dict) else None,
            "charts": log.charts(),
            "samples": run.samples(),
        }

    def best(self, last: int | None = None) -> dict[str, float] | None:
        """Iteration and loss of the best checkpoint so far, as the training compares them.

        Args:
            last: the last iteration, if it is known.
        """
        folder = self.workdir / run_folder.CHECKPOINTS
        metrics = {}
        for step in steps_in(folder):
            try:
                path = folder / str(step) / CHECKPOINT_METRICS
                metrics[step] = parse_json(read_bytes(path, most=MOST_METRICS))
            except (InputError, OSError, ValueError):
                # It was removed meanwhile.
                continue
        step = run_folder.best_step(metrics, last)
        return None if step is None else {"step": step, "loss": metrics[step][run_folder.LOSS]}

    def picture(self, index: int, step: int, number: int) -> bytes | None:
        """The content of a sample picture; None if there is no such picture."""
        if index >= len(self.runs):
            return None
        folder = self.runs[index].folder
        if number not in samples_in(folder).get(step, []):
            return None
        try:
            return read_bytes(folder / run_folder.SAMPLES / run_folder.sample_name(step, number))
        except (InputError, OSError):
            return None
