"""The paper's Table 2 and Figure 5 on the small model: erase "car" by every method, draw, judge.

    python -m benchmarks.table2.run

Every method trains with configs/emoji_table2.py. `erase-anything benchmark` draws and judges the
prompts that name the concept (concept.csv) and captions of other things (captions.csv), and
`erase-anything table` prints one table, in runs/table2/table.md. For the five axes of the user
study it also draws study.csv, and writes axes.json and radar.png. Without `--full` it is a short
version for 2 CPU cores, two commands at a time; with it, all prompts and iterations, one command at
a time, for a GPU. Interrupted, it continues: the commands repeat nothing that they have finished.
"""

import os
import subprocess  # nosec B404
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.table2 import prompts, shape
from convert.arguments import Parser
from erase.benchmark.results import PICTURES
from erase.benchmark.run import folder_name
from erase.runtime.files import write
from flux_jax.errors import RunError, exits_cleanly

CONFIG, JUDGE = "configs/emoji_table2.py", "models/emoji-flux/judge"
TRAIN, BENCHMARK, AXES = (
    ("-m", "erase.train"),
    ("-m", "erase", "benchmark"),
    ("-m", "erase", "axes"),
)


@dataclass(frozen=True)
class Size:
    """How much is trained and drawn.

    Attributes:
        samples: of each update, `batch_size`.
        fewer: iterations of the methods that need fewer than the 300 with which all were tuned, by
            row; a method with a high learning rate has erased the concept long before.
        prompts: of concept.csv, from the first on.
        captions: of captions.csv, from the first on.
        studied: pictures of study.csv, from the first on.
        steps: Euler steps of the pictures.
        batch: pictures drawn at once.
        lanes: commands at a time.
    """

    samples: int
    fewer: Mapping[str, int]
    prompts: int
    captions: int
    studied: int
    steps: int
    batch: int
    lanes: int


# One sample is the model's default for an entity; the methods were tuned on all kinds with four.
SHORT = Size(1, {"erase_anything": 100, "eap": 150}, 48, 150, 72, steps=14, batch=25, lanes=2)
STUDIED = prompts.STUDIED * prompts.STUDY_SEEDS
FULL = Size(4, {}, prompts.PROMPTS, prompts.CAPTIONS, STUDIED, steps=28, batch=100, lanes=1)
# Of the reference pictures: the captions' own seeds and this.
OTHER_SEEDS = 1_000_000


def training(name: str, out: Path, size: Size) -> list[str]:
    """The command that trains a row of the table."""
    fields = {**shape.ROWS[name].settings, "batch_size": str(size.samples)}
    if name in size.fewer:
        fields["iterations"] = str(size.fewer[name])
    changed = [f"--config.{field}={value}" for field, value in fields.items()]
    return [*TRAIN, "--config", CONFIG, *changed, "--workdir", str(out / name)]


def drawing(name: str, file: Path, count: int, out: Path, size: Size) -> list[str]:
    """The command that draws the prompts of a file, into the folder `name`."""
    how = ["--steps", str(size.steps), "--batch", str(size.batch)]
    picked = ["--prompts", str(file), "--first", str(count)]
    return [*BENCHMARK, *picked, *how, "--base", "--out", str(out / name)]


def commands(out: Path, size: Size) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The commands by name: those without an order among them, and those that follow."""
    reference = out / "reference.csv"
    first = {name: training(name, out, size) for name in shape.SLOWEST_FIRST}
    first["reference"] = drawing("reference", reference, size.captions, out, size)
    rows = [part for name in shape.ROWS for part in ("--adapter", str(out / name))]
    judge = ["--judge", f"emoji={JUDGE}"]
    against = ["--reference", str(out / "reference/base/pictures"), "--reference_judge", JUDGE]
    captions = drawing("captions", prompts.CAPTION_FILE, size.captions, out, size)
    concept = drawing("concept", prompts.CONCEPT_FILE, size.prompts, out, size)
    study = drawing("study", prompts.STUDY_FILE, size.studied, out, size)
    find = ["--find", prompts.CONCEPT]
    return first, {
        "captions": [*captions, *rows, *judge, *against],
        "concept": [*concept, *rows, *judge, *find],
        "study": [*study, *rows],
    }


def measuring(out: Path) -> list[str]:
    """The arguments of `erase-anything axes` on the pictures of study.csv."""
    folders = {"base": "base"} | {
        row.title: folder_name(str(out / name)) for name, row in shape.ROWS.items()
    }
    pictures = [
        f"--pictures={title}={out / 'study' / folder / PICTURES}"
        for title, folder in folders.items()
    ]
    return [*AXES, *pictures, "--concept", prompts.CONCEPT, "--judge", JUDGE, "--out", str(out)]


def run(name: str, command: Sequence[str], out: Path) -> float:
    """Run a command in a process of its own, with its output in a log; return its seconds.

    Raises:
        RunError: it failed; the message has its last line and names the log.
    """
    log, began = out / "logs" / f"{name}.log", time.monotonic()
    # The commands compile the same programs; JAX keeps those that take longer than a second.
    compiled = {"JAX_COMPILATION_CACHE_DIR": str((out / "compiled").resolve())}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        code = subprocess.run(  # nosec B603
            [sys.executable, *command],
            stdout=file,
            stderr=file,
            env={**compiled, **os.environ},
        ).returncode
    if code:
        last = [*log.read_text("utf-8", "replace").strip().splitlines(), "no output"][-2:][0]
        raise RunError(f"{name} ended with exit code {code} ({last:.120}); see {log}")
    return time.monotonic() - began


def run_all(named: Mapping[str, Sequence[str]], out: Path, lanes: int, progress: Progress) -> None:
    """Run commands, so many at a time; the first that fails ends those that have not started.

    Raises:
        RunError: one failed.
    """
    task = progress.add_task(", ".join(named), total=len(named))
    with ThreadPoolExecutor(lanes) as pool:
        running = {pool.submit(run, name, each, out): name for name, each in named.items()}
        for done in as_completed(running):
            if done.exception() is not None:
                pool.shutdown(cancel_futures=True)
            text = f"{running[done]}: {done.result():.0f} s"
            progress.update(task, advance=1, description=text)


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is left, and print the table."""
    parser = Parser("benchmarks.table2.run", __doc__)
    parser.add_argument("--full", action="store_true", help="all prompts and iterations, for a GPU")
    parser.add_argument("--out", type=Path, help="folder; by default runs/table2 or table2-full")
    given = parser.parse_args(arguments)
    size = FULL if given.full else SHORT
    out = given.out or Path("runs/table2-full" if given.full else "runs/table2")
    write(out / "reference.csv", prompts.other_seeds(OTHER_SEEDS))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for named in (*commands(out, size), {"axes": measuring(out)}):
            run_all(named, out, size.lanes, progress)
    from erase.cli import table

    table.main([*map(str, shape.write_results(out)), "--out", str(out)])


if __name__ == "__main__":
    main()
