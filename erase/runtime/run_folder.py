"""What a run's folder holds: the names of its files, and the lines of `metrics.jsonl`.

A line of `metrics.jsonl` is flat: `step`, each metric that is finite, `seconds`. A metric is a loss
or, where its name ends with `gradient`, the norm of a gradient.
"""

import json
from typing import Any, Literal, TypedDict

CONFIG = "config.json"
# Said where that is missing.
MISSING = "a run's folder has it; check the path"
# Words for other things, and sentences of a language model; each with their source.
IRRELEVANT = "irrelevant.json"
SENTENCES = "sentences.json"
# A line for each iteration, and for each whose update was left out.
METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
# Of an iteration that was done again.
REPLAY = "replay-{}.json"
CHECKPOINTS = "checkpoints"
DAMAGED_CHECKPOINTS = "damaged"
ADAPTER = "adapter"
EVALUATION = "evaluation.json"
ATTENTION = "attention.npz"
PICTURES = "pictures"
BEFORE_AFTER = "before_after.png"
REPORT = "report.html"
# Each as JSON and as CSV.
ATTACKS_STEM, SUMMARY_STEM = "attacks", "summary"

# All that the commands write; patterns, of which most are names.
WRITTEN = (
    CONFIG,
    IRRELEVANT,
    SENTENCES,
    METRICS,
    SKIPPED,
    REPLAY.format("*"),
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

# How the iteration is called in a line, by this version and by earlier ones.
STEP_NAMES = ("step", "update", "iteration")


class MetricsRecord(TypedDict):
    """A line of `metrics.jsonl`.

    Attributes:
        step: the iteration, from 1 on; None where the line does not say.
        metrics: finite losses and norms of gradients, in the order of the updates.
        seconds: that the iteration took; None where the line does not say.
    """

    step: int | None
    metrics: dict[str, float]
    seconds: float | None


def kind_of(metric: str) -> Literal["loss", "gradient"]:
    """What a metric of this name is."""
    return "gradient" if metric.endswith("gradient") else "loss"


def record_line(record: MetricsRecord) -> str:
    """A record as a line of `metrics.jsonl`."""
    return json.dumps({"step": record["step"], **record["metrics"], "seconds": record["seconds"]})


def parse_record(line: str) -> MetricsRecord:
    """The record of a line of `metrics.jsonl`, of this version or an earlier one.

    Raises:
        ValueError: the line is not a JSON object.
    """
    entry: Any = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError(f"{line[:40]!r} is no JSON object")
    metrics = {
        name: value
        for name, value in entry.items()
        if name not in STEP_NAMES and "second" not in name and _is_number(value)
    }
    step = next((entry[name] for name in STEP_NAMES if name in entry), None)
    return {"step": step, "metrics": metrics, "seconds": entry.get("seconds")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
