"""The five axes of the user study, measured by a judge instead of by people.

On pictures of the same prompts and seeds by each method, all in percent:

- erasing: 1 - Acc_e, over the prompts that name the concept;
- preservation: Acc_ir, over all other prompts: how many of the named things of the concept's kind
  the judge finds;
- quality: the share of clean pictures among those of the other prompts; a clean one shows at least
  one thing that the judge knows, and none that its prompt does not name;
- adherence: the share of these in which the judge finds everything, things and style, that the
  prompt names;
- diversity: the mean distance of the judge's features between seeds of one of these prompts,
  divided by the base model's.

Axis letters: B pictures, h w picture sides, F features, L labels.
"""

import base64
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from typing_extensions import TypedDict

from convert import tables
from erase.config.fields import shown
from erase.data.words.spelling import mentions
from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge import Judge
from erase.evaluation.percent import number
from erase.evaluation.statistics import wilson_interval
from erase.runtime.files import write
from erase.survey.chart import radar
from erase.survey.questions import Picture, common, read_pictures
from flux_jax.errors import InputError, counted, nearest

AXES: Mapping[str, str] = {
    "erasing": "Erasing, %",
    "preservation": "Preservation, %",
    "quality": "Clean pictures, %",
    "adherence": "Prompt adherence, %",
    "diversity": "Diversity, % of base",
}
FILE = "axes.json"
# Values of each method, titles of the axes, their limits, and the title.
Chart = tuple[dict[str, list[float]], list[str], tuple[float, float], str]


class Axis(TypedDict):
    """A measured value, 1 for 100 %; a share has its 95 % Wilson interval over `of` pictures."""

    value: float
    low: float | None
    high: float | None
    of: int


class AxesResult(TypedDict):
    """Content of `axes.json`.

    Attributes:
        measured_by: that no person was asked, and by whose judgement it was measured.
        concept: the erased concept.
        base: name of the base model among the methods.
        prompts: number of prompts that name the concept, and of others.
        pictures: number of pictures of each method.
        methods: values by method and axis.
    """

    measured_by: str
    concept: str
    base: str
    prompts: dict[str, int]
    pictures: int
    methods: dict[str, dict[str, Axis]]


@dataclass(frozen=True)
class Plan:
    """What is judged, the same for all methods.

    Attributes:
        files: names of the files.
        prompts: prompt of each file.
        concept: label of the concept.
        named: labels that each prompt names.
        things: labels of things, of which a clean picture shows only named ones.
        about: whether each prompt names the concept.
    """

    files: list[str]
    prompts: list[str]
    concept: str
    named: list[list[str]]
    things: Sequence[str]
    about: Bool[np.ndarray, "B"]

    @property
    def other(self) -> list[int]:
        """Places of the pictures whose prompts do not name the concept."""
        return [int(i) for i in np.flatnonzero(~self.about)]


def labels_in(prompt: str, labels: Sequence[str]) -> list[str]:
    """Return the labels that a prompt names; a longer name hides those within it."""
    taken: list[tuple[int, int]] = []
    found = []
    for label in sorted(labels, key=len, reverse=True):
        spans = [(each.start, each.end) for each in mentions(prompt, label)]
        free = [s for s in spans if all(s[1] <= low or s[0] >= high for low, high in taken)]
        taken += free
        if free:
            found.append(label)
    return found


