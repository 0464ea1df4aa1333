"""Compares variants: trains each on the same concepts and seeds, and counts.

    python -m erase.study --study configs/studies.py:losses --out docs/results/losses.json

The file's STUDIES name what is compared. All runs of a variant train at once, and not again where
it differs from the one before in evaluation alone. Its counts are written as soon as they are
there; variants that the output already holds are left out.
"""

import json
import platform
import runpy
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table

from convert.errors import InputError, RunError, exits_cleanly, nearest
from erase import (
    evaluate,
    guard,
    irrelevant,
    methods,
    sentences,
    summary,
    synonyms,
)
from erase.adapters import make_adapters
from erase.cases import draw_cases, judge_of, judged
from erase.command import begin, parse_flags
from erase.config import Config, Evaluation
from erase.loop import METRICS
from erase.model import open_model
from erase.percent import percent
from erase.pictures import write
from erase.runs import EACH, load_runs, over
from erase.tables import sums
from erase.workdir import differences
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

# What changes how fast something is measured, not what.
SPEED = ("mesh", "checkpoints", "guard", "bank.batch", "evaluation.batch")


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        question: that the study answers, in a sentence.
        concepts: fields of `Config` for each concept, by its name.
        variants: changes to all of them, by the variant's name; an empty one is the default.
        seeds: of training; each variant is trained on each concept once a seed.
    """

    question: str
    concepts: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]


def run_study(study: Study, out: Path) -> dict[str, Any]:
    """Trains and counts every variant.

    Args:
        study: what is compared.
        out: JSON file of the results.

    Returns:
        What the file holds: the question, the device, and for each variant its changes, its
        seconds of training and a row for each run: concept, seed, iterations and cells (see
        `erase.evaluate`).

    Raises:
        InputError: a setting cannot be used, or the file holds another study.
    """
    plans = {
        variant: load_runs(
            {
                EACH: {
                    f"{name}-{seed}": over(over(fields, changes), {"seed": seed})
                    for name, fields in study.concepts.items()
                    for seed in study.seeds
                }
            }
        )
        for variant, changes in study.variants.items()
    }
    first = next(iter(next(iter(plans.values())).values()))
    if first.evaluation.judge is None:
        raise InputError("evaluation.judge = None: a study counts; name the judge's folder")
    head = {
        "question": study.question,
        "concepts": list(study.concepts),
        "seeds": list(study.seeds),
        "pictures": first.evaluation.pictures,
    }
    result = resumed(out, head, "variants", "study")
    for config in (each for plan in plans.values() for each in plan.values()):
        judge_of(config)
    pipe = open_model(first)
    before: dict[str, np.ndarray] = {}
    last, trained = None, None
    for variant, configs in plans.items():
        changes = json.loads(json.dumps(study.variants[variant]))
        if result["variants"].get(variant, {}).get("changes") == changes:
            continue
        learnt = [learnt_from(config) for config in configs.values()]
        if trained is None or learnt != last:
            last, trained = learnt, train_variant(configs, pipe)
        found, iterations, seconds = trained
        rows = [
            {"name": name.rpartition("-")[0], "iterations": iterations[name]}
            | count(pipe, found[name], config, before)
            for name, config in configs.items()
        ]
        result["variants"][variant] = {"changes": changes, "seconds": seconds, "rows": rows}
        result["device"] = jax.devices()[0].device_kind or platform.machine()
        result["jax"] = jax.__version__
        write(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    show(result)
    return result


def resumed(out: Path, head: Mapping[str, Any], parts: str, what: str) -> dict[str, Any]:
    """The results that a file holds already, or none of them.

    Args:
        out: the file.
        head: what says which results they are.
        parts: where they stand.
        what: the file holds, for messages.

    Raises:
        InputError: it holds others.
    """
    result = json.loads(out.read_text()) if out.is_file() else {**head, parts: {}}
    if {key: result.get(key) for key in head} != head:
        raise InputError(f"out = {str(out)!r} holds another {what}: name another file")
    return result


def left(
    out: Path, result: Mapping[str, Any], methods: Mapping[str, Mapping[str, Config]]
) -> dict[str, dict[str, Any]]:
    """The settings, those of the first run, by method, of methods that a file does not hold yet.

    Args:
        out: the file.
        result: what it holds; under `methods` each one's `settings` among others.
        methods: by name, each one's runs by name.

    Raises:
        InputError: it holds one of them with other settings.
    """
    fresh = {}
    for name, runs in methods.items():
        # Through JSON, so that it compares with what the file holds.
        now = json.loads(json.dumps(asdict(next(iter(runs.values())))))
        if name not in result["methods"]:
            fresh[name] = now
        elif told := list(differences(result["methods"][name]["settings"], now, SPEED)):
            raise InputError(
                f"out = {str(out)!r} holds {name} with other settings: name another file\n       "
                + "\n       ".join(told)
            )
    return fresh


def learnt_from(config: Config) -> Config:
    """What training depends on, anything else at its default."""
    return config if config.early_stop.every else replace(config, evaluation=Evaluation())


def train_variant(
    configs: Mapping[str, Config], pipe: Pipeline
) -> tuple[dict[str, Adapter], dict[str, int], float]:
    """Trains a variant's runs.

    Returns:
        The adapters and the iterations that each took, by the run's name, and the seconds of
        training, compiling included.

    Raises:
        InputError: a setting does not fit the model, or a run diverged.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        plans, settled = {}, {}
        for name, given in configs.items():
            settled[name], _ = synonyms.settle(given)
            settled[name], _ = sentences.settle(settled[name], workdir / name)
            words = irrelevant.gather(settled[name], workdir / name)
            plans[name] = methods.plan(settled[name], pipe, words)
            (workdir / name).mkdir(exist_ok=True)
        began = time.perf_counter()
        found = make_adapters(settled, pipe, plans, workdir)
        if lost := [name for name in settled if name not in found]:
            raise RunError(guard.given_up(lost, next(iter(settled.values())).guard))
        seconds = round(time.perf_counter() - began, 1)
        logs = {name: workdir / name / METRICS for name in configs}
        counts = {n: len(log.read_text().splitlines()) for n, log in logs.items() if log.is_file()}
        return found, dict.fromkeys(configs, 0) | counts, seconds


