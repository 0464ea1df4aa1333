"""Counts what an adapter erased and what it kept, by a judge that looks at pictures.

    python -m erase.evaluate --config configs/emoji_soccer_ball.py --workdir RUN

Where the configuration names several runs, each is counted and a summary follows.

Acc_e is the share of pictures of prompts with the concept in which the judge finds it, Acc_g the
same for prompts with its synonyms, Acc_ir the share of pictures of other concepts in which the
judge finds those; H is their harmonic mean, the first two taken from 1. Each is measured on the
base and with the adapter, from the same noise.
Axis letters: B pictures, h w picture sides, K examples, y x image tokens.
"""

import functools
import io
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jaxtyping import Bool, UInt8
from rich.console import Console
from rich.table import Table

from convert.errors import InputError, exits_cleanly
from erase import report
from erase.attention import TIMES, attention_maps
from erase.command import FLAG, begin, define_flag, parse_flags
from erase.config import Config, load_runs
from erase.judge import Judge, share
from erase.pictures import draw, png, sheet, write
from erase.prompts import phrase
from erase.sample import read_adapter
from erase.summary import CELLS, harmonic_mean, write_summary
from erase.synonyms import settle
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline, load


@dataclass(frozen=True)
class Case:
    """One picture to draw twice.

    Attributes:
        cell: one of `CELLS`.
        prompt: what to draw.
        seed: of the noise.
        sought: the concept that the judge is to look for.
    """

    cell: str
    prompt: str
    seed: int
    sought: str


