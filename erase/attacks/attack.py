"""Attack an erased concept by families of attacks, and count their successes by the judge.

`erase.cli.attack` describes what is compared. Pictures of disguised prompts are drawn by the base
model, by the base with the concept's tokens muted, and with the adapter. A family that searches
attacks the base model and the erased one separately: a search that fails on the base says nothing
about erasing.
Axis letters: B pictures.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from convert.tables import show
from erase.attacks import families
from erase.attacks.disguises import attacks
from erase.attacks.families import SEARCHES, Budget, access_of, described
from erase.attacks.protocol import Attempt, Target, search_of
from erase.config.schema import Config
from erase.evaluation.eval_prompts import (
    EvalPrompt,
    check_prompts,
    configured_judge,
    draw_and_judge,
    evaluation_prompts,
    inputs_digest,
)
from erase.evaluation.judge import Judge
from erase.evaluation.percent import csv_of_shares, interval, number_table, percent
from erase.evaluation.statistics import count_cells
from erase.runtime import finished
from erase.runtime.cache import Cache
from erase.runtime.files import write
from erase.runtime.records import budget_text
from erase.runtime.results import AttackResult
from erase.runtime.run_folder import ATTACKS_STEM as STEM
from erase.runtime.run_folder import CACHE
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.tree import flatten

SIDES = ("before", "silenced", "after")
# Of families that search.
SEARCHED = ("before", "after")
Families = Mapping[str, Budget | None]
DEFAULT: Families = dict.fromkeys(families.DISGUISES)


def attack(
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    workdir: str | Path,
    pictures: int = 64,
    files: str | None = None,
    wanted: Families = DEFAULT,
) -> AttackResult:
    """Attack the base model, the base with the concept's tokens muted, and the adapter.

    An interrupted attack resumes from the searches and the batches of pictures saved in `cache/`.

    Args:
        pipe: the base model.
        adapter: the erasing adapter.
        config: the run's configuration.
        workdir: the run's folder.
        pictures: number of pictures per family.
        files: digest of the files that are read, by `erase.model.digest`; with None nothing is
            saved, and an interrupted attack starts again.
        wanted: the families, with the budget of each that searches; from
            `erase.attacks.families.chosen`.

    Returns:
        Content of `attacks.json`: in `cells`, by family, the share of successful attacks `before`,
        `silenced` and `after`; each family's prompts, access and budget; and what searches found.

    Raises:
        InputError: there is no judge, it does not know the concept, a prompt cannot be used, or a
            family lacks what it needs.
        PreemptedError: the system requested a stop; the searches and pictures so far are saved.
    """
    workdir = Path(workdir)
    searches = {name: budget for name, budget in wanted.items() if name in SEARCHES}
    judge, eval_prompts = _planned(pipe, adapter, config, pictures, wanted)
    inputs, cache = "", None
    if files is not None:
        inputs = attack_inputs(files, adapter, config, pictures, wanted)
        if (earlier := finished_attack(workdir, inputs)) is not None:
            # Encoded in the same order as without an interruption, since rounding depends on it.
            pipe.remember([each.prompt for each in eval_prompts], config.evaluation.batch)
            return earlier
        cache = Cache.opened(workdir / CACHE, STEM, inputs)
    result = _empty(config, judge)
    if eval_prompts:
        _disguised(pipe, judge, eval_prompts, config, adapter, cache, result)
    for name, budget in searches.items():
        _searched(pipe, judge, config, adapter, (name, budget, pictures), cache, result)
    write(workdir / f"{STEM}.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write(workdir / f"{STEM}.csv", table(result))
    if cache is not None:
        finished.finish(workdir, STEM, inputs, [f"{STEM}.json", f"{STEM}.csv"])
        cache.remove()
    _show(result)
    return result


def _planned(
    pipe: Pipeline, adapter: Adapter, config: Config, pictures: int, wanted: Families
) -> tuple[Judge, list[EvalPrompt]]:
    """Return the judge and the disguised prompts, after all checks; see `attack`."""
    judge = configured_judge(config)
    if judge is None:
        raise InputError("evaluation.judge = None: attacks need a judge; name its folder")
    ordered = judge.kind(config.concept) == "relation"
    searches = [name for name in wanted if name in SEARCHES]
    drawn = attacks(config, pictures, ordered, wanted) if len(searches) < len(wanted) else []
    if not drawn and not searches:
        raise InputError(
            f"family = {', '.join(wanted)}: the run has no prompts of it, for lack of synonyms or "
            "since its concept depends on the order of words; name another"
        )
    plain = evaluation_prompts(config, ()) if searches else []
    check_prompts(pipe, judge, [*drawn, *plain])
    if searches:
        check_access(pipe, adapter, searches)
    return judge, drawn


def _empty(config: Config, judge: Judge) -> AttackResult:
    """Return the content of `attacks.json` before any family is counted."""
    return {
        "concept": config.concept,
        "kind": judge.kind(config.concept),
        "model": config.model.path,
        "strength": config.evaluation.strength,
        "seed": config.evaluation.seed,
        "cells": {},
        "prompts": {},
        "access": {},
        "budgets": {},
        "found": {},
    }


def _disguised(
    pipe: Pipeline,
    judge: Judge,
    drawn: Sequence[EvalPrompt],
    config: Config,
    adapter: Adapter,
    cache: Cache | None,
    result: AttackResult,
) -> None:
    """Draw and judge the pictures of disguised prompts, and add their shares to the result."""
    ways = ((0.0, None), (0.0, config.concept), (config.evaluation.strength, None))
    hits: dict[str, np.ndarray] = {}
    for side, (strength, silenced) in zip(SIDES, ways, strict=True):
        adapters, saved = [(adapter, strength)], cache and cache.part(side)
        hits[side] = draw_and_judge(pipe, judge, drawn, config, adapters, side, silenced, saved)
    cells = count_cells([each.cell for each in drawn], hits)
    result["cells"] |= cells
    for family, sides in cells.items():
        of_family = {each.prompt for each in drawn if each.cell == family}
        result["prompts"][family] = sorted(of_family)
        _describe(result, family, family, None, sides["after"]["of"])


def _searched(
    pipe: Pipeline,
    judge: Judge,
    config: Config,
    adapter: Adapter,
    asked: tuple[str, Budget | None, int],
    cache: Cache | None,
    result: AttackResult,
) -> None:
    """Run a family's searches, draw and judge, and add the shares to the result."""
    family, budget, pictures = asked
    attack, attempts = search_of(family), {}
    hits: dict[str, dict[str, np.ndarray]] = {}
    for side in SEARCHED:
        adapters = [(adapter, config.evaluation.strength)] if side == "after" else []
        target = Target(pipe, adapters, config, side)
        part = cache and cache.part(f"{family}, {side}")
        if attack.needs_model or not attempts:
            attempts = attack(target, budget, part)
        for cell, attempt in attempts.items():
            if not attack.needs_model:
                attempt = Attempt(attempt.prompts, [adapters], attempt.notes)
            saved = part and part.part(cell)
            found = judged(pipe, judge, config, attempt, pictures, f"{cell}, {side}", saved)
            hits.setdefault(cell, {})[side] = found
            notes = dict(attempt.notes) | {"prompts": sorted(set(attempt.prompts))}
            result["found"].setdefault(cell, {})[side] = notes
    for cell, by_side in hits.items():
        result["cells"] |= count_cells([cell] * pictures, by_side)
        both = {prompt for notes in result["found"][cell].values() for prompt in notes["prompts"]}
        result["prompts"][cell] = sorted(both)
        _describe(result, cell, family, budget, pictures)


