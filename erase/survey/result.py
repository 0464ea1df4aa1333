"""The files of a study: page and key; then the analysis as tables and chart."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from convert import tables
from erase.evaluation.percent import csv_cell
from erase.runtime.files import write
from erase.survey import page
from erase.survey.analysis import Mean, Result, analyse
from erase.survey.answers import join, read_key
from erase.survey.chart import radar
from erase.survey.questions import QUESTIONS, Trial, questionnaire, read_pictures
from flux_jax.errors import InputError, note

PAGE, KEY = "study.html", "key.json"
# Bytes of a page: most, since browsers on phones fail with more, and those from which a note says
# the size, since mail programs refuse larger files.
MOST_PAGE, LARGE_PAGE = 200_000_000, 20_000_000


def make(methods: Mapping[str, Path], concept: str, seed: int, out: Path) -> list[Path]:
    """Write a questionnaire and its key.

    Raises:
        InputError: pictures cannot be used or are too large, or a key is there, whose answers
            would be lost.
    """
    if (out / KEY).exists():
        raise InputError(f"{out / KEY} is there already; its answers need it: choose another --out")
    pictures = {method: read_pictures(folder) for method, folder in methods.items()}
    trials, key = questionnaire(pictures, concept)
    _check_size(trials)
    write(out / KEY, json.dumps(key, indent=1) + "\n")
    write(out / PAGE, page.render(trials, key, seed))
    return [out / PAGE, out / KEY]


def _check_size(trials: Sequence[Trial]) -> None:
    """Check the size of a page, most of which are its pictures; a note says it if it is large.

    Raises:
        InputError: it is too large.
    """
    size = sum(len(each) for t in trials for item in t["items"] for each in item["pictures"])
    said = f"pictures take {size / 1e6:,.0f} MB of {PAGE}"
    if size > MOST_PAGE:
        raise InputError(
            f"{said}, at most {MOST_PAGE / 1e6:.0f}: give fewer pictures, or draw smaller ones"
        )
    if size > LARGE_PAGE:
        note(f"{said}: too large for most mail; fewer or smaller pictures make it smaller")


def analyse_folder(folder: Path, key_file: Path, out: Path) -> Result:
    """Analyse the answers in a folder, write the results and show them.

    Raises:
        InputError: the key or all answers cannot be used.
    """
    key = read_key(key_file)
    result = analyse(join(folder, key), key["study"], key["methods"])
    write(out / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write(out / "result.csv", _csv(result))
    asked = [question for question in QUESTIONS if question in result["means"]]
    values = {
        method: [result["means"][question][method]["mean"] for question in asked]
        for method in result["methods"]
        if all(method in result["means"][question] for question in asked)
    }
    if len(asked) > 2 and values:
        axes = [QUESTIONS[question]["title"] for question in asked]
        title = f"User study: mean rating, 1 to 5, {result['raters']} raters"
        for kind, content in radar(values, axes, (1, 5), title).items():
            write(out / f"radar.{kind}", content)
    _show(result, asked)
    return result


def _cell(mean: Mean | None) -> str:
    if mean is None:
        return ""
    if mean["low"] is None:
        return f"{mean['mean']:.2f}"
    return f"{mean['mean']:.2f} ({mean['low']:.2f} to {mean['high']:.2f})"


def _show(result: Result, asked: Sequence[str]) -> None:
    """Print the means, the agreement, and what was left out."""
    title = f"Mean rating, 1 to 5, with 95 % intervals over {result['raters']} raters"
    headings = (QUESTIONS[question]["title"] for question in asked)
    table = tables.Table("method", *headings, title=title)
    for method in result["methods"]:
        cells = [_cell(result["means"][question].get(method)) for question in asked]
        table.add_row(method, *cells)
    alphas = [result["alpha"][question] for question in asked]
    table.add_row("Krippendorff's alpha", *("" if a is None else f"{a:.2f}" for a in alphas))
    tables.show(table)
    for file, reason in result["left_out"].items():
        note(f"{file} is left out: {reason}")


def _csv(result: Result) -> str:
    """A row for each method and question."""
    rows = [["question", "method", "mean", "low", "high", "ratings"]]
    for question, means in result["means"].items():
        for method, mean in means.items():
            values = (mean["mean"], mean["low"], mean["high"], mean["ratings"])
            numbers = ["" if value is None else str(value) for value in values]
            rows.append([question, csv_cell(method), *numbers])
    return "\n".join(map(",".join, rows)) + "\n"
