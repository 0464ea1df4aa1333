"""Compare variants: train each on the same concepts and seeds, and evaluate it.

    python -m benchmarks.experiments.study --study losses --out docs/results/losses.json

STUDIES defines the variants. All runs of a variant train at once; a variant that differs from the
previous one only in the evaluation is not trained again. Counts are written as soon as they are
computed; variants already in the output are skipped, and an interrupted one resumes.
"""

import json
import platform
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from absl import app, flags
from jaxtyping import Bool

from benchmarks.results.schemas import StudyResult, StudyRow, Variant
from benchmarks.results.tables import sums
from convert import tables
from erase.cli.ending import ends
from erase.cli.flags import begin, parse_flags
from erase.config.schema import Config
from erase.evaluation import evaluate, statistics
from erase.evaluation.eval_prompts import base_settings, configured_judge, draw_and_judge
from erase.evaluation.percent import number_table, percent
from erase.model.open import open_model
from erase.report.tables import cell_side
from erase.runs import EACH, load_runs, merge_fields
from erase.runtime import lock
from erase.runtime.cache import Cache, digest_of
from erase.runtime.files import write
from erase.runtime.run_folder import PICTURES
from erase.runtime.signals import listening
from erase.training.prepare import runs_with_synonyms, shared_settings
from erase.training.variants import (
    Intermediate,
    learnt_from,
    resume_results,
    runs_digest,
    train_variant,
)
from flux_jax.errors import InputError, exits_cleanly, nearest
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline


@dataclass(frozen=True)
class Study:
    """Variants to compare.

    Attributes:
        question: the study's question, in one sentence.
        concepts: fields of `Config` for each concept, by its name.
        variants: changes to all of them, by the variant's name; an empty one is the default.
        seeds: of training; each variant is trained on each concept once per seed.
    """

    question: str
    concepts: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]


def _runs_of(study: Study, changes: Mapping[str, Any]) -> dict[str, Config]:
    """A variant's runs: every concept with every seed."""
    each = {
        f"{name}-{seed}": merge_fields(merge_fields(fields, changes), {"seed": seed})
        for name, fields in study.concepts.items()
        for seed in study.seeds
    }
    return load_runs({EACH: each})


def run_study(study: Study, out: Path) -> StudyResult:
    """Train and evaluate every variant of a study, and write the results to `out`, a JSON file.

    Returns:
        The file's contents: the question, the device, and for each variant its changes, its
        seconds of training and a row for each run: concept, seed, iterations and cells.

    Raises:
        InputError: a setting cannot be used, the file holds another study, or another command
            writes to it.
    """
    with lock.locked([lock.of_file(out)]):
        result = _finished(study, out)
    show(result)
    return result


def _finished(study: Study, out: Path) -> StudyResult:
    """Return the results, and measure those that the file lacks."""
    plans = {variant: _runs_of(study, changes) for variant, changes in study.variants.items()}
    first = shared_settings(next(iter(plans.values())))
    if first.evaluation.judge is None:
        raise InputError("evaluation.judge = None: a study counts; name the judge's folder")
    head = {
        "question": study.question,
        "concepts": list(study.concepts),
        "seeds": list(study.seeds),
        "pictures": first.evaluation.pictures,
    }
    result = resume_results(StudyResult, out, head, "variants", "study")
    fresh = {
        variant: configs
        for variant, configs in plans.items()
        if result["variants"].get(variant, {}).get("changes") != _changes(study, variant)
    }
    if fresh:
        _measure(study, fresh, result, out)
    return result


def _changes(study: Study, variant: str) -> dict[str, Any]:
    """A variant's changes, as its results hold them."""
    return json.loads(json.dumps(study.variants[variant]))


