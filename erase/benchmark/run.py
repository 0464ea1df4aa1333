"""Run a benchmark: draw the pictures of a prompt set, judge them, write the results.

Each row, the base model or adapters, has a folder. A picture is drawn once: an interrupted command
continues, and another judge judges the pictures that were kept.
"""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import jax

from erase.benchmark.draw import Drawing, cut_note, draw_all, on_all_devices
from erase.benchmark.prompt_sets import BenchmarkPrompt, PromptSet
from erase.benchmark.registry import open_distance
from erase.benchmark.results import (
    FORMAT,
    PICTURES,
    RESULTS,
    BenchmarkResult,
    FigureRecord,
    JudgeRecord,
    RowRecord,
)
from erase.benchmark.row import Row, opened_in_first
from erase.judges.protocol import PictureJudge
from erase.model import digest
from erase.model.adapters import parse_adapter
from erase.model.draw import picture_size
from erase.runtime import processes
from erase.runtime.cache import digest_of
from erase.runtime.files import write
from flux_jax.errors import InputError, counted, say
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline, load
from flux_jax.settings import SamplingOptions, check_sampling

BASE = "base model"
# Guidance of prompts whose set has none.
GUIDANCE = 3.5


@dataclass(frozen=True)
class BenchmarkOptions:
    """Settings of a benchmark.

    Attributes:
        steps: Euler steps.
        guidance: guidance of all prompts; None takes each prompt's own.
        height: pixels; None is the model's size.
        width: pixels; None is the model's size.
        own_sizes: whether each prompt's own height and width are used.
        seed: added to a prompt's number if the set has no seeds.
        batch: pictures drawn at once.
        first: number of prompts, from the first on; None for all.
        keep: whether pictures are kept as files.
        reference: folder of pictures to compare each row's with; None for none.
        fid_weights: file of FID's network; None for the one that its package downloads.
        reference_judge: folder of a judge, whose features are compared; None for FID.
    """

    steps: int = 28
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    own_sizes: bool = False
    seed: int = 0
    batch: int = 16
    first: int | None = None
    keep: bool = True
    reference: Path | None = None
    fid_weights: str | None = None
    reference_judge: str | None = None


def benchmark(
    model: str,
    prompts: PromptSet,
    rows: Sequence[str],
    judges: Mapping[str, PictureJudge],
    out: Path,
    options: BenchmarkOptions,
) -> BenchmarkResult:
    """Run a benchmark, or what is left of it.

    Args:
        model: pipeline folder, file or name on the hub.
        prompts: the prompt set.
        rows: adapters of each row, "PATH:STRENGTH" separated by commas; empty for the base model.
        judges: judges by their texts on the command line.
        out: folder for the rows' folders and `results.json`; locked by the caller.
        options: further settings.

    Returns:
        The content of `results.json`.

    Raises:
        InputError: a setting cannot be used, or a row's folder has pictures of other settings.
        PreemptedError: the system requested a stop; the pictures so far are saved.
    """
    adapters = {row: [parse_adapter(text) for text in row.split(",") if text] for row in rows}
    pipe = load(model)
    _check_adapters(pipe, adapters)
    every = drawings(pipe, prompts, options)
    check(pipe, every, judges)
    notes = [*prompts.notes, *notes_on(pipe, prompts, every, options)]
    for line in notes:
        say(f"note: {line}", sys.stderr)
    settings = common_settings(pipe, model, prompts, options)
    pipe = on_all_devices(pipe, min(options.batch, len(every)))
    groups = {n: group for n, group in enumerate(e.group for e in prompts.prompts) if group}
    distance, records = _distance(options), []
    for row in rows:
        own = settings | {
            "adapters": row.split(",") if row else [],
            "adapters_sha256": [[digest.of_adapter(a), strength] for a, strength in adapters[row]],
        }
        opened = opened_in_first(out / folder_name(row), own, judges, options.keep)
        _draw(pipe, every, opened, options, (row, adapters[row]))
        judged = opened.records(every, groups) + _compared(opened, options, distance)
        records.append(
            RowRecord(
                title=row or BASE, adapters=own["adapters"], pictures=len(every), judges=judged
            )
        )
    result: BenchmarkResult = {
        "format": FORMAT,
        "model": model,
        "prompts": prompts.name,
        "settings": settings,
        "notes": notes,
        "rows": records,
    }
    write(out / RESULTS, json.dumps(result, indent=2) + "\n")
    return result


def _check_adapters(
    pipe: Pipeline, adapters: Mapping[str, Sequence[tuple[Adapter, float]]]
) -> None:
    """Check that the adapters of all rows fit the model.

    Raises:
        InputError: one does not.
    """
    for row, parts in adapters.items():
        for (adapter, _), text in zip(parts, row.split(","), strict=False):
            pipe.check(adapter, text)


