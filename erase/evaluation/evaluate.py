"""Generate an evaluation's pictures before and after erasing, judge them and write the counts.

`erase.cli.evaluate` defines Acc_e, Acc_g, Acc_ir and H.
Axis letters: B pictures, h w picture sides, K examples, y x image tokens.
"""

import io
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import jax
import numpy as np

from convert.tables import show
from erase.config.schema import Config
from erase.evaluation.eval_prompts import (
    EvalPrompt,
    check_prompts,
    configured_judge,
    draw_cases,
    evaluation_prompts,
    inputs_digest,
    judge_pictures,
)
from erase.evaluation.judge import Judge
from erase.evaluation.notes import left_out_note, mean_note
from erase.evaluation.percent import interval, number_table, percent
from erase.evaluation.sheets import Group, captioned
from erase.evaluation.statistics import (
    CELLS,
    count_cells,
    harmonic_mean,
    has_mean,
)
from erase.model.attention_maps import TIMES, attention_maps
from erase.model.draw import png
from erase.runtime import finished, run_folder
from erase.runtime.cache import Cache
from erase.runtime.files import write
from erase.runtime.results import (
    AttentionExample,
    Cells,
    ConceptCounts,
    Counts,
    EvaluationResult,
    Example,
    SynonymCounts,
)
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

# Name of the result in `finished.json` and in the cache.
RESULT = "evaluation"


# Titles of the cells on the sheet of pictures.
TITLES = {"Acc_e": "“{}”", "Acc_g": "synonyms", "Acc_ir": "others"}


SIDES = {"before": "base", "after": "erased"}


# Smallest share of the base's pictures of a synonym that must show the concept for it to count.
DRAWN = 0.2


def plan_evaluation(
    config: Config, pipe: Pipeline, erased: Collection[str] = ()
) -> tuple[Judge | None, list[EvalPrompt]]:
    """Open the judge and return it with the evaluation's prompts; does all checks, cheaply.

    Args:
        config: the run's configuration.
        pipe: the base model.
        erased: further concepts that need not be preserved.

    Raises:
        InputError: the judge's folder cannot be used, it does not know a label, or a prompt is
            over the token limit.
    """
    settings = config.evaluation
    judge = configured_judge(config)
    drawn = evaluation_prompts(
        config, [word for word in concepts_to_keep(config, judge) if word not in erased]
    )
    if judge is None:
        # Nothing is counted, so only the report's pictures are generated.
        ranked = zip(drawn, _ranks(drawn), strict=True)
        drawn = [case for case, rank in ranked if rank < settings.examples]
    check_prompts(pipe, judge, drawn)
    return judge, drawn


def evaluate(
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    workdir: str | Path,
    erased: Collection[str] = (),
    files: str | None = None,
) -> EvaluationResult:
    """Evaluate an adapter and write the results; resumes after an interruption.

    Writes into `workdir`: `evaluation.json`, example pictures in `pictures/`, a sheet of these in
    `before_after.png`, and `attention.npz` (attention maps `before` and `after` [K, y, x]). Without
    a judge, nothing is counted. Batches of pictures are saved in `cache/` until all is written.

    Args:
        pipe: the base model.
        adapter: the erasing adapter.
        config: the run's configuration.
        workdir: the run's folder.
        erased: further concepts that the adapter erases.
        files: digest of the files that are read, by `erase.model.digest`; with None nothing is
            saved, and an interrupted evaluation starts again.

    Returns:
        Content of `evaluation.json`.

    Raises:
        InputError: a setting does not fit the judge or the model.
        PreemptedError: the system requested a stop; the pictures so far are saved.
    """
    workdir, settings = Path(workdir), config.evaluation
    judge, drawn = plan_evaluation(config, pipe, erased)
    inputs, cache = "", None
    if files is not None:
        inputs = evaluation_inputs(files, adapter, config, erased)
        if (earlier := finished_evaluation(workdir, inputs)) is not None:
            # Encoded in the same order as without an interruption, since rounding depends on it.
            pipe.remember([case.prompt for case in drawn], settings.batch)
            return earlier
        cache = Cache.opened(workdir / run_folder.CACHE, RESULT, inputs)
    result = _evaluated(pipe, adapter, config, workdir, (judge, drawn), cache)
    write(workdir / run_folder.EVALUATION, json.dumps(result, indent=2) + "\n")
    if cache is not None:
        finished.finish(workdir, RESULT, inputs, _files_of(result))
        cache.remove()
    _show(result)
    return result


