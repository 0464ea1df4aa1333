"""Names of the files in a run's folder, and the format of `metrics.jsonl`.

A line of `metrics.jsonl` is a flat object: `step`, the finite metrics, `seconds`. A metric is a
loss or, if its name ends with `gradient`, the norm of a gradient.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from flux_jax.errors import InputError
from flux_jax.system.files import open_regular
from flux_jax.system.json_files import parse_json

CONFIG = "config.json"
# Advice if it is missing.
MISSING = "every run's folder has it; check the path"
# Words for other things, and sentences from a language model, each with their source.
IRRELEVANT = "irrelevant.json"
SENTENCES = "sentences.json"
# One line per iteration, and one per skipped update.
METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
# Report on a repeated iteration.
REPLAY = "replay-{}.json"
# Digests of finished results, and results of an unfinished command.
FINISHED = "finished.json"
CACHE = "cache"
CHECKPOINTS = "checkpoints"
DAMAGED_CHECKPOINTS = "damaged"
ADAPTER = "adapter"
EVALUATION = "evaluation.json"
ATTENTION = "attention.npz"
CALIBRATION = "calibration.json"
PICTURES = "pictures"
# While it trains: pictures by the adapter so far, and event files for TensorBoard.
SAMPLES = "samples"
EVENTS = "events"
BEFORE_AFTER = "before_after.png"
# While a command writes to the folder; see `erase.runtime.lock`.
LOCK = ".erase.lock"
REPORT = "report.html"
# Written both as JSON and as CSV.
ATTACKS_STEM, SUMMARY_STEM = "attacks", "summary"

# Everything that the commands write, as glob patterns.
WRITTEN = (
    CONFIG,
    IRRELEVANT,
    SENTENCES,
    METRICS,
    SKIPPED,
    REPLAY.format("*"),
    FINISHED,
    CACHE,
    CHECKPOINTS,
    DAMAGED_CHECKPOINTS,
    ADAPTER,
    EVALUATION,
    ATTENTION,
    CALIBRATION,
    PICTURES,
    SAMPLES,
    EVENTS,
    BEFORE_AFTER,
    REPORT,
    *(f"{stem}.{kind}" for stem in (ATTACKS_STEM, SUMMARY_STEM) for kind in ("json", "csv")),
)

# Keys of the iteration in a line, in this version and in earlier ones.
STEP_NAMES = ("step", "update", "iteration")
# A sample picture by its iteration and number, and an event file as its library names it.
SAMPLE = re.compile(r"(\d{6,9})-(\d)\.png")
EVENT_FILE = re.compile(r"events\.out\.tfevents\..+")
# Names of a checkpoint's metrics: the loss for comparing checkpoints, and whether it is one of an
# interval. Those that are not, of a run that was stopped, would not be there if it had not been
# stopped.
LOSS, OF_INTERVAL = "loss", "of_interval"
# Most bytes of a line.
MOST_LINE = 1 << 20


class MetricsRecord(TypedDict):
    """A line of `metrics.jsonl`.

    Attributes:
        step: number of the iteration, from 1; None if missing.
        metrics: finite losses and gradient norms, in the order of the updates.
        seconds: duration of the iteration; None if missing.
    """

    step: int | None
    metrics: dict[str, float]
    seconds: float | None


def kind_of(metric: str) -> Literal["loss", "gradient"]:
    """Kind of a metric, by its name."""
    return "gradient" if metric.endswith("gradient") else "loss"


def record_line(record: MetricsRecord) -> str:
    """Format a record as a line of `metrics.jsonl`."""
    return json.dumps({"step": record["step"], **record["metrics"], "seconds": record["seconds"]})


def parse_record(line: str | bytes) -> MetricsRecord:
    """Parse a line of `metrics.jsonl`, of this version or an earlier one.

    Raises:
        ValueError: the line is not a JSON object, or has no number where one belongs.
    """
    # Earlier versions wrote metrics that are not finite too.
    entry: Any = parse_json(line, finite=False)
    if not isinstance(entry, dict):
        shown = (line if isinstance(line, str) else line.decode()).strip()[:40]
        raise ValueError(f"{shown!r} is not a JSON object")
    metrics = {
        name: value
        for name, value in entry.items()
        if name not in STEP_NAMES and "second" not in name and _is_number(value)
    }
    step = next((entry[name] for name in STEP_NAMES if name in entry), None)
    seconds = entry.get("seconds")
    if step is not None and (not isinstance(step, int) or isinstance(step, bool)):
        raise ValueError(f"{step!r:.40} is not the number of an iteration")
    if seconds is not None and not _is_number(seconds):
        raise ValueError(f"seconds = {seconds!r:.40} is not a number")
    return {"step": step, "metrics": metrics, "seconds": seconds}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_lines(path: Path) -> Iterator[bytes]:
    """Read the lines of a log one by one; a line over `MOST_LINE` is returned in parts.

    Raises:
        OSError: the file is missing, not a regular file, or cannot be read.
    """
    with open_regular(path) as file:
        while line := file.readline(MOST_LINE):
            yield line


def read_records(path: Path) -> Iterator[MetricsRecord]:
    """Read a `metrics.jsonl`.

    Raises:
        InputError: a line is damaged; the message has its number.
    """
    for number, line in enumerate(read_lines(path), 1):
        try:
            yield parse_record(line)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}, is not JSON: {error}; remove the line"
            ) from error


def lines_until(path: Path, done: int) -> bytes:
    """Read a log's lines of iterations up to `done`, without damaged lines after them.

    A process that is killed, or a disk that fails, may damage the lines written last.

    Raises:
        InputError: a line before one of these is damaged.
    """
    lines: list[bytes] = []
    damage = ""
    for number, line in enumerate(read_lines(path), 1):
        try:
            step = parse_record(line)["step"]
            if step is None:
                raise ValueError("it has no step")
        except ValueError as error:
            damage = damage or f"{path}, line {number}, is damaged ({error})"
            continue
        if step > done:
            break
        if damage:
            raise InputError(f"{damage}; remove the line, and run the same command: it resumes")
        lines.append(line if line.endswith(b"\n") else line + b"\n")
    return b"".join(lines)


def steps_in(folder: Path) -> list[int]:
    """Return the iterations of a folder's checkpoints, in order, intact or not."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit())


