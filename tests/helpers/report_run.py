"""A run's folder with every file that a report reads, made without a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erase.model.draw import png
from erase.report import report
from erase.runtime.files import write

CONCEPT = "cat"


def share(found: int, of: int) -> dict[str, Any]:
    return {"found": found, "of": of, "share": found / of, "low": 0.01, "high": 0.99}


def write_run(
    folder: Path,
    examples: int = 1,
    side: tuple[int, int] = (16, 24),
    others: Sequence[str] = ("dog",),
    families: Sequence[str] = ("misspelt",),
    metrics: Sequence[str] = ("loss_esd", "loss_rsc"),
) -> None:
    """Writes the folder.

    Args:
        folder: an empty one.
        examples: pictures of each cell.
        side: height and width of pictures.
        others: concepts that should stay.
        families: of attacks.
        metrics: names in `metrics.jsonl`.
    """
    rng = np.random.default_rng(0)
    entries = []
    for cell in ("Acc_e", "Acc_g", "Acc_ir"):
        for index in range(examples):
            entry: dict[str, Any] = {"cell": cell, "prompt": f"a <{cell}> & more", "seed": index}
            entry["sought"] = others[0] if cell == "Acc_ir" else CONCEPT
            for moment in ("before", "after"):
                entry[moment] = f"pictures/{cell}-{index}-{moment}.png"
                entry[f"found_{moment}"] = moment == "before"
                write(folder / entry[moment], png(rng.integers(0, 256, (*side, 3), np.uint8)))
            entries.append(entry)
    sides = {"before": share(60, 64), "silenced": share(30, 64), "after": share(5, 64)}
    evaluation = {
        "concept": CONCEPT,
        "model": "models/some-flux",
        "steps": 4,
        "guidance": 3.5,
        "height": side[0],
        "width": side[1],
        "strength": 0.75,
        "adapter_parameters": 12345,
        "cells": {c: {"before": sides["before"], "after": sides["after"]} for c in report.WORDS},
        "H": {"before": 0.123, "after": 0.987},
        "concepts": [{"concept": other, "before": 3, "after": 1, "of": 3} for other in others],
        "pictures": entries,
        "attention": entries[: min(examples, 4)],
        "attention_times": [0.9, 0.5],
    }
    write(folder / "evaluation.json", json.dumps(evaluation))
    shape = (min(examples, 4), 4, 6)
    np.savez(folder / "attention.npz", before=rng.random(shape), after=np.zeros(shape))
    config = {"command": "python -m erase.train --x 'y'", "concept": CONCEPT, "rank": 8}
    write(folder / "config.json", json.dumps(config))
    write(folder / "attacks.json", json.dumps({"cells": dict.fromkeys(families, sides)}))
    lines = [
        {"step": step, **{name: 1 / (step + i + 1) for i, name in enumerate(metrics)}, "seconds": 9}
        for step in range(50)
    ]
    write(folder / "metrics.jsonl", "\n".join(map(json.dumps, lines)))
