"""A run's report: one HTML file that needs no other file and no network."""

import json
from pathlib import Path
from typing import TypedDict, cast

from erase.evaluation.notes import left_out_note, mean_note
from erase.evaluation.percent import interval, percent
from erase.evaluation.statistics import SIDES
from erase.report import words
from erase.report.charts import loss_charts
from erase.report.colours import goodness, tones
from erase.report.pictures import example_groups, gradient, heat_maps
from erase.report.plain_text import page_environment
from erase.runtime import files as files_module
from erase.runtime import run_folder
from erase.runtime.records import read_attacks, read_evaluation, read_run, read_words
from erase.runtime.results import EvaluationResult, RunRecord, Share
from flux_jax.errors import counted

TEMPLATE = Path(__file__).with_name("report.html.j2")


# Which way a cell is better, and which pictures its share is of.
WORDS = {
    "Acc_e": ("lower is better", "pictures for prompts with “{}” in which the judge detects it"),
    "Acc_g": (
        "lower is better",
        "pictures for prompts with synonyms of “{}” in which the judge detects it",
    ),
    "Acc_ir": (
        "higher is better",
        "pictures for prompts with another concept in which the judge detects that one",
    ),
}


class CellView(TypedDict):
    """A cell as the page shows it.

    Attributes:
        name: of the cell.
        wanted: which way it is better.
        what: the pictures that the share is of.
        good: by side, how near the share is to the best.
        before: of the base model.
        after: with the adapter.
    """

    name: str
    wanted: str
    what: str
    good: dict[str, float]
    before: Share
    after: Share


# Parts of `config.json` that are no settings.
APART = ("command", "inputs")


def write(workdir: str | Path) -> Path:
    """Writes `report.html` from what a run's folder holds.

    It reads `config.json`; `evaluation.json`, `pictures/` and `attention.npz` (see
    `erase.evaluation.evaluate`), `attacks.json` and `metrics.jsonl` where they are there.

    Args:
        workdir: the run's folder.

    Returns:
        The report's path.

    Raises:
        InputError: there is no `config.json`, or a file is damaged.
    """
    workdir = Path(workdir)
    config = read_run(workdir, complete=False)
    # Without a judge, or an evaluation at all, the page has fewer parts.
    evaluation = read_evaluation(workdir) or cast(EvaluationResult, {})
    concept = evaluation.get("concept") or config.get("concept", "")
    heat, heat_top = heat_maps(workdir, evaluation)
    environment = page_environment()
    environment.filters |= {"percent": percent, "interval": interval, "tones": tones}
    metrics = workdir / run_folder.METRICS
    page = environment.from_string(TEMPLATE.read_text()).render(
        title=f"Erasing “{concept}”",
        concept=concept,
        lead=_lead(config, evaluation),
        cells=_cells(concept, evaluation),
        together=evaluation.get("H"),
        notes=[note for of in (left_out_note, mean_note) if (note := of(evaluation))],
        words=words_of(workdir, config),
        attacks=read_attacks(workdir),
        note=evaluation.get("note"),
        groups=example_groups(workdir, evaluation),
        heat=heat,
        heat_top=heat_top,
        times=", ".join(f"t = {t:g}" for t in evaluation.get("attention_times", [])),
        gradient=gradient(),
        charts=loss_charts(metrics) if metrics.is_file() else [],
        concepts=[
            # What the base does not draw cannot be lost.
            {**row, "good": row["after"] / row["before"] if row["before"] else 1.0}
            for row in evaluation.get("concepts", [])
        ],
        command=config.get("command"),
        settings=_settings(evaluation),
        config=json.dumps({k: v for k, v in config.items() if k not in APART}, indent=2),
    )
    report = workdir / run_folder.REPORT
    files_module.write(report, page)
    return report


def _cells(concept: str, evaluation: EvaluationResult) -> list[CellView]:
    """The shares of an evaluation with their meaning, and how near they are to the best."""
    return [
        {
            "name": name,
            "wanted": WORDS[name][0],
            "what": WORDS[name][1].format(concept),
            "good": {side: goodness(name, cell[side]["share"]) for side in SIDES},
            "before": cell["before"],
            "after": cell["after"],
        }
        for name, cell in evaluation.get("cells", {}).items()
        if name in WORDS
    ]


def words_of(workdir: Path, config: RunRecord) -> list[words.Line]:
    """The words of a run: what its `config.json` and the files beside it hold.

    Raises:
        InputError: a file is damaged.
    """
    return words.of_run(config, *read_words(workdir))


def _lead(config: RunRecord, evaluation: EvaluationResult) -> str:
    model = evaluation.get("model") or config.get("model", {}).get("path", "")
    size = evaluation.get("adapter_parameters")
    adapter = f"an adapter of {size:,} parameters" if size else "the adapter"
    return f"Before: the model {model} as it is. After: the same model with {adapter}."


def _settings(evaluation: EvaluationResult) -> str:
    if "steps" not in evaluation:
        return ""
    return (
        f"Pictures: {counted(evaluation['steps'], 'denoising step')}, guidance scale "
        f"{evaluation['guidance']:g}, {evaluation['height']} × {evaluation['width']} pixels "
        f"(height × width), adapter strength {evaluation['strength']:g}."
    )