def loss_of(metrics: Any) -> float | None:
    """Return the loss in a checkpoint's metrics; None if an earlier version or damage left none."""
    loss = metrics.get(LOSS) if isinstance(metrics, dict) else None
    return float(loss) if isinstance(loss, int | float) else None


def best_step(metrics: Mapping[int, Any], last: int | None = None) -> int | None:
    """Return the iteration of the checkpoint with the smallest loss; of equal ones, the first.

    Args:
        metrics: metrics of the checkpoints, by their iterations.
        last: the last iteration of the runs, whose checkpoint counts even within an interval.

    Returns:
        The iteration; None if no checkpoint has a loss that counts.
    """
    losses = {
        step: loss
        for step, each in metrics.items()
        if (loss := loss_of(each)) is not None and (each.get(OF_INTERVAL, 1) or step == last)
    }
    return min(sorted(losses), key=losses.__getitem__, default=None)


def sample_name(step: int, index: int) -> str:
    """Return the name of a sample picture in its folder."""
    return f"{step:06d}-{index}.png"


def samples_in(folder: Path) -> dict[int, list[int]]:
    """Return the numbers of a run's sample pictures by their iterations, both in order.

    Args:
        folder: the run's folder.
    """
    samples: dict[int, list[int]] = {}
    place = folder / SAMPLES
    for name in sorted(os.listdir(place)) if place.is_dir() else []:
        # A link may lead out of the folder.
        regular = (place / name).is_file() and not (place / name).is_symlink()
        if regular and (match := SAMPLE.fullmatch(name)):
            samples.setdefault(int(match[1]), []).append(int(match[2]))
    return dict(sorted(samples.items()))
