"""Finds by bisection the smallest strength of an adapter that erases enough.

`erase.cli.calibrate` says what is enough. More of an adapter is taken to erase more.
Axis letters: B pictures, h w picture sides.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from rich.console import Console

from erase.config.schema import Config
from erase.evaluation import early_stop
from erase.evaluation.eval_prompts import (
    check_prompts,
    configured_judge,
    draw_cases,
    judge_pictures,
)
from erase.evaluation.percent import number_table, percent
from erase.runtime.files import write
from erase.runtime.results import CalibrationResult
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

FILE = "calibration.json"


Tried = list[tuple[float, float]]


def bisect(
    measure: Callable[[float], float], wanted: float, most: float, tolerance: float
) -> tuple[float, Tried]:
    """The smallest strength whose measure is no larger than wanted, to a tolerance.

    Args:
        measure: falls with the strength.
        wanted: what it must come down to.
        most: the largest strength that is tried.
        tolerance: how far the result may be above the smallest one.

    Returns:
        A strength that was tried and reaches what is wanted; and all that were tried, in order,
        with what was measured.

    Raises:
        InputError: the largest strength does not reach it.
    """
    tried = [(most, measure(most))]
    if tried[0][1] > wanted:
        raise InputError(
            f"most = {most:g}: this strength leaves {tried[0][1]:.3f} where {wanted:g} is wanted; "
            "allow more, or train longer"
        )
    low, high = 0.0, most
    while high - low > tolerance:
        middle = (low + high) / 2
        tried.append((middle, measure(middle)))
        low, high = (low, middle) if tried[-1][1] <= wanted else (middle, high)
    return high, tried


def similarity(
    ones: UInt8[np.ndarray, "B h w 3"], others: UInt8[np.ndarray, "B h w 3"]
) -> Float[np.ndarray, "B"]:
    """The correlation of pictures' values, 1 for the same and 0 for unrelated ones."""
    a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (ones, others))
    a, b = (each - each.mean(axis=1, keepdims=True) for each in (a, b))
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # Where a picture is of one value, only the same picture is like it.
    same = np.all(ones == others, axis=(1, 2, 3)).astype(float)
    return np.where(sizes > 0, np.sum(a * b, axis=1) / np.maximum(sizes, 1e-12), same)


def calibrate(
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    workdir: Path,
    *,
    share: float = 0.1,
    drop: float = 0.3,
    most: float = 1.5,
    tolerance: float = 0.05,
) -> CalibrationResult:
    """Finds a run's strength and writes `calibration.json`.

    Args:
        pipe: the base model.
        adapter: what erases.
        config: the run's configuration.
        workdir: the run's folder.
        share: of the pictures in which the judge may still find the concept.
        drop: of the similarity to the base's pictures, where there is no judge.
        most: the largest strength that is tried.
        tolerance: how far the result may be above the smallest one.

    Returns:
        What the file holds.

    Raises:
        InputError: a prompt or a number cannot be used, or the largest strength is too little.
    """
    _check_numbers(share, {"drop": drop, "most": most, "tolerance": tolerance})
    drawn, judge = early_stop.eval_prompts(config), configured_judge(config)
    check_prompts(pipe, judge, drawn)

    def pictures(strength: float) -> UInt8[np.ndarray, "B h w 3"]:
        return draw_cases(pipe, drawn, config, [(adapter, strength)], f"at strength {strength:g}")

    base = pictures(0.0)

    def value(shown: UInt8[np.ndarray, "B h w 3"]) -> float:
        found = similarity(shown, base) if judge is None else judge_pictures(judge, shown, drawn)
        return float(found.mean())

    kind: Literal["share", "similarity"] = "similarity" if judge is None else "share"
    wanted = 1 - drop if judge is None else share
    strength, tried = bisect(lambda at: value(pictures(at)), wanted, most, tolerance)
    tried = sorted([(0.0, value(base)), *tried])
    result: CalibrationResult = {
        "concept": config.concept,
        "model": config.model.path,
        "strength": strength,
        "measure": kind,
        "wanted": wanted,
        "pictures": len(drawn),
        "tried": [{"strength": at, kind: measured} for at, measured in tried],
    }
    write(workdir / FILE, json.dumps(result, indent=2) + "\n")
    _show(result)
    return result


def _check_numbers(share: float, positive: Mapping[str, float]) -> None:
    """Makes sure that there is a strength to look for.

    Raises:
        InputError: the share is none, or another number is not a positive one; it is named.
    """
    if not 0 <= share < 1:
        raise InputError(f"share = {share} must be from 0 to below 1")
    for name, number in positive.items():
        if not 0 < number < np.inf:
            raise InputError(f"{name} = {number} must be a positive number")


def _show(result: CalibrationResult) -> None:
    kind = result["measure"]
    shown = percent if kind == "share" else "{:.3f}".format
    title = f"{result['concept']!r}: strength {result['strength']:g} is enough"
    headings = ("strength", f"{kind} (wanted: {shown(result['wanted'])})")
    table = number_table(title, headings, left=0)
    for line in result["tried"]:
        table.add_row(f"{line['strength']:g}", shown(line[kind]))
    Console().print(table)
