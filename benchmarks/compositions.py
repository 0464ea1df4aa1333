r"""Counts what one adapter made of 2, 3, 5, ..., 100 erases and keeps, for every way to make it.

    python -m benchmarks.compositions --config configs/emoji_hundred.py --workdir RUNS \
        --out docs/results/compositions.json

RUNS holds the adapters that `erase.train` made with the configuration, each of which takes its
`evaluation.strength` as its weight. Small groups are drawn from the same fifteen concepts in a
random order, large ones begin with them. Acc_e and Acc_g are counted on every erased concept,
Acc_ir on labels of all three kinds that are not erased, equally many pictures of each kind. Counts
are written as soon as they are there; what the output already holds is left out.
Axis letters: B pictures, L blocks, I inputs, O outputs, R rank.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table

from configs import emoji_hundred
from convert.errors import InputError, exits_cleanly
from convert.mapping import nest
from erase import compose, fusion, summary
from erase.cases import Case, cases, check, draw_cases, judged
from erase.command import FLAG, begin, define_flag, parse_flags
from erase.compose import Part
from erase.config import Config
from erase.evaluate import by_concept, counts, others
from erase.judge import Judge, open_judge
from erase.model import open_model
from erase.pictures import write
from erase.report import percent
from erase.runs import load_runs
from erase.synonyms import settle
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

COUNTS = (2, 3, 5, 10, 30, 100)
# Concepts in all groups of a number of concepts that is smaller.
FEW = 15
KINDS = ("entity", "style", "relation")
PROMPTS, SEED = 8, 0
# λ of fusion and the strength of what it makes, chosen on the validation split for 100 concepts.
PRESERVE, STRENGTH = 6.0, 2.0


@dataclass(frozen=True)
class Method:
    """A way to make one adapter of many.

    Attributes:
        name: `erase.compose`'s.
        rank: of the result.
        keep: whether fusion is told what is to stay.
        strength: that the result is drawn with; None is one over the root of the concepts' number.
        preserve: fusion's λ.
    """

    name: str
    rank: int = 8
    keep: bool = False
    strength: float | None = 1.0
    preserve: float = PRESERVE


METHODS = {
    "sum": Method("sum"),
    "sum, 1/√N each": Method("sum", strength=None),
    "normalized": Method("normalized"),
    "svd, rank 8": Method("svd"),
    "fusion, rank 64": Method("fusion", 64, strength=STRENGTH),
    "fusion, told what stays, rank 8": Method("fusion", 8, True, STRENGTH),
    "fusion, told what stays, rank 64": Method("fusion", 64, True, STRENGTH),
}


def groups(names: Sequence[str], count: int) -> list[list[str]]:
    """Groups of so many concepts, from the front of an order."""
    return [list(names[i * count : (i + 1) * count]) for i in range(max(1, FEW // count))]


def measure(runs: Mapping[str, Config], workdir: Path, out: Path, pictures: int) -> dict[str, Any]:
    """Makes, draws and counts every composition.

    Args:
        runs: configurations by name.
        workdir: folder of their runs.
        out: JSON file of the results.
        pictures: of each erased concept, and cell.

    Returns:
        What the file holds: for every number of concepts and method, `kinds` and `all` pooled over
        groups, and what is kept by `concepts`.

    Raises:
        InputError: an adapter is missing, does not fit the others, or a prompt cannot be judged.
    """
    names = random.Random(SEED).sample(sorted(runs), len(runs))
    first = runs[names[0]]
    pipe, judge = open_model(first), open_judge(first.evaluation.judge or "")
    strengths = {name: runs[name].evaluation.strength for name in names}
    parts = {name: compose.read_part(f"{workdir / name}:{strengths[name]}") for name in names}
    compose.check(list(parts.values()))
    result: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"counts": {}}
    result |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    result |= {"pictures": pictures, "preserve": PRESERVE, "strength": STRENGTH}
    for count in COUNTS:
        made = result["counts"].setdefault(str(count), {})
        if made.keys() >= METHODS.keys():
            continue
        found: dict[str, list[Any]] = {name: [] for name in METHODS}
        chosen = groups(names, count)
        for index, group in enumerate(chosen):
            own = {name: settle(runs[name])[0] for name in group}
            drawn = asked(own, runs, judge, pictures, index, len(chosen))
            check(pipe, judge, drawn)
            some = [parts[name] for name in group]
            base = look(pipe, judge, drawn, first, (whole(some[0].scaled(1)), 0.0), "of the base")
            erased = {judge.label(config.concept) for config in own.values()}
            for name, flat in changes(pipe, some, emoji_hundred.keep_sentences(erased)):
                title = f"of {count}, group {index + 1} of {len(chosen)}, {name}"
                strength = METHODS[name].strength or count**-0.5
                after = look(pipe, judge, drawn, first, (whole(flat), strength), title)
                found[name].append((drawn, {"before": base, "after": after}))
        made |= {name: counted(judge, each) for name, each in found.items()}
        write(out, json.dumps(result, indent=1) + "\n")
    return result


def changes(
    pipe: Pipeline, parts: Sequence[Part], keep: Sequence[str]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The leaves A and B of one adapter, by every method.

    Args:
        pipe: the frozen model.
        parts: adapters with their weights.
        keep: sentences with what is to stay.
    """
    moments: dict[bool, Any] = {}
    for name, method in METHODS.items():
        if method.name == "fusion":
            if method.keep not in moments:
                moments[method.keep] = gathered(pipe, parts, keep if method.keep else ())
            flat, _ = fusion.solve(moments[method.keep], method.rank, method.preserve)
        else:
            flat = compose.summed(parts, compose.weights(parts, method.name))
            if method.name == "svd":
                flat, _ = compose.truncated(flat, method.rank)
        yield name, flat


