"""Find the smallest strength of an adapter that erases enough, by bisection.

`erase.cli.calibrate` defines what is enough. A greater strength is assumed to erase more.
Axis letters: B pictures, h w picture sides.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from convert.tables import show
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
from erase.runtime.run_folder import CALIBRATION
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

Tried = list[tuple[float, float]]


def bisect(
    measure: Callable[[float], float], wanted: float, most: float, tolerance: float
) -> tuple[float, Tried]:
    """Find the smallest strength whose measure is at most `wanted`, to a tolerance.

    Args:
        measure: function of the strength; decreasing.
        wanted: target value of the measure.
        most: the largest strength to try.
        tolerance: how far the result may exceed the smallest sufficient strength.

    Returns:
        A tried strength that reaches the target, and all tried strengths in order, with their
        measures.

    Raises:
        InputError: the largest strength does not reach the target.
    """
    tried = [(most, measure(most))]
    if tried[0][1] > wanted:
        raise InputError(
            f"most = {most:g}: this strength leaves {tried[0][1]:.3f} where {wanted:g} is wanted; "
            "raise most, or train longer"
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
    """Correlation of the values of picture pairs: 1 for equal pictures, 0 for unrelated ones."""
    a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (ones, others))
    a, b = (each - each.mean(axis=1, keepdims=True) for each in (a, b))
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # A picture of one constant value is similar only to an equal picture.
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
    """Find a run's strength and write `calibration.json`.

    Args:
        pipe: the base model.
        adapter: the erasing adapter.
        config: the run's configuration.
        workdir: the run's folder.
        share: largest accepted share of pictures in which the judge finds the concept.
        drop: decrease of the similarity to the base's pictures to reach, if there is no judge.
        most: the largest strength to try.
        tolerance: how far the result may exceed the smallest sufficient strength.

    Returns:
        Content of the file.

    Raises:
        InputError: a prompt or a number cannot be used, or the largest strength is not enough.
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
    write(workdir / CALIBRATION, json.dumps(result, indent=2) + "\n")
    _show(result)
    return result


def _check_numbers(share: float, positive: Mapping[str, float]) -> None:
    """Check the numbers of `calibrate`.

    Raises:
        InputError: the share is not in [0, 1), or another number, named in the message, is not
            positive and finite.
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
    show(table)