def cases(config: Config, others: Sequence[str]) -> list[Case]:
    """The pictures that an evaluation draws.

    Templates and words alternate, so that every cell shows all of them as evenly as may be.

    Args:
        config: the run's configuration.
        others: the concepts that should stay.
    """
    settings = config.evaluation
    shuffled = np.random.default_rng(settings.seed).permutation(sorted(others)).tolist()
    words = {
        "Acc_e": [(config.concept, config.concept)],
        "Acc_g": [(synonym, config.concept) for synonym in config.synonyms],
        "Acc_ir": [(other, other) for other in shuffled],
    }
    drawn = []
    for cell, pairs in words.items():
        for index in range(settings.pictures if pairs else 0):
            word, sought = pairs[index % len(pairs)]
            # After each common multiple the templates move on by one, or pairs would repeat.
            turn = math.lcm(len(pairs), len(settings.templates))
            template = settings.templates[(index + index // turn) % len(settings.templates)]
            drawn.append(Case(cell, phrase(template, word), settings.seed + index, sought))
    return drawn


def judged(
    judge: Judge, pictures: UInt8[np.ndarray, "B h w 3"], drawn: Sequence[Case]
) -> Bool[np.ndarray, "B"]:
    """Whether the judge finds in each picture what its case asks for.

    A relation is asked for between the first two entities that the prompt names.

    Raises:
        InputError: the judge knows no such label, or a relation's prompt does not name a pair.
    """
    labels = [judge.label(case.sought) for case in drawn]
    kinds = [judge.kind(label) for label in labels]
    found = np.zeros(len(drawn), bool)
    plain = [i for i, kind in enumerate(kinds) if kind != "relation"]
    if plain:
        found[plain] = judge.found(pictures[plain], [labels[i] for i in plain])
    related = [i for i, kind in enumerate(kinds) if kind == "relation"]
    if related:
        pairs = np.array([named_pair(judge, drawn[i].prompt) for i in related])
        wanted = [judge.config.relations.index(labels[i]) for i in related]
        logits = judge.relation(pictures[related], pairs[:, 0], pairs[:, 1])
        found[related] = logits.argmax(-1) == np.array(wanted)
    return found


def named_pair(judge: Judge, prompt: str) -> tuple[int, int]:
    """Indices of the first two entities that a prompt names, longer names first.

    Raises:
        InputError: it names fewer than two.
    """
    names = sorted(judge.config.entities, key=len, reverse=True)
    pattern = rf"\b({'|'.join(map(re.escape, names))})s?\b"
    named = [match.group(1) for match in re.finditer(pattern, prompt)]
    if len(named) < 2:
        raise InputError(
            f"prompt = {prompt!r}: a relation needs two entities that the judge knows, "
            'for instance "a cat {} a dog"'
        )
    first, second = (judge.config.entities.index(name) for name in named[:2])
    return first, second


def plan(config: Config, pipe: Pipeline) -> tuple[Judge | None, list[Case]]:
    """The judge and what is drawn for it; cheap, and complete in its checks.

    Raises:
        InputError: the judge's folder cannot be used, it does not know a label, or a prompt is
            over the token limit.
    """
    settings = config.evaluation
    judge = _judge(settings.judge) if settings.judge else None
    drawn = cases(config, _others(config, judge))
    if judge is None:
        # Nobody counts, so only what the report shows is drawn.
        ranked = zip(drawn, _ranks(drawn), strict=True)
        drawn = [case for case, rank in ranked if rank < settings.examples]
    check(pipe, judge, drawn)
    return judge, drawn


# Many runs in a row ask the same one.
_judge = functools.lru_cache(maxsize=1)(Judge.load)


def check(pipe: Pipeline, judge: Judge | None, drawn: Sequence[Case]) -> None:
    """Makes sure that every prompt can be drawn and judged; cheap.

    Raises:
        InputError: a prompt is over the token limit, the judge does not know its label, or a
            relation's prompt does not name a pair.
    """
    pipe.tokenize([case.prompt for case in drawn])
    if judge is not None:
        for case in drawn:
            if judge.kind(case.sought) == "relation":
                named_pair(judge, case.prompt)


def evaluate(
    pipe: Pipeline, adapter: Adapter, config: Config, workdir: str | Path
) -> dict[str, Any]:
    """Draws, judges and writes.

    Writes `evaluation.json`, example pictures to `pictures/`, all of them in `before_after.png`,
    and `attention.npz` (attention maps `before` and `after` [K, y, x]) in `workdir`. Without a
    judge there are pictures and maps only.

    Args:
        pipe: the base model.
        adapter: what erases.
        config: the run's configuration.
        workdir: the run's folder.

    Returns:
        What `evaluation.json` holds.

    Raises:
        InputError: a setting does not fit the judge or the model.
    """
    workdir, settings = Path(workdir), config.evaluation
    judge, drawn = plan(config, pipe)
    # Strength 0 is the base bit for bit, and spares the compiler a second sampler.
    sides = {
        side: draw_cases(pipe, drawn, config, [(adapter, strength)], side)
        for side, strength in (("before", 0.0), ("after", settings.strength))
    }
    result: dict[str, Any] = {
        "concept": config.concept,
        "model": str(config.model),
        "strength": settings.strength,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "height": config.height,
        "width": config.width,
        "adapter_parameters": sum(leaf.size for leaf in jax.tree.leaves(adapter.lora)),
    }
    found = None
    if judge is None:
        result["note"] = (
            "No judge is configured for this model: nothing was counted, pictures were drawn."
        )
    else:
        found = {side: judged(judge, pictures, drawn) for side, pictures in sides.items()}
        result |= {
            "kind": judge.kind(config.concept),
            "cells": (cells := counts(drawn, found)),
            "concepts": _by_concept(drawn, found),
        }
        if set(cells) == set(CELLS):
            result["H"] = {side: harmonic_mean(cells, side) for side in found}
    result["pictures"] = _write_examples(workdir, drawn, sides, found, settings.examples)
    result |= _write_attention(workdir, pipe, adapter, config, result["pictures"])
    write(workdir / "evaluation.json", json.dumps(result, indent=2) + "\n")
    _show(result)
    return result


def _others(config: Config, judge: Judge | None) -> Sequence[str]:
    """Labels that should stay: the configuration's, or all of the concept's kind."""
    settings = config.evaluation
    if settings.others or judge is None:
        return settings.others
    labels = {
        "entity": judge.config.entities,
        "style": judge.config.styles,
        "relation": judge.config.relations,
    }[judge.kind(config.concept)]
    return [label for label in labels if label != judge.label(config.concept)]


def _ranks(drawn: Sequence[Case]) -> list[int]:
    """How many cases of the same cell come before each."""
    counters = defaultdict(itertools.count)
    return [next(counters[case.cell]) for case in drawn]


def draw_cases(
    pipe: Pipeline,
    drawn: Sequence[Case],
    config: Config,
    adapters: Sequence[tuple[Adapter, float]],
    title: str,
    silenced: str | None = None,
) -> UInt8[np.ndarray, "B h w 3"]:
    """The cases' pictures, as the configuration's evaluation draws them.

    Args:
        pipe: the base model.
        drawn: what to draw.
        config: the run's configuration.
        adapters: with their strengths.
        title: shown at the progress bar.
        silenced: a concept whose tokens give nothing to the picture.
    """
    settings = config.evaluation
    return draw(
        pipe,
        [case.prompt for case in drawn],
        [case.seed for case in drawn],
        height=config.height,
        width=config.width,
        steps=settings.steps,
        guidance=settings.guidance,
        adapters=adapters,
        silenced=silenced,
        batch=settings.batch,
        title=f"pictures {title}",
    )


def counts(drawn: Sequence[Case], found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Shares by cell and side, with their intervals."""
    cells = {}
    for cell in CELLS:
        rows = [i for i, case in enumerate(drawn) if case.cell == cell]
        if rows:
            cells[cell] = {s: share(int(hits[rows].sum()), len(rows)) for s, hits in found.items()}
    return cells


def _by_concept(drawn: Sequence[Case], found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Counts for every concept that should stay, those that lost most first."""
    of = Counter(case.sought for case in drawn if case.cell == "Acc_ir")
    rows = []
    for concept in sorted(of):
        mine = [i for i, c in enumerate(drawn) if c.cell == "Acc_ir" and c.sought == concept]
        hits = {side: int(hit[mine].sum()) for side, hit in found.items()}
        rows.append({"concept": concept, **hits, "of": of[concept]})
    return sorted(rows, key=lambda row: row["after"] - row["before"])


def _write_examples(
    workdir: Path,
    drawn: Sequence[Case],
    sides: dict[str, np.ndarray],
    found: dict[str, np.ndarray] | None,
    examples: int,
) -> list[dict[str, Any]]:
    """Keeps the first pictures of every cell: the first, not the best."""
    kept = []
    shown: dict[str, list[int]] = {}
    for index, (case, rank) in enumerate(zip(drawn, _ranks(drawn), strict=True)):
        if rank >= examples:
            continue
        shown.setdefault(case.cell, []).append(index)
        entry: dict[str, Any] = asdict(case)
        for side, pictures in sides.items():
            name = f"pictures/{case.cell}-{rank:02}-{side}.png"
            write(workdir / name, png(pictures[index], {"prompt": case.prompt}))
            entry[side] = name
            entry[f"found_{side}"] = None if found is None else bool(found[side][index])
        kept.append(entry)
    # Two rows a cell: before, and after.
    columns = max(map(len, shown.values()))
    rows = [sheet(pictures[i], columns) for i in shown.values() for pictures in sides.values()]
    write(workdir / "before_after.png", png(np.concatenate(rows)))
    return kept


def _write_attention(
    workdir: Path,
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    pictures: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    chosen = [p for p in pictures if p["cell"] == "Acc_e"][: config.evaluation.attention_examples]
    if not chosen:
        return {}
    maps = attention_maps(
        pipe, adapter, config, [p["prompt"] for p in chosen], [p["seed"] for p in chosen]
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **maps)  # pyright: ignore[reportArgumentType]
    write(workdir / "attention.npz", buffer.getvalue())
    names = ("prompt", "seed", "before", "after")
    return {
        "attention": [{name: p[name] for name in names} for p in chosen],
        "attention_times": list(TIMES),
    }


def _show(result: dict[str, Any]) -> None:
    """Prints the numbers."""
    console = Console()
    if "cells" not in result:
        console.print(result["note"])
        return
    table = Table(title=f"Erasing {result['concept']!r}: pictures in which the judge finds it")
    for heading in ("", "pictures", "before", "95 %", "after", "95 %"):
        table.add_column(heading, justify="left" if not heading else "right")
    for cell, sides in result["cells"].items():
        texts = []
        for side in ("before", "after"):
            value = sides[side]
            low, high = report.percent(value["low"], 1), report.percent(value["high"], 1)
            texts += [report.percent(value["share"], 1), f"{low} .. {high}"]
        table.add_row(cell, str(sides["after"]["of"]), *texts)
    if "H" in result:
        before, after = (report.percent(result["H"][side], 1) for side in ("before", "after"))
        table.add_row("H", "", before, "", after, "")
    console.print(table)


def define_flags() -> None:
    """Declares the command's flags; a function, so that importing this module declares none."""
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    flags.DEFINE_string("adapter", None, "Adapter; by default the run's own.")


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    workdir = Path(given.workdir)
    runs = {name: settle(config)[0] for name, config in load_runs(given[FLAG].value).items()}
    first = next(iter(runs.values()))
    adapters = {name: read_adapter(given.adapter or workdir / name) for name in runs}
    pipe = load(first.model, first.dtype)
    for name, config in runs.items():
        evaluate(pipe, adapters[name], config, workdir / name)
        if (workdir / name / "config.json").is_file():
            print(report.write(workdir / name))
    if len(runs) > 1:
        write_summary(workdir, list(runs))


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