def gathered(
    pipe: Pipeline, parts: Sequence[Part], keep: Sequence[str]
) -> dict[str, fusion.Moments]:
    """What fusion needs to know of its adapters, and of sentences to preserve."""
    headers = {str(part.path): part.metadata for part in parts}
    shown = fusion.prompts(headers, PROMPTS, SEED, keep)
    return fusion.gather(pipe, [part.scaled(part.weight) for part in parts], shown, SEED)


def whole(flat: Mapping[str, np.ndarray]) -> Adapter:
    """The same changes with A = 1 and B = ΔW, so that one program draws with adapters of any rank.

    Args:
        flat: leaves A [L, I, R] and B [L, R, O] by their paths, with the scale in them.
    """
    made, inputs = {}, 1
    for target in [path.removesuffix("/A") for path in flat if path.endswith("/A")]:
        change = jnp.asarray(flat[f"{target}/A"] @ flat[f"{target}/B"], jnp.float32)
        blocks, inputs, _ = change.shape
        made[f"{target}/A"] = jnp.broadcast_to(jnp.eye(inputs), (blocks, inputs, inputs))
        made[f"{target}/B"] = change
    return Adapter(nest(made), float(inputs))


def asked(
    own: Mapping[str, Config],
    runs: Mapping[str, Config],
    judge: Judge,
    pictures: int,
    index: int,
    of: int,
) -> list[Case]:
    """What is drawn for a group: its concepts, and labels of each kind that are not erased.

    Args:
        own: configurations of the group, synonyms settled.
        runs: all configurations; the first of a kind says how that kind is asked for.
        judge: knows the labels.
        pictures: of each concept and cell.
        index: of the group, whose kept labels are drawn from noise of their own.
        of: groups.
    """
    erased = {judge.label(config.concept) for config in own.values()}
    drawn = []
    for config in own.values():
        settings = replace(config.evaluation, pictures=pictures)
        drawn += cases(replace(config, evaluation=settings), ())
    for kind in KINDS:
        config = next((c for c in runs.values() if judge.kind(c.concept) == kind), None)
        if config is None:
            continue
        every = [config.concept, *others(config, judge)]
        kept = [word for word in every if judge.label(word) not in erased]
        shown = FEW * pictures // of
        settings = replace(
            config.evaluation, pictures=shown, seed=config.evaluation.seed + index * shown
        )
        config = replace(config, evaluation=settings, synonyms=())
        drawn += [case for case in cases(config, kept) if case.cell == "Acc_ir"]
    return drawn


def look(
    pipe: Pipeline,
    judge: Judge,
    drawn: Sequence[Case],
    config: Config,
    adapter: tuple[Adapter, float],
    title: str,
) -> Bool[np.ndarray, "B"]:
    """Whether the judge finds what is sought in each picture, with an adapter and its strength."""
    return judged(judge, draw_cases(pipe, drawn, config, [adapter], title), drawn)


def counted(
    judge: Judge, groups: Sequence[tuple[Sequence[Case], Mapping[str, np.ndarray]]]
) -> dict[str, Any]:
    """Cells over groups: of each kind, all together, and of what is kept each label."""
    drawn = [case for cases, _ in groups for case in cases]
    found = {
        side: np.concatenate([each[side] for _, each in groups]) for side in ("before", "after")
    }
    kinds = np.array([judge.kind(case.sought) for case in drawn])
    by_kind = {}
    for kind in KINDS:
        rows = np.flatnonzero(kinds == kind)
        by_kind[kind] = counts([drawn[row] for row in rows], {s: f[rows] for s, f in found.items()})
    return {
        "kinds": by_kind,
        "all": summary.pooled([counts(drawn, found)]),
        "concepts": by_concept(drawn, found),
    }


def show(result: Mapping[str, Any]) -> None:
    """Prints a line for each number of concepts and method."""
    table = Table(title="One adapter of many")
    for heading in ("concepts", "method", *summary.CELLS, "H"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for count, methods in result["counts"].items():
        for name, found in methods.items():
            cells = found["all"]
            shares = [cells[cell]["after"]["share"] for cell in summary.CELLS]
            table.add_row(count, name, *(percent(s, 1) for s in (*shares, cells["H"]["after"])))
    Console().print(table)


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    runs = load_runs(given[FLAG].value)
    if len(runs) < max(COUNTS):
        raise InputError(f"config has {len(runs)} runs, fewer than {max(COUNTS)}")
    show(measure(runs, Path(given.workdir), Path(given.out), given.pictures))


if __name__ == "__main__":
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
    flags.DEFINE_string("out", None, "JSON file of the results.", required=True)
    flags.DEFINE_integer("pictures", 32, "Pictures of each erased concept.", lower_bound=1)
    app.run(main, flags_parser=parse_flags)
