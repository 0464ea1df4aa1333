r"""Measure what a composition of 2, 3, 5, ..., 100 adapters erases and preserves, by every method.

    python -m benchmarks.experiments.compositions --config configs/emoji_hundred.py \
        --workdir runs/emoji_hundred --out docs/results/compositions.json

The workdir holds the adapters that `erase.train` wrote with this configuration; each one's weight
is its `evaluation.strength`. Where a method searches for a strength, it does so on validation
pictures. Small groups are sampled from the same fifteen concepts in a random order; large ones
start with these. Acc_e and Acc_g are counted on every erased concept, Acc_ir on labels of all three
kinds that are not erased, with equally many pictures of each kind. Counts are written as soon as
they are computed; those already in the output are skipped.
Axis letters: B pictures, L blocks, I inputs, O outputs, R rank.
"""

import functools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Bool

from benchmarks.results.schemas import CompositionCounts, CompositionsResult
from benchmarks.results.tables import KINDS
from configs import emoji_hundred
from convert.tables import Table
from convert.tables import show as show_table
from erase.cli.flags import FLAG, begin, configured, define_flag, parse_flags
from erase.compose import combine, fusion
from erase.compose.combine import Part
from erase.config.schema import Config
from erase.evaluation import statistics
from erase.evaluation.calibrate import bisect
from erase.evaluation.eval_prompts import (
    EvalPrompt,
    check_prompts,
    draw_and_judge,
    evaluation_prompts,
)
from erase.evaluation.evaluate import by_concept, concepts_to_keep, evaluation_cells
from erase.evaluation.judge import Judge, open_judge
from erase.evaluation.percent import percent
from erase.methods.parts.least_squares import Moments
from erase.methods.planning.configured import with_synonyms
from erase.model.open import open_model
from erase.report.tables import NOTHING, cell_side
from erase.runs import load_runs
from erase.runtime.files import write
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.system.json_files import read_typed
from flux_jax.tree import nest

COUNTS = (2, 3, 5, 10, 30, 100)
# Number of concepts from which all smaller groups are sampled.
FEW = 15
PROMPTS, SEED = 8, 0
# Pictures of each concept in the search for a strength.
TRIED = 16
# λ of fusion, chosen on the validation split.
PRESERVE = 3.0
# The search returns the smallest strength at which the concept is still found in at most this share
# of the validation's pictures; then its upper bound and tolerance.
WANTED, MOST, TOLERANCE = 0.2, 3.0, 0.05


@dataclass(frozen=True)
class Method:
    """A method that merges several adapters into one.

    Attributes:
        name: the method of `erase.compose.combine`.
        rank: of the result.
        keep: whether fusion gets the sentences to preserve.
        least: lower bound of the search for a strength; None fixes it at 1.
    """

    name: str
    rank: int = 8
    keep: bool = False
    least: float | None = None


METHODS = {
    "sum": Method("sum"),
    "normalized": Method("normalized"),
    "svd, rank 8": Method("svd"),
    "sum, strength found": Method("sum", least=0.0),
    "fusion, rank 64": Method("fusion", 64, least=1.0),
    "fusion, told what stays, rank 8": Method("fusion", 8, True, 1.0),
    "fusion, told what stays, rank 64": Method("fusion", 64, True, 1.0),
}