def _evaluated(
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    workdir: Path,
    plan: tuple[Judge | None, list[EvalPrompt]],
    cache: Cache | None,
) -> EvaluationResult:
    """Draw the pictures, judge them, write all files but `evaluation.json`, return its content."""
    settings, (judge, drawn) = config.evaluation, plan
    # Strength 0 is the base bit for bit, and avoids compiling a second sampler.
    sides = {
        side: draw_cases(
            pipe, drawn, config, [(adapter, strength)], side, cache=cache and cache.part(side)
        )
        for side, strength in (("before", 0.0), ("after", settings.strength))
    }
    result: EvaluationResult = _settings_of(config, adapter)
    found = None
    if judge is None:
        result["note"] = (
            "No judge is configured for this model: pictures were drawn, no shares were measured."
        )
    else:
        found = {side: judge_pictures(judge, pictures, drawn) for side, pictures in sides.items()}
        result = {**result, **count(judge.kind(config.concept), drawn, found)}
    result["pictures"] = _write_examples(
        workdir, config.concept, drawn, sides, found, settings.examples
    )
    chosen = [p for p in result["pictures"] if p["cell"] == "Acc_e"]
    if chosen := chosen[: settings.attention_examples]:
        _write_attention(workdir, pipe, adapter, config, chosen)
        result["attention"] = [
            AttentionExample(
                prompt=p["prompt"], seed=p["seed"], before=p["before"], after=p["after"]
            )
            for p in chosen
        ]
        result["attention_times"] = list(TIMES)
    return result


def evaluation_inputs(
    files: str, adapter: Adapter, config: Config, erased: Collection[str] = ()
) -> str:
    """Return a digest of everything that an evaluation's result depends on; see `evaluate`."""
    return inputs_digest(files, adapter, config, {"erased": sorted(erased)})


def finished_evaluation(workdir: Path, inputs: str) -> EvaluationResult | None:
    """Return the result of an evaluation that is finished; None if it is not.

    Args:
        workdir: the run's folder.
        inputs: from `evaluation_inputs`.
    """
    return finished.read(workdir, RESULT, inputs, run_folder.EVALUATION)


def _files_of(result: EvaluationResult) -> list[str]:
    """Return the paths of a result's files in the run's folder."""
    files = [run_folder.EVALUATION, run_folder.BEFORE_AFTER]
    files += [run_folder.ATTENTION] if "attention" in result else []
    pictures = result.get("pictures", [])
    return files + [name for entry in pictures for name in (entry["before"], entry["after"])]


def _settings_of(config: Config, adapter: Adapter) -> EvaluationResult:
    """Return the settings to record with an evaluation."""
    settings = config.evaluation
    return {
        "concept": config.concept,
        "model": config.model.path,
        "strength": settings.strength,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "height": config.height,
        "width": config.width,
        "adapter_parameters": sum(leaf.size for leaf in jax.tree.leaves(adapter.lora)),
    }


def concepts_to_keep(config: Config, judge: Judge | None) -> Sequence[str]:
    """Return the labels to preserve: the configuration's, or all others of the concept's kind."""
    settings = config.evaluation
    if settings.others or judge is None:
        return settings.others
    labels = judge.labels(judge.kind(config.concept))
    return [label for label in labels if label != judge.label(config.concept)]


def _ranks(drawn: Sequence[EvalPrompt]) -> list[int]:
    """Return the index of each prompt within its cell."""
    counters = defaultdict(itertools.count)
    return [next(counters[case.cell]) for case in drawn]


def count(kind: str, drawn: Sequence[EvalPrompt], found: Mapping[str, np.ndarray]) -> Counts:
    """Compute all counts of a run.

    Args:
        kind: kind of its concept.
        drawn: the prompts.
        found: whether the judge finds the sought concept, by side; "before" is the base model.
    """
    cells = evaluation_cells(drawn, found)
    counts: Counts = {
        "kind": kind,
        "cells": cells,
        "synonyms": by_synonym(drawn, found),
        "concepts": by_concept(drawn, found),
    }
    if has_mean(cells):
        counts["H"] = {side: harmonic_mean(cells, side) for side in found}
    return counts


def evaluation_cells(drawn: Sequence[EvalPrompt], found: Mapping[str, np.ndarray]) -> Cells:
    """Compute shares by cell and side, with intervals; leaves out synonyms unknown to the base.

    Args:
        drawn: the prompts.
        found: whether the judge finds the sought concept, by side; "before" is the base model.
    """
    synonyms = by_synonym(drawn, found)
    away = {(row["concept"], row["word"]) for row in synonyms if row["left_out"]}
    rows = [
        i
        for i, each in enumerate(drawn)
        if not (each.cell == "Acc_g" and (each.sought, each.word) in away)
    ]
    hits = {side: hit[rows] for side, hit in found.items()}
    cells = count_cells([drawn[i].cell for i in rows], hits)
    return {cell: cells[cell] for cell in CELLS if cell in cells}


