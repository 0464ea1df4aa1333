"""A run's report: one HTML file that needs no other file and no network.

Axis letters: K examples, y x image tokens, h w picture sides.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import jinja2
import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from PIL import Image

from erase.evaluation.notes import left_out_note, mean_note
from erase.evaluation.percent import interval, percent
from erase.evaluation.statistics import SIDES
from erase.model import draw
from erase.report import words
from erase.runtime import files as files_module
from erase.runtime import run_folder
from erase.runtime.files import read_json
from erase.runtime.results import (
    EvaluationResult,
    Example,
    IrrelevantRecord,
    RunRecord,
    SentencesRecord,
)
from erase.runtime.run_folder import MISSING
from flux_jax.errors import InputError, counted

TEMPLATE = Path(__file__).with_name("report.html.j2")


COLUMNS = 8


# Pictures are embedded no larger than this, and sharpened to the eye below `PIXELS`.
LARGEST, PIXELS = 320, 128


COLOUR_MAP = "inferno"


# Cells in which the judge should find nothing.
ERASED = ("Acc_e", "Acc_g")


# Of numbers, from those that are as bad as can be to those that are as good.
COLOURS = LinearSegmentedColormap.from_list("goodness", ["#b42318", "#8f5b00", "#0f766e"])


WORDS = {
    "Acc_e": ("lower is better", "pictures of prompts with “{}” in which the judge still sees it"),
    "Acc_g": ("lower is better", "the same for prompts that use its synonyms"),
    "Acc_ir": ("higher is better", "pictures of other concepts in which the judge sees them"),
}


GROUPS = {
    "Acc_e": "Prompts with “{}”",
    "Acc_g": "Its synonyms",
    "Acc_ir": "What should stay",
}


class HeatMap(TypedDict):
    """An example's pictures and attention maps as the page embeds them, and the maps' means."""

    prompt: str
    rendering: str
    picture_before: str
    map_before: str
    mean_before: float
    picture_after: str
    map_after: str
    mean_after: float


class EmbeddedExample(Example):
    """An example whose pictures are embedded.

    Attributes:
        good: by side, how near the hit is to what is wanted.
        rendering: the pictures' class.
    """

    good: dict[str, float | None]
    rendering: str


class PictureGroup(TypedDict):
    """Examples of a cell, under a heading."""

    title: str
    examples: list[EmbeddedExample]


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
    config: RunRecord = read_json(workdir / run_folder.CONFIG, MISSING)
    path = workdir / run_folder.EVALUATION
    # Without a judge, or an evaluation at all, the page has fewer parts.
    evaluation = cast(EvaluationResult, read_json(path) if path.is_file() else {})
    concept = evaluation.get("concept") or config.get("concept", "")
    heat, heat_top = heat_maps(workdir, evaluation)
    groups = _groups(workdir, evaluation)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"percent": percent, "interval": interval, "colour": colour}
    metrics, attacks = workdir / run_folder.METRICS, workdir / f"{run_folder.ATTACKS_STEM}.json"
    page = environment.from_string(TEMPLATE.read_text()).render(
        title=f"Erasing “{concept}”",
        concept=concept,
        lead=_lead(config, evaluation),
        cells=_cells(concept, evaluation),
        together=evaluation.get("H"),
        notes=[note for of in (left_out_note, mean_note) if (note := of(evaluation))],
        words=words_of(workdir, config),
        attacks=read_json(attacks)["cells"] if attacks.is_file() else {},
        note=evaluation.get("note"),
        groups=groups,
        columns=max([len(group["examples"]) for group in groups], default=1),
        heat=heat,
        heat_top=heat_top,
        heat_columns=max(1, len(heat)),
        times=", ".join(f"t = {t:g}" for t in evaluation.get("attention_times", [])),
        gradient=_gradient(),
        losses=loss_curves(metrics) if metrics.is_file() else None,
        losses_note="One point an iteration, with a moving average.",
        concepts=[
            # What the base does not draw cannot be lost.
            {**row, "good": row["after"] / row["before"] if row["before"] else 1.0}
            for row in evaluation.get("concepts", [])
        ],
        command=config.get("command"),
        settings=_settings(evaluation),
        config=json.dumps({k: v for k, v in config.items() if k != "command"}, indent=2),
    )
    report = workdir / run_folder.REPORT
    files_module.write(report, page)
    return report


def _cells(concept: str, evaluation: EvaluationResult) -> list[dict[str, object]]:
    """The counts of an evaluation with their meaning, and how near they are to what is wanted."""
    return [
        {
            "name": name,
            "wanted": WORDS[name][0],
            "what": WORDS[name][1].format(concept),
            "good": {side: goodness(name, cell[side]["share"]) for side in cell},
            **cell,
        }
        for name, cell in evaluation.get("cells", {}).items()
    ]


def goodness(cell: str, share: float) -> float:
    """How near a cell's share is to what is wanted, from 0 to 1."""
    return 1 - share if cell in ERASED else share


def colour(good: float) -> str:
    """The colour of a number, dark enough on white for small text.

    Args:
        good: how near it is to what is wanted, from 0 to 1; beyond them it counts as they do.
    """
    return to_hex(COLOURS(float(good)))