def plan(pictures: Mapping[str, Mapping[str, Picture]], concept: str, judge: Judge) -> Plan:
    """Say what is judged.

    Raises:
        InputError: pictures do not pair, or an axis cannot be measured with these prompts.
    """
    files = common(pictures)
    first = next(iter(pictures.values()))
    prompts = [first[name].prompt for name in files]
    if (kind := judge.kind(concept)) == "relation":
        raise InputError(
            f"concept = {concept!r:.60} is a relation: the axes are of entities and styles"
        )
    things = judge.labels("entity")
    known = list(dict.fromkeys([*things, *judge.labels("style")]))
    about = np.array([bool(mentions(prompt, concept)) for prompt in prompts])
    named = [labels_in(prompt, known) for prompt in prompts]
    if not about.any():
        raise InputError(f"concept = {concept!r:.60} is in none of the prompts; draw some with it")
    others = [names for names, erased in zip(named, about, strict=True) if not erased]
    if not any(label in judge.labels(kind) for names in others for label in names):
        raise InputError(
            f"no other prompt names a thing of the judge's that is of the kind {kind!r}; draw "
            "prompts such as 'a photo of a cat'"
        )
    return Plan(files, prompts, judge.label(concept), named, things, about)


def decoded(pictures: Mapping[str, Picture], files: Sequence[str]) -> UInt8[np.ndarray, "B h w 3"]:
    """Return pictures as an array.

    Raises:
        InputError: their sizes differ.
    """
    arrays = []
    for name in files:
        content = base64.b64decode(pictures[name].address.partition(",")[2])
        with Image.open(io.BytesIO(content)) as picture:
            arrays.append(np.asarray(picture))
        if arrays[-1].shape != arrays[0].shape:
            raise InputError(
                f"{name} has {arrays[-1].shape[0]} x {arrays[-1].shape[1]} pixels, {files[0]} "
                f"{arrays[0].shape[0]} x {arrays[0].shape[1]}; draw all in one size"
            )
    return np.stack(arrays)


def spread(features: Float[np.ndarray, "B F"], prompts: Sequence[str]) -> float:
    """Return the mean distance between pictures of one prompt, over prompts with two or more.

    Raises:
        InputError: no prompt has two pictures.
    """
    means = []
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, each in enumerate(prompts) if each == prompt]
        if pairs := list(itertools.combinations(rows, 2)):
            means.append(np.mean([np.linalg.norm(features[a] - features[b]) for a, b in pairs]))
    if not means:
        raise InputError("every prompt has one seed: diversity needs two or more, with --seed")
    return float(np.mean(means))


def all_things(
    judge: Judge,
    pictures: UInt8[np.ndarray, "B h w 3"],
    things: Sequence[str],
    prompts: Sequence[str],
) -> Bool[np.ndarray, "B L"]:
    """Return whether each picture shows each thing."""
    if isinstance(judge, NetworkJudge) and [*things] == [*judge.labels("entity")]:
        # One pass answers for all; a sigmoid above one half is a logit above 0.
        return np.asarray(judge(pictures).entities) > 0
    columns = [judge.finds(pictures, [thing] * len(pictures), prompts) for thing in things]
    return np.stack(columns, axis=1)


def measure(
    what: Plan, pictures: UInt8[np.ndarray, "B h w 3"], judge: Judge
) -> tuple[dict[str, Axis], float]:
    """Measure all axes of a method but diversity.

    Returns:
        The axes, and the mean distance between seeds.

    Raises:
        InputError: the judge does not take the pictures, or every prompt has one seed.
    """

    def found(rows: Sequence[int], labels: Sequence[str]) -> list[bool]:
        texts = [what.prompts[i] for i in rows]
        return [*map(bool, judge.finds(pictures[[*rows]], [*labels], texts))]

    about = [int(i) for i in np.flatnonzero(what.about)]
    other = what.other
    asked = [(i, label) for i in other for label in what.named[i]]
    hits = dict(zip(asked, found(*zip(*asked, strict=True)), strict=True))
    same = {*judge.labels(judge.kind(what.concept))}
    kept = [hit for (_, label), hit in hits.items() if label in same]
    shows = all_things(judge, pictures[other], what.things, [what.prompts[i] for i in other])
    clean = []
    for i, row in zip(other, shows, strict=True):
        seen = {thing for thing, hit in zip(what.things, row, strict=True) if hit}
        clean.append(bool(seen) and seen <= {*what.named[i]})
    named = [i for i in other if what.named[i]]
    axes = {
        "erasing": _share([not hit for hit in found(about, [what.concept] * len(about))]),
        "preservation": _share(kept),
        "quality": _share(clean),
        "adherence": _share([all(hits[i, label] for label in what.named[i]) for i in named]),
    }
    return axes, spread(judge.features(pictures[other]), [what.prompts[i] for i in other])


