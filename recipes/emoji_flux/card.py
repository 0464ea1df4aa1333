"""Write README.md of the shipped folder: the model, its training and its measurements."""

import json
import shutil
from pathlib import Path
from typing import Any

from erase.config.model_file import FILE
from erase.evaluation.percent import interval, percent
from erase.runtime.files import write
from flux_jax.errors import InputError
from flux_jax.system.json_files import read_json
from recipes.emoji_flux.sprites import attribution
from recipes.emoji_flux.world import ENTITIES, RELATIONS, STYLES

COMMAND = "python -m recipes.emoji_flux.build"
SAMPLES = "samples.png"
# Networks of the recipe, by their work folder: title, and the metrics that the README reports.
NETWORKS = {
    "judge": ("judge", ()),
    "vae": ("autoencoder", ("psnr", "kl")),
    "transformer": ("text encoders and transformer", ()),
    "distillation": ("distillation of guidance", ()),
}
UNITS = {"psnr": "dB PSNR", "kl": "nats of KL per value"}


def write_card(workdir: Path, out: Path) -> None:
    """Write `README.md` and the files that it links to into the pipeline's folder.

    Args:
        workdir: holds `metrics.jsonl` of every network (for the transformer, one per cycle) and
            `measure/`.
        out: the pipeline's folder, with `judge/accuracy.json`.

    Raises:
        InputError: a stage of the recipe has not been run.
    """
    logs = {name: _logs(workdir / name) for name in NETWORKS}
    measured, accuracy = workdir / "measure" / "measure.json", out / "judge" / "accuracy.json"
    sheet = workdir / "measure" / "entity.png"
    for path in (*(log for each in logs.values() for log in each), measured, accuracy, sheet):
        if not path.is_file():
            raise InputError(f"{path} is missing: run the stages of {COMMAND} before this one")
    networks = {name: _summary(each) for name, each in logs.items()}
    text = render(networks, read_json(accuracy), read_json(measured))
    shutil.copyfile(measured, out / "measure.json")
    shutil.copyfile(sheet, out / SAMPLES)
    write(out / "ATTRIBUTION.md", attribution())
    write(out / "README.md", text)


def render(
    networks: dict[str, dict[str, Any]], accuracy: dict[str, Any], measured: dict[str, Any]
) -> str:
    """Render the README.

    Args:
        networks: for every name in `NETWORKS`, the last line of its metrics; its update counts from
            the start of training.
        accuracy: of the judge on held-out renders.
        measured: the result of `measure`.
    """
    settings = measured["settings"]
    groups = {name: group for name, group in measured.items() if name != "settings"}
    lines = [
        "# emoji-flux",
        "",
        f"A small FLUX.1 that generates {len(ENTITIES)} entities in {len(STYLES)} styles, alone or "
        f"in {len(RELATIONS)} relations,",
        "64 x 64 pixels, in diffusers' layout. Guidance is distilled: one pass per step. Built by",
        "",
        f"    {COMMAND}",
        "",
        "from the drawings listed in [ATTRIBUTION.md](ATTRIBUTION.md). Its own samples, one prompt",
        "per picture, evenly spaced from the first prompt on and not selected:",
        "",
        f"![samples]({SAMPLES})",
        "",
        f"Recommended settings for erasing, and the words that it knows: [{FILE}]({FILE}).",
        "",
        "| network | updates | last loss | |",
        "| --- | --- | --- | --- |",
    ]
    for name, (title, told) in NETWORKS.items():
        last = networks[name]
        more = ", ".join(f"{last[key]:.1f} {UNITS[key]}" for key in told)
        lines.append(f"| {title} | {last['update']:,} | {last['loss']:.4f} | {more} |")
    lines += [
        "",
        f"Accuracy of the judge on {accuracy['held_out']:,} held-out renders: exactly the right "
        f"entities {percent(accuracy['entity'])},",
        f"style {percent(accuracy['style'])}, relation {percent(accuracy['relation'])}, relation "
        f"with subject and object swapped {percent(accuracy['relation_swapped'])}.",
        "Scenes are held out, drawings are not: the judge was trained on the same drawings.",
        "",
        f"Accuracy of the model's own samples by this judge, {settings['steps']} steps, guidance "
        f"{settings['guidance']}:",
        "",
        "| prompts | pictures | correct | 95 % interval | lowest classes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, group in groups.items():
        share = group["accuracy"]
        weakest = sorted(group["classes"].items(), key=lambda pair: pair[1])[:3]
        shown = ", ".join(f"{label} {100 * value:.0f} %" for label, value in weakest)
        lines.append(f"| {name} | {share['of']} | {percent(share)} | {interval(share)} | {shown} |")
    return "\n".join([*lines, "", "All classes: [measure.json](measure.json).", ""])


def _logs(folder: Path) -> list[Path]:
    """The network's metrics files; if it was trained in cycles, one per cycle in order."""
    cycles = sorted(folder.glob("*/metrics.jsonl"), key=lambda path: int(path.parent.name))
    return cycles or [folder / "metrics.jsonl"]


def _summary(logs: list[Path]) -> dict[str, Any]:
    ends = [json.loads(log.read_text().splitlines()[-1]) for log in logs]
    return ends[-1] | {"update": sum(end["update"] for end in ends)}