def groups(names: Sequence[str], count: int) -> list[list[str]]:
    """Groups of `count` concepts, in order."""
    return [list(names[i * count : (i + 1) * count]) for i in range(max(1, FEW // count))]


def measure(
    runs: Mapping[str, Config],
    validation: Mapping[str, Config],
    workdir: Path,
    out: Path,
    pictures: int,
) -> CompositionsResult:
    """Compose adapters, generate pictures and count, for every number of concepts and method.

    Args:
        runs: configurations by name.
        validation: the same, with the pictures for the search for strengths.
        workdir: folder of their runs.
        out: JSON file of the results.
        pictures: per erased concept and cell.

    Returns:
        The file's contents: for every number of concepts and method, the `strength`, `kinds` and
        `all` pooled over groups, and the preserved labels by `concepts`.

    Raises:
        InputError: an adapter is missing, does not fit the others, or a prompt cannot be judged.
    """
    # Reproducible sampling; not used for security.
    names = random.Random(SEED).sample(sorted(runs), len(runs))  # nosec B311
    first = runs[names[0]]
    pipe, judge = open_model(first), open_judge(first.evaluation.judge or "")
    strengths = {name: runs[name].evaluation.strength for name in names}
    parts = {name: combine.read_part(f"{workdir / name}:{strengths[name]}") for name in names}
    combine.check(list(parts.values()))
    result: CompositionsResult = {"counts": {}}
    if out.is_file():
        result = read_typed(CompositionsResult, out, mend="name another file")
    result.update(device=jax.devices()[0].device_kind, jax=jax.__version__)
    result.update(pictures=pictures, preserve=PRESERVE, wanted=WANTED)
    look = functools.partial(find, pipe, judge, first)
    for count in COUNTS:
        compositions_of_count = result["counts"].setdefault(str(count), {})
        if compositions_of_count.keys() >= METHODS.keys():
            continue
        chosen = groups(names, count)
        shown = [asked(g, runs, judge, pictures, i, len(chosen)) for i, g in enumerate(chosen)]
        tried = [
            [case for case in of_concepts(group, validation, TRIED) if case.cell == "Acc_e"]
            for group in chosen
        ]
        check_prompts(pipe, judge, [case for drawn in (*shown, *tried) for case in drawn])
        made_of = composed(pipe, judge, runs, parts, chosen)
        zero = [(each[0], 0.0) for each in zip(*made_of.values(), strict=True)]
        base = look(shown, zero, f"of {count}, base")
        for name, adapters in made_of.items():
            left = functools.partial(share_left, look, tried, adapters, name)
            strength = find_strength(left, METHODS[name].least)
            adapters_with_strength = [(adapter, strength) for adapter in adapters]
            after = look(shown, adapters_with_strength, f"of {count}, {name}")
            sides = [{"before": b, "after": a} for b, a in zip(base, after, strict=True)]
            compositions_of_count[name] = {"strength": strength, **counted(judge, shown, sides)}
        write(out, json.dumps(result, indent=1) + "\n")
    return result


def composed(
    pipe: Pipeline,
    judge: Judge,
    runs: Mapping[str, Config],
    parts: Mapping[str, Part],
    chosen: Sequence[Sequence[str]],
) -> dict[str, list[Adapter]]:
    """Compose an adapter for each group of concepts, by every method."""
    made_of: dict[str, list[Adapter]] = {name: [] for name in METHODS}
    for group in chosen:
        erased = {judge.label(runs[name].concept) for name in group}
        keep = emoji_hundred.keep_sentences(erased)
        for name, flat in changes(pipe, [parts[name] for name in group], keep):
            made_of[name].append(whole(flat))
    return made_of


def changes(
    pipe: Pipeline, parts: Sequence[Part], keep: Sequence[str]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Compose one adapter by every method; yields its leaves A and B.

    Args:
        pipe: the frozen model.
        parts: adapters with their weights.
        keep: sentences to preserve.
    """
    moments: dict[bool, dict[str, Moments]] = {}
    for name, method in METHODS.items():
        if method.name == "fusion":
            if method.keep not in moments:
                moments[method.keep] = gathered(pipe, parts, keep if method.keep else ())
            flat, _ = fusion.solve(moments[method.keep], method.rank, PRESERVE)
        else:
            layers = combine.summed(parts, combine.weights(parts, method.name))
            if method.name == "svd":
                layers, _ = combine.truncated(layers, method.rank)
            flat = combine.leaves(layers)
        yield name, flat


def gathered(pipe: Pipeline, parts: Sequence[Part], keep: Sequence[str]) -> dict[str, Moments]:
    """Collect the least-squares moments of the adapters and of the sentences to preserve."""
    headers = {str(part.path): part.metadata for part in parts}
    shown = fusion.prompts(headers, PROMPTS, SEED, keep)
    leaves_of_parts = [combine.leaves(part.scaled(part.weight)) for part in parts]
    return fusion.gather(pipe, leaves_of_parts, shown, SEED)


def share_left(
    look: Callable[..., list[np.ndarray]],
    groups: Sequence[Sequence[EvalPrompt]],
    adapters: Sequence[Adapter],
    title: str,
    strength: float,
) -> float:
    """Share of all groups' pictures in which the erased concept is still found at a strength."""
    adapters_with_strength = [(adapter, strength) for adapter in adapters]
    return float(
        np.concatenate(look(groups, adapters_with_strength, f"at {strength:.3g}, {title}")).mean()
    )


def find_strength(left: Callable[[float], float], least: float | None) -> float:
    """The smallest strength that leaves a share of at most `WANTED`.

    Args:
        left: the share at a strength.
        least: lower bound of the search; None fixes the strength at 1.
    """
    if least is None:
        return 1.0
    if least and left(least) <= WANTED:
        return least
    found, _ = bisect(lambda more: left(least + more), WANTED, MOST - least, TOLERANCE)
    return least + found


def whole(flat: Mapping[str, np.ndarray]) -> Adapter:
    """The same changes as A = 1 and B = ΔW, so that one program runs adapters of any rank.

    Args:
        flat: leaves A [L, I, R] and B [L, R, O] by their paths, with the scale included.
    """
    leaves, inputs = {}, 1
    for target in [path.removesuffix("/A") for path in flat if path.endswith("/A")]:
        change = jnp.asarray(flat[f"{target}/A"] @ flat[f"{target}/B"], jnp.float32)
        blocks, inputs, _ = change.shape
        leaves[f"{target}/A"] = jnp.broadcast_to(jnp.eye(inputs), (blocks, inputs, inputs))
        leaves[f"{target}/B"] = change
    return Adapter(nest(leaves), float(inputs))


def of_concepts(
    group: Sequence[str], runs: Mapping[str, Config], pictures: int
) -> list[EvalPrompt]:
    """Prompts for `pictures` pictures of each concept by its own name, and by synonyms."""
    prompts = []
    for name in group:
        config, _ = with_synonyms(runs[name])
        settings = replace(config.evaluation, pictures=pictures)
        prompts += evaluation_prompts(replace(config, evaluation=settings), ())
    return prompts


def asked(
    group: Sequence[str],
    runs: Mapping[str, Config],
    judge: Judge,
    pictures: int,
    index: int,
    of: int,
) -> list[EvalPrompt]:
    """Prompts of a group: its concepts, and labels of each kind that are not erased.

    Args:
        group: names of its runs.
        runs: all configurations; the first of each kind defines the prompts of that kind.
        judge: knows the labels.
        pictures: per concept and cell.
        index: of the group; each group uses other noise for the labels that are not erased.
        of: number of groups.
    """
    erased = {judge.label(runs[name].concept) for name in group}
    prompts = of_concepts(group, runs, pictures)
    for kind in KINDS:
        config = next((c for c in runs.values() if judge.kind(c.concept) == kind), None)
        if config is None:
            continue
        every = [config.concept, *concepts_to_keep(config, judge)]
        others = [word for word in every if judge.label(word) not in erased]
        shown = FEW * pictures // of
        settings = replace(
            config.evaluation, pictures=shown, seed=config.evaluation.seed + index * shown
        )
        config = replace(config, evaluation=settings, synonyms=())
        prompts += [case for case in evaluation_prompts(config, others) if case.cell == "Acc_ir"]
    return prompts


def find(
    pipe: Pipeline,
    judge: Judge,
    config: Config,
    groups: Sequence[Sequence[EvalPrompt]],
    adapters: Sequence[tuple[Adapter, float]],
    title: str,
) -> list[Bool[np.ndarray, "B"]]:
    """Whether the judge finds the sought label in each picture of every group.

    Args:
        pipe: the frozen model.
        judge: knows the labels.
        config: settings of sampling.
        groups: prompts of each group.
        adapters: of each group, with its strength.
        title: of the progress bars.
    """
    return [
        draw_and_judge(pipe, judge, prompts, config, [adapter], title)
        for prompts, adapter in zip(groups, adapters, strict=True)
    ]


def counted(
    judge: Judge, groups: Sequence[Sequence[EvalPrompt]], sides: Sequence[Mapping[str, np.ndarray]]
) -> CompositionCounts:
    """Cells over groups: for each kind, for all together, and for each label to preserve."""
    prompts = [case for cases in groups for case in cases]
    hits = {side: np.concatenate([each[side] for each in sides]) for side in statistics.SIDES}
    kinds = np.array([judge.kind(case.sought) for case in prompts])
    by_kind = {}
    for kind in KINDS:
        rows = np.flatnonzero(kinds == kind)
        by_kind[kind] = evaluation_cells(
            [prompts[row] for row in rows], {s: f[rows] for s, f in hits.items()}
        )
    return {
        "kinds": by_kind,
        "all": statistics.pooled([evaluation_cells(prompts, hits)]),
        "concepts": by_concept(prompts, hits),
    }


def show(result: CompositionsResult) -> None:
    """Print a row for each number of concepts and method."""
    table = Table(title="Compositions of several adapters")
    for heading in ("concepts", "method", "strength", *statistics.CELLS, "H"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for count, methods in result["counts"].items():
        for name, composition in methods.items():
            cells = (*statistics.CELLS, "H")
            shares = [cell_side(composition["all"], cell, "after") for cell in cells]
            texts = [NOTHING if share is None else percent(share) for share in shares]
            table.add_row(count, name, f"{composition['strength']:.2f}", *texts)
    show_table(table)


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    runs = configured()
    if len(runs) < max(COUNTS):
        raise InputError(f"config has {len(runs)} runs, fewer than {max(COUNTS)}")
    validation = load_runs(emoji_hundred.validation())
    show(measure(runs, validation, Path(given.workdir), Path(given.out), given.pictures))


if __name__ == "__main__":
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
    flags.DEFINE_string("out", None, "JSON file of the results.", required=True)
    flags.DEFINE_integer("pictures", 32, "Pictures of each erased concept.", lower_bound=1)
    app.run(main, flags_parser=parse_flags)