def _share(hits: Sequence[bool]) -> Axis:
    share = wilson_interval(sum(hits), len(hits))
    return {"value": share["share"], "low": share["low"], "high": share["high"], "of": len(hits)}


def measure_all(
    methods: Mapping[str, Mapping[str, Picture]], concept: str, base: str, judge: Judge
) -> AxesResult:
    """Measure the axes of methods.

    Args:
        methods: pictures of each method by file name, the base model's among them.
        concept: the erased concept.
        base: name of the base model.
        judge: the judge.

    Raises:
        InputError: the base model is not there, pictures do not pair, or an axis cannot be
            measured.
    """
    if base not in methods:
        raise InputError(f"base = {base!r:.60} is not among --pictures; {nearest(base, methods)}")
    what = plan(methods, concept, judge)
    found = {
        name: measure(what, decoded(pictures, what.files), judge)
        for name, pictures in methods.items()
    }
    if not (whole := found[base][1]):
        raise InputError(f"{base}: all seeds of a prompt give one picture; draw it again")
    prompts = {False: set[str](), True: set[str]()}
    for prompt, erased in zip(what.prompts, what.about, strict=True):
        prompts[bool(erased)].add(prompt)
    return {
        "measured_by": "programs: a judge network; no person was asked",
        "concept": concept,
        "base": base,
        "prompts": {"concept": len(prompts[True]), "other": len(prompts[False])},
        "pictures": len(what.files),
        "methods": {
            name: {
                **axes,
                "diversity": {
                    "value": distance / whole,
                    "low": None,
                    "high": None,
                    "of": len(what.other),
                },
            }
            for name, (axes, distance) in found.items()
        },
    }


def chart_of(result: AxesResult) -> Chart:
    """Return what the radar chart of a result shows, in percent."""
    values = {
        method: [100 * axes[axis]["value"] for axis in AXES]
        for method, axes in result["methods"].items()
    }
    top = max(100.0, *(value for each in values.values() for value in each))
    title = f"“{result['concept']}” erased: measured by programs, not by people"
    return values, [*AXES.values()], (0, top), title


def write_axes(
    folders: Mapping[str, Path], concept: str, base: str, judge: Judge, out: Path
) -> AxesResult:
    """Measure the pictures of folders, write `axes.json` and the chart, and print the values.

    Args:
        folders: folder of each method's pictures.
        concept: the erased concept.
        base: name of the base model among them.
        judge: the judge.
        out: folder for `axes.json`, `radar.svg` and `radar.png`.

    Raises:
        InputError: see `measure_all`, or pictures cannot be read.
    """
    pictures = {method: read_pictures(folder) for method, folder in folders.items()}
    result = measure_all(pictures, concept, base, judge)
    write(out / FILE, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for kind, content in radar(*chart_of(result)).items():
        write(out / f"radar.{kind}", content)
    show(result)
    return result


def show(result: AxesResult) -> None:
    """Print the values, as a table."""
    title = (
        f"{shown(result['concept'])} erased: measured by programs, not by people, on "
        f"{counted(result['pictures'], 'picture')} of each method; 95 % intervals"
    )
    table = tables.Table("method", *AXES.values(), title=title)
    for method, axes in result["methods"].items():
        table.add_row(method, *(axis_cell(axes[axis]) for axis in AXES))
    tables.show(table)


def axis_cell(axis: Axis) -> str:
    """Format a value with its interval, in percent without the sign."""
    text = number(axis["value"])
    if axis["low"] is None or axis["high"] is None:
        return text
    return f"{text} [{number(axis['low'])}, {number(axis['high'])}]"