def _measure(
    study: Study, plans: Mapping[str, Mapping[str, Config]], result: StudyResult, out: Path
) -> None:
    """Train and evaluate variants, and write each one's results as soon as they are computed."""
    every = {f"{variant} {n}": c for variant, runs in plans.items() for n, c in runs.items()}
    for config in every.values():
        configured_judge(config)
    intermediate = Intermediate.of(out, cast(dict[str, Any], result), every)
    pipe = open_model(shared_settings(every))
    intermediate.repeat_encoding(pipe)
    before: dict[str, np.ndarray] = {}
    last, trained = None, None
    for variant, configs in plans.items():
        learnt = {name: learnt_from(config) for name, config in configs.items()}
        if trained is None or list(learnt.values()) != last:
            last, trained = list(learnt.values()), train_variant(configs, pipe, intermediate)
        adapters, iterations, seconds = trained
        counts = intermediate.part("counts", runs_digest(configs))
        rows: list[StudyRow] = [
            {
                "name": name.rpartition("-")[0],
                "iterations": iterations[name],
                **count(pipe, adapters[name], config, before, (counts.part(name), intermediate)),
            }
            for name, config in runs_with_synonyms(configs).items()
        ]
        changes = _changes(study, variant)
        result["variants"][variant] = {"changes": changes, "seconds": seconds, "rows": rows}
        result["device"] = jax.devices()[0].device_kind or platform.machine()
        result["jax"] = jax.__version__
        write(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    intermediate.remove()


def count(
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    before: dict[str, Bool[np.ndarray, "B"]],
    saved: tuple[Cache, Intermediate] | None = None,
) -> StudyRow:
    """Evaluate the base model and an adapter with the judge.

    Args:
        pipe: the frozen model.
        adapter: a run's.
        config: the run's, with its synonyms.
        before: hits of the base model, by concept; updated, so that no picture is generated twice.
        saved: cache of this run, and the study's intermediate results; None saves nothing.

    Raises:
        InputError: the judge does not know a concept.
    """
    judge, drawn = evaluate.plan_evaluation(config, pipe)
    assert judge is not None, "run_study has made sure"

    def found(strength: float, side: str, cache: Cache | None) -> Bool[np.ndarray, "B"]:
        title, pictures = f"of {config.concept}, {side}", cache and cache.part(PICTURES)

        def hits() -> list[bool]:
            adapters = [(adapter, strength)]
            found = draw_and_judge(pipe, judge, drawn, config, adapters, title, cache=pictures)
            if saved is not None:
                saved[1].save_encoding(pipe)
            return found.tolist()

        values = np.array(cache.value("hits", hits) if cache else hits(), bool)
        if pictures:
            pictures.remove()
        return values

    if config.concept not in before:
        inputs = digest_of([base_settings(config), [asdict(case) for case in drawn]])
        # Of all concepts, so that none is removed before the study is finished.
        base = saved and saved[1].part("base", None).part(inputs)
        before[config.concept] = found(0.0, "before", base)
    after = found(config.evaluation.strength, "after", saved and saved[0])
    cells = evaluate.evaluation_cells(drawn, {"before": before[config.concept], "after": after})
    kind = judge.kind(config.concept)
    return {"concept": config.concept, "kind": kind, "seed": config.seed, "cells": cells}


def show(result: StudyResult) -> None:
    """Print a row for each variant; with several seeds, also the range of H over them."""
    headings = ("", *statistics.CELLS, "H", *(("H by seed",) if len(result["seeds"]) > 1 else ()))
    table = number_table(result.get("question", ""), headings)
    for name, variant in result["variants"].items():
        cells = sums(variant)
        shares = [cell_side(cells, cell, "after") for cell in (*statistics.CELLS, "H")]
        row = ["" if s is None else percent(s) for s in shares]
        if len(result["seeds"]) > 1:
            by_seed = sorted(_of_seeds(variant))
            row.append(f"{percent(by_seed[0])} to {percent(by_seed[-1])}" if by_seed else "")
        table.add_row(name, *row)
    tables.show(table)


def _of_seeds(variant: Variant) -> list[float]:
    """Return H of each seed, over all concepts; of those for which it is known."""
    seeds = sorted({row["seed"] for row in variant["rows"]})
    every = [
        statistics.pooled(row["cells"] for row in variant["rows"] if row["seed"] == seed)
        for seed in seeds
    ]
    return [cells["H"]["after"] for cells in every if "H" in cells]


def read_study(given: str) -> Study:
    """The study "NAME" of `studies.py`, or "FILE:NAME".

    Raises:
        InputError: there is no such file, or no such study in it.
    """
    path, _, name = given.rpartition(":")
    path = path or str(Path(__file__).with_name("studies.py"))
    if not Path(path).is_file():
        raise InputError(f"study = {given!r}: {path!r} is not a file; check the path")
    studies = runpy.run_path(path).get("STUDIES", {})
    if name not in studies:
        raise InputError(f"study = {given!r} is unknown; {nearest(name, studies)}")
    return studies[name]


@exits_cleanly
@listening()
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    run_study(read_study(given.study), Path(given.out))


if __name__ == "__main__":
    flags.DEFINE_string("study", None, "NAME in studies.py, or FILE:NAME.", required=True)
    flags.DEFINE_string("out", None, "JSON file of the results.", required=True)
    with ends():
        app.run(main, flags_parser=parse_flags)
