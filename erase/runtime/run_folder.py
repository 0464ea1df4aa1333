"""Names of the files in a run's folder, and the format of `metrics.jsonl`.

A line of `metrics.jsonl` is a flat object: `step`, the finite metrics, `seconds`. A metric is a
loss or, if its name ends with `gradient`, the norm of a gradient.
"""

import json
from typing import Any, Literal, TypedDict

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
PICTURES = "pictures"
BEFORE_AFTER = "before_after.png"
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
    PICTURES,
    BEFORE_AFTER,
    REPORT,
    *(f"{stem}.{kind}" for stem in (ATTACKS_STEM, SUMMARY_STEM) for kind in ("json", "csv")),
)

# Keys of the iteration in a line, in this version and in earlier ones.
STEP_NAMES = ("step", "update", "iteration")


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


def parse_record(line: str) -> MetricsRecord:
    """Parse a line of `metrics.jsonl`, of this version or an earlier one.

    Raises:
        ValueError: the line is not a JSON object.
    """
    entry: Any = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError(f"{line[:40]!r} is not a JSON object")
    metrics = {
        name: value
        for name, value in entry.items()
        if name not in STEP_NAMES and "second" not in name and _is_number(value)
    }
    step = next((entry[name] for name in STEP_NAMES if name in entry), None)
    return {"step": step, "metrics": metrics, "seconds": entry.get("seconds")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