def words_of(workdir: Path, config: RunRecord) -> list[words.Line]:
    """The words of a run: what its `config.json` and the files beside it hold.

    Raises:
        InputError: a file is damaged.
    """
    file, others_file = workdir / run_folder.SENTENCES, workdir / run_folder.IRRELEVANT
    sentences: SentencesRecord = read_json(file) if file.is_file() else {}
    others: IrrelevantRecord = read_json(others_file) if others_file.is_file() else {}
    return words.of_run(config, sentences, others)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """File content as an address that a page can hold in itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def loss_curves(path: Path) -> str:
    """Small line plots of every series in a `metrics.jsonl`, as an SVG element.

    Raises:
        InputError: a line is not JSON.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = run_folder.parse_record(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}, is not JSON: {error}") from error
        step = number if record["step"] is None else record["step"]
        for name, value in record["metrics"].items():
            series.setdefault(name, []).append((step, value))
    if not series:
        return ""
    columns = min(4, len(series))
    rows = -(-len(series) // columns)
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": "#98a2b3",
        "xtick.color": "#667085",
        "ytick.color": "#667085",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(10.4, 2.3 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (name, points) in zip(axes, series.items(), strict=False):
            steps, values = np.array(points, float).T
            axis.plot(steps, values, color="#cbd5e1", linewidth=0.7)
            axis.plot(steps, smoothed(values), color="#0f766e", linewidth=1.6)
            axis.set_title(name.replace("_", " "), fontsize=10, loc="left", color="#1f2430")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="#eceff3", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.margins(x=0.01)
        for axis in axes[len(series) :]:
            axis.set_visible(False)
        figure.supxlabel("iteration", fontsize=9, color="#667085")
        return _svg(figure)


def smoothed(values: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
    """Centred moving average over a twentieth of the series; shorter windows at its ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def heat_maps(workdir: Path, evaluation: EvaluationResult) -> tuple[list[HeatMap], float]:
    """Pictures and attention maps of a run's examples, ready to embed.

    Returns:
        One dictionary an example, and the attention that the brightest colour stands for.
    """
    examples = evaluation.get("attention", [])
    if not examples:
        return [], 0.0
    path = workdir / run_folder.ATTENTION
    try:
        maps = dict(np.load(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate the run again") from error
    # One scale for all maps; the top percent would leave the rest dark.
    top = float(np.percentile(np.concatenate([maps["before"], maps["after"]]), 99.5)) or 1.0

    def on_picture(picture: np.ndarray, heat: np.ndarray) -> str:
        return data_uri(draw.png(overlay(picture, heat / top)))

    embedded: list[HeatMap] = []
    for example, heat_before, heat_after in zip(
        examples, maps["before"], maps["after"], strict=True
    ):
        before, after = (_open(workdir / example[side]) for side in SIDES)
        embedded.append(
            {
                "prompt": example["prompt"],
                "rendering": _rendering(after),
                "picture_before": _embed(before),
                "map_before": on_picture(before, heat_before),
                "mean_before": float(heat_before.mean()),
                "picture_after": _embed(after),
                "map_after": on_picture(after, heat_after),
                "mean_after": float(heat_after.mean()),
            }
        )
    return embedded, top


def overlay(
    picture: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "y x"], side: int = 192
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Lays a heat map over a grey version of its picture.

    Args:
        picture: the picture.
        heat: values in [0, 1], one an image token; clipped.
        side: the result's larger side in pixels.
    """
    height, width = picture.shape[:2]
    size = (round(side * width / max(height, width)), round(side * height / max(height, width)))
    wide = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(wide), 0, 1)
    colour = mpl.colormaps[COLOUR_MAP](level)[..., :3]
    grey = np.asarray(Image.fromarray(picture).convert("L").resize(size), float)[..., None] / 255
    return np.round(255 * (0.8 * colour + 0.2 * grey)).astype(np.uint8)


def _lead(config: RunRecord, evaluation: EvaluationResult) -> str:
    model = evaluation.get("model") or config.get("model", {}).get("path", "")
    size = evaluation.get("adapter_parameters")
    adapter = f"an adapter of {size:,} parameters" if size else "an adapter"
    return f"{model}, without and with {adapter}"


def _settings(evaluation: EvaluationResult) -> str:
    if "steps" not in evaluation:
        return ""
    return (
        f"Pictures: {counted(evaluation['steps'], 'step')}, guidance {evaluation['guidance']:g}, "
        f"{evaluation['height']} × {evaluation['width']} pixels, adapter strength "
        f"{evaluation['strength']:g}. Intervals are Wilson's, at 95 %."
    )


def _groups(workdir: Path, evaluation: EvaluationResult) -> list[PictureGroup]:
    """Example pictures by cell."""
    groups: list[PictureGroup] = []
    for cell, title in GROUPS.items():
        examples = [e for e in evaluation.get("pictures", []) if e["cell"] == cell][:COLUMNS]
        if examples:
            embedded = [_embedded(workdir, cell, example) for example in examples]
            groups.append({"title": title.format(evaluation["concept"]), "examples": embedded})
    return groups


def _embedded(workdir: Path, cell: str, example: Example) -> EmbeddedExample:
    before, after = (_open(workdir / example[side]) for side in SIDES)
    hits = {"before": example["found_before"], "after": example["found_after"]}
    return {
        **example,
        "before": _embed(before),
        "after": _embed(after),
        "good": {
            side: None if hit is None else goodness(cell, float(hit)) for side, hit in hits.items()
        },
        "rendering": _rendering(before),
    }


def _open(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate the run again") from error


def _embed(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((LARGEST, LARGEST))
    return data_uri(draw.png(np.asarray(image)))


def _rendering(picture: np.ndarray) -> str:
    """The class of pictures so small that browsers would blur them."""
    return "pixels" if max(picture.shape[:2]) < PIXELS else ""


def _gradient(stops: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> str:
    colours = [to_hex(mpl.colormaps[COLOUR_MAP](stop)) for stop in stops]
    return f"linear-gradient(90deg, {', '.join(colours)})"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # A fixed salt and no date: the same run gives the same file.
    with mpl.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