def _draw(
    pipe: Pipeline,
    every: Sequence[Drawing],
    opened: Row,
    options: BenchmarkOptions,
    row: tuple[str, Sequence[tuple[Adapter, float]]],
) -> None:
    """Draw and judge what is left of a row, and print how fast it was."""
    title, adapters = row[0] or BASE, row[1]
    done = processes.from_first(lambda: sorted(opened.done(every)), list[int])
    if left := len(every) - len(done):
        each = options.steps, options.batch
        started = time.monotonic()
        draw_all(pipe, every, frozenset(done), each, adapters, opened.take, f"pictures, {title}")
        seconds = time.monotonic() - started
        say(
            f"{title}: {counted(left, 'picture')} in {seconds:.1f} s, "
            f"{left / seconds:.2f} pictures/s",
            sys.stderr,
        )
    opened.judge_kept(every, options.batch)


def _distance(options: BenchmarkOptions) -> tuple[str, Any]:
    """Open the comparison with the reference folder, in the first process, if there is one.

    Raises:
        InputError: the folder cannot be compared with.
    """
    if options.reference is None or not processes.first():
        return "", None
    name, compare = open_distance(options.fid_weights, options.reference_judge)
    compare.check(options.reference)
    return name, compare


def _compared(
    opened: Row, options: BenchmarkOptions, distance: tuple[str, Any]
) -> list[JudgeRecord]:
    """Compare a row's pictures with those of the reference folder."""
    name, compare = distance
    if options.reference is None or compare is None:
        return []
    figure = compare.between(opened.folder / PICTURES, options.reference)
    figures = [cast(FigureRecord, asdict(figure))]
    about = {**compare.description, "reference": options.reference.name}
    return [{"judge": name, "description": about, "figures": figures, "groups": {}}]


def drawings(pipe: Pipeline, prompts: PromptSet, options: BenchmarkOptions) -> list[Drawing]:
    """Return the pictures of a prompt set, those of equal size together."""
    height, width = picture_size(pipe, SamplingOptions(height=options.height, width=options.width))
    every = [
        Drawing(
            number,
            each.text,
            options.seed + number if each.seed is None else each.seed,
            guidance_of(each, options),
            (each.height if options.own_sizes else None) or height,
            (each.width if options.own_sizes else None) or width,
        )
        for number, each in enumerate(prompts.prompts[: options.first])
    ]
    return sorted(every, key=lambda each: (each.height, each.width, each.number))


def guidance_of(prompt: BenchmarkPrompt, options: BenchmarkOptions) -> float:
    """Return a prompt's guidance: that of all prompts, its own, or the default."""
    if options.guidance is not None:
        return options.guidance
    return GUIDANCE if prompt.guidance is None else prompt.guidance


def check(pipe: Pipeline, every: Sequence[Drawing], judges: Mapping[str, PictureJudge]) -> None:
    """Check that all pictures can be drawn and judged; reads no weights.

    Raises:
        InputError: a size or guidance cannot be used.
    """
    for height, width in dict.fromkeys((each.height, each.width) for each in every):
        pipe.grid(height, width)
        for text, judge in judges.items():
            # Not a part of the protocol: most judges resize.
            size = getattr(judge, "size", None)
            if size not in (None, height) or size not in (None, width):
                raise InputError(
                    f"judge = {text!r} takes pictures of {size} x {size} pixels, not {height} x "
                    f"{width}; give --height {size} --width {size}"
                )
    for guidance in {each.guidance for each in every}:
        check_sampling(1, guidance)


def notes_on(
    pipe: Pipeline, prompts: PromptSet, every: Sequence[Drawing], options: BenchmarkOptions
) -> list[str]:
    """Return notes on what the model makes of the prompt set."""
    lines = [cut_note(pipe, [each.prompt for each in every])]
    embeds = pipe.transformer.config.guidance_embeds
    own = any(each.guidance is not None for each in prompts.prompts)
    if not embeds and (own or options.guidance is not None):
        lines.append("this model has no guidance: that of the prompt set or --guidance is ignored")
    size = every[0].height, every[0].width
    own_sizes = {(p.height or size[0], p.width or size[1]) for p in prompts.prompts}
    if not options.own_sizes and own_sizes != {size}:
        lines.append(
            f"{prompts.name}: its picture sizes are not used, but {size[0]} x {size[1]}; "
            "--own_sizes uses them"
        )
    return [f"{prompts.name}: {line}" if line == lines[0] else line for line in lines if line]


def common_settings(
    pipe: Pipeline, model: str, prompts: PromptSet, options: BenchmarkOptions
) -> dict[str, Any]:
    """Return all that the pictures of every row depend on, of JSON types."""
    content = [asdict(each) for each in prompts.prompts]
    return {
        "model": model,
        "model_sha256": digest.summary(digest.records(digest.model_files(model))),
        "dtype": str(jax.numpy.dtype(pipe.transformer.dtype)),
        "prompts": prompts.name,
        "prompts_sha256": digest_of(content),
        "where": list(prompts.where),
        "steps": options.steps,
        "guidance": options.guidance,
        "height": options.height,
        "width": options.width,
        "own_sizes": options.own_sizes,
        "seed": options.seed,
    }


def folder_name(row: str) -> str:
    """Return the name of a row's folder: its adapters' names and a digest."""
    if not row:
        return "base"
    words = [part for part in re.split(r"[^A-Za-z0-9.]+", row) if part not in ("adapter", "")]
    return f"{'-'.join(words)[-40:].lstrip('-.')}-{digest_of(row)[:8]}"