def judged(
    pipe: Pipeline,
    judge: Judge,
    config: Config,
    attempt: Attempt,
    pictures: int,
    title: str,
    saved: Cache | None,
) -> Bool[np.ndarray, "B"]:
    """Draw what an attack has found, and judge whether each picture shows the concept.

    Args:
        pipe: the base model.
        judge: judge of the configuration.
        config: the run's configuration.
        attempt: the prompts and models.
        pictures: B.
        title: title of the progress bar.
        saved: saves each batch, and has those of an interrupted command.
    """
    hits = np.zeros(pictures, bool)
    seed, count = config.evaluation.seed, len(attempt.models)
    prompts = [attempt.prompts[index // count % len(attempt.prompts)] for index in range(pictures)]
    for row, adapters in enumerate(attempt.models[:pictures]):
        mine = range(row, pictures, count)
        drawn = [EvalPrompt("", prompts[i], seed + i, config.concept) for i in mine]
        part = saved and saved.part(str(row))
        hits[row::count] = draw_and_judge(pipe, judge, drawn, config, adapters, title, None, part)
    return hits


def check_access(pipe: Pipeline, adapter: Adapter, wanted: Sequence[str]) -> None:
    """Check that the adapter leaves the families something to attack.

    Raises:
        InputError: it changes no layer of the transformer, or does not fit the model.
    """
    pipe.check(adapter)
    if not flatten(adapter.lora):
        raise InputError(
            f"adapter: it changes no layer of the transformer, and {', '.join(wanted)} attack the "
            "erased transformer; name one that was trained, or a family of disguised prompts"
        )


def _describe(
    result: AttackResult, cell: str, family: str, budget: Budget | None, pictures: int
) -> None:
    """Add a family's access and budget to the result."""
    result["access"][cell] = access_of(family)
    result["budgets"][cell] = described(budget, pictures)


def attack_inputs(
    files: str, adapter: Adapter, config: Config, pictures: int, wanted: Families = DEFAULT
) -> str:
    """Return a digest of everything that an attack's result depends on; see `attack`."""
    more: dict[str, Any] = {"pictures": pictures}
    if dict(wanted) != DEFAULT:
        more["families"] = {name: budget and asdict(budget) for name, budget in wanted.items()}
        more["prompts"] = list(config.prompts)
    return inputs_digest(files, adapter, config, more)


def finished_attack(workdir: Path, inputs: str) -> AttackResult | None:
    """Return the result of an attack that is finished; None if it is not.

    Args:
        workdir: the run's folder.
        inputs: from `attack_inputs`.
    """
    return finished.read(workdir, STEM, inputs, f"{STEM}.json")


def table(result: AttackResult) -> str:
    """Format the families as comma-separated values, with a line for each family and side."""
    rows = [
        ((family, side, result["access"][family], budget_text(result["budgets"][family])), share)
        for family, sides in result["cells"].items()
        for side, share in sides.items()
    ]
    return csv_of_shares(("family", "side", "access", "budget"), rows)


def _show(result: AttackResult) -> None:
    title = f"Attacks on {result['concept']!r}: pictures in which the judge detects it"
    headings = ("attack", "access", "budget", "pictures", *SIDES, "95 % interval")
    shown = number_table(title, headings, left=3)
    for family, sides in result["cells"].items():
        after = sides["after"]
        shares = [percent(sides[side]) if side in sides else "" for side in SIDES]
        described = result["access"][family], budget_text(result["budgets"][family])
        shown.add_row(family, *described, str(after["of"]), *shares, interval(after))
    show(shown)