def count(
    pipe: Pipeline, adapter: Adapter, config: Config, before: dict[str, Bool[np.ndarray, "B"]]
) -> dict[str, Any]:
    """What the judge finds with the base and with an adapter.

    Args:
        pipe: the frozen model.
        adapter: a run's.
        config: the run's.
        before: what it finds with the base, by concept; added to, so that nothing is drawn twice.

    Raises:
        InputError: the judge does not know a concept.
    """
    config, _ = synonyms.settle(config)
    judge, drawn = evaluate.plan(config, pipe)
    assert judge is not None, "run_study has made sure"

    def found(strength: float, title: str) -> Bool[np.ndarray, "B"]:
        pictures = draw_cases(pipe, drawn, config, [(adapter, strength)], title)
        return judged(judge, pictures, drawn)

    if config.concept not in before:
        before[config.concept] = found(0.0, f"of {config.concept}, before")
    after = found(config.evaluation.strength, f"of {config.concept}, after")
    cells = evaluate.counts(drawn, {"before": before[config.concept], "after": after})
    kind = judge.kind(config.concept)
    return {"concept": config.concept, "kind": kind, "seed": config.seed, "cells": cells}


def show(result: Mapping[str, Any]) -> None:
    """Prints a line for each variant."""
    table = Table(title=result["question"])
    for heading in ("", *summary.CELLS, "H"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, variant in result["variants"].items():
        cells = sums(variant)
        shares = [cells[c]["after"]["share"] if c in cells else None for c in summary.CELLS]
        shares.append(cells["H"]["after"])
        table.add_row(name, *("" if s is None else percent(s) for s in shares))
    Console().print(table)


def read_study(given: str) -> Study:
    """The study that "FILE:NAME" names.

    Raises:
        InputError: there is no such file, or no such study in it.
    """
    path, _, name = given.partition(":")
    if not Path(path).is_file():
        raise InputError(f"study = {given!r}: {path!r} is not a file; check the path")
    studies = runpy.run_path(path).get("STUDIES", {})
    if name not in studies:
        raise InputError(f"study = {given!r} is unknown; {nearest(name, studies)}")
    return studies[name]


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    run_study(read_study(given.study), Path(given.out))


if __name__ == "__main__":
    flags.DEFINE_string("study", None, "FILE:NAME of what is compared.", required=True)
    flags.DEFINE_string("out", None, "JSON file of the results.", required=True)
    app.run(main, flags_parser=parse_flags)