def by_synonym(drawn: Sequence[EvalPrompt], found: Mapping[str, np.ndarray]) -> list[SynonymCounts]:
    """Compute counts for every synonym, in the configuration's order, and whether it is left out.

    No synonym is left out if the base model does not generate the concept from its name either.
    """
    rows = []
    for sought, word in dict.fromkeys((c.sought, c.word) for c in drawn if c.cell == "Acc_g"):
        named = [i for i, c in enumerate(drawn) if (c.cell, c.sought) == ("Acc_e", sought)]
        mine = [
            i for i, c in enumerate(drawn) if (c.cell, c.sought, c.word) == ("Acc_g", sought, word)
        ]
        before, after = (int(found[side][mine].sum()) for side in SIDES)
        known = found["before"][named].sum() >= DRAWN * len(named)
        left_out = bool(known and before < DRAWN * len(mine))
        rows.append(
            SynonymCounts(
                concept=sought,
                word=word,
                before=before,
                after=after,
                of=len(mine),
                left_out=left_out,
            )
        )
    return rows


def by_concept(drawn: Sequence[EvalPrompt], found: Mapping[str, np.ndarray]) -> list[ConceptCounts]:
    """Compute counts for every concept to preserve, those that lost most first."""
    of = Counter(case.sought for case in drawn if case.cell == "Acc_ir")
    rows = []
    for concept in sorted(of):
        mine = [i for i, c in enumerate(drawn) if c.cell == "Acc_ir" and c.sought == concept]
        before, after = (int(found[side][mine].sum()) for side in SIDES)
        rows.append(ConceptCounts(concept=concept, before=before, after=after, of=of[concept]))
    return sorted(rows, key=lambda row: row["after"] - row["before"])


def _write_examples(
    workdir: Path,
    concept: str,
    drawn: Sequence[EvalPrompt],
    sides: dict[str, np.ndarray],
    found: dict[str, np.ndarray] | None,
    examples: int,
) -> list[Example]:
    """Write the first pictures of every cell, without selection, and return their entries."""
    kept = []
    shown: dict[str, list[int]] = {}
    for index, (case, rank) in enumerate(zip(drawn, _ranks(drawn), strict=True)):
        if rank >= examples:
            continue
        shown.setdefault(case.cell, []).append(index)
        entry: dict[str, str | int | bool | None] = asdict(case)
        for side, pictures in sides.items():
            name = f"{run_folder.PICTURES}/{case.cell}-{rank:02}-{side}.png"
            write(workdir / name, png(pictures[index], {"prompt": case.prompt}))
            entry[side] = name
            entry[f"found_{side}"] = None if found is None else bool(found[side][index])
        kept.append(cast(Example, entry))
    groups = [
        Group(
            TITLES[cell].format(concept),
            [drawn[index].prompt for index in rows],
            {SIDES[side]: pictures[rows] for side, pictures in sides.items()},
        )
        for cell, rows in shown.items()
    ]
    write(workdir / run_folder.BEFORE_AFTER, png(captioned(groups)))
    return kept


def _write_attention(
    workdir: Path,
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    chosen: Sequence[Example],
) -> None:
    """Write the attention maps of examples."""
    prompts, seeds = [p["prompt"] for p in chosen], [p["seed"] for p in chosen]
    maps = attention_maps(pipe, adapter, config, prompts, seeds)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **maps)  # pyright: ignore[reportArgumentType]
    write(workdir / run_folder.ATTENTION, buffer.getvalue())


def _show(result: EvaluationResult) -> None:
    """Print the counts."""
    if "cells" not in result:
        show(result.get("note", ""))
        return
    title = f"Erasing {result['concept']!r}: pictures in which the judge detects the concept"
    headings = ("measure", "pictures", "before", "95 % interval", "after", "95 % interval")
    table = number_table(title, headings)
    for cell, sides in result["cells"].items():
        texts = []
        for side in ("before", "after"):
            texts += [percent(sides[side]), interval(sides[side])]
        table.add_row(cell, str(sides["after"]["of"]), *texts)
    if "H" in result:
        before, after = (percent(result["H"][side]) for side in ("before", "after"))
        table.add_row("H", "", before, "", after, "")
    show(table, *filter(None, (left_out_note(result), mean_note(result))))
