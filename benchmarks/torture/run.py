"""Tries many times what could break the program's promises, and writes docs/torture.md.

    python -m benchmarks.torture.run
    python -m benchmarks.torture.run --scale 0.05 --parts kills,starts

Each module of the folder with a function `rows` is a part. Two parts run at once, each in a process
of its own. The rows of a finished part are kept in build/torture/, so an interrupted command
continues; `--again` repeats all. Exit code 1: something did not hold.
"""

import importlib
import json
import pkgutil
import shutil
import subprocess  # nosec B404
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import benchmarks.torture
from benchmarks.torture.row import Row
from convert.arguments import Parser
from erase.runtime.files import read_json, write
from flux_jax.errors import InputError, exits_cleanly, nearest

# The longest parts, which start first.
LONGEST = ("kills", "memory", "kills_evaluation")
# Parts that run at once: one a core of the machine that the limit of an hour is for.
AT_ONCE = 2
ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "torture"
PAGE = ROOT / "docs" / "torture.md"
HEAD = """# What was tried to break it

`make torture` kills, damages and starts twice what should survive it, and writes this page.
On 2 CPU cores it took 27 minutes. Peak: the largest memory of a process.

"""


def parts() -> list[str]:
    """Return the names of the modules with a function `rows`."""
    names = [module.name for module in pkgutil.iter_modules(benchmarks.torture.__path__)]
    sources = {name: (Path(__file__).parent / f"{name}.py").read_text() for name in names}
    names = [name for name, source in sources.items() if "\ndef rows(" in source]
    return [*LONGEST, *(name for name in names if name not in LONGEST)]


def table(rows: Sequence[Row]) -> str:
    """Format rows as Markdown."""
    lines = [
        "| what | tried | held | minutes | peak | notes |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        peak = "" if row.peak_mb is None else f"{row.peak_mb:,.0f} MB"
        note = row.note.replace("|", "\\|").replace("\n", " ")
        lines.append(
            f"| {row.what} | {row.tried:,} | {row.held:,} | {row.seconds / 60:.1f} | {peak} "
            f"| {note} |"
        )
    return "\n".join(lines) + "\n"


def measured(name: str, scale: float, again: bool) -> list[Row]:
    """Return the rows of a part, which are kept once it has ended."""
    kept, folder = BUILD / f"{name}.json", BUILD / name
    if kept.is_file() and not again:
        content = read_json(kept, mend="remove it")
        if content.get("scale") == scale:
            return [Row(**row) for row in content["rows"]]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.strftime("%Y-%m-%d")
    rows = list(importlib.import_module(f"benchmarks.torture.{name}").rows(scale, folder))
    shutil.rmtree(folder, ignore_errors=True)
    content = {"scale": scale, "date": began, "rows": [asdict(row) for row in rows]}
    write(kept, json.dumps(content, indent=1) + "\n")
    return rows


def in_its_process(name: str, scale: float, again: bool) -> list[Row]:
    """Run a part in a process of its own, and return its rows.

    Raises:
        InputError: the process ended without them; the message names its log.
    """
    command = [sys.executable, "-m", "benchmarks.torture.run", "--parts", name]
    command += ["--scale", str(scale), *(["--again"] if again else [])]
    log = BUILD / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file).returncode  # nosec B603
    # 1 says that something did not hold: the rows are there.
    if code not in (0, 1):
        raise InputError(f"part {name!r} ended with exit code {code}; see {log}")
    return measured(name, scale, again=False)


def side_by_side(
    names: Sequence[str], scale: float, again: bool, ended: Callable[[str], None]
) -> list[Row]:
    """Run parts in processes of their own, and return their rows in order.

    Args:
        names: parts, of which those named first start first.
        scale: share of the full number of tries.
        again: whether finished parts are repeated.
        ended: is called with the name of each part that has ended.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(in_its_process, name, scale, again): name for name in names}
        for part in as_completed(running):
            ended(running[part])
    return [row for part in running for row in part.result()]


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts, and write the page if all ran at full scale."""
    parser = Parser("benchmarks.torture.run", __doc__)
    parser.add_argument("--parts", default="", help="names with commas between them; all if empty")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full number of tries"
    )
    parser.add_argument("--again", action="store_true", help="repeat finished parts")
    given, known = parser.parse_args(arguments), parts()
    chosen = given.parts.split(",") if given.parts else known
    for name in chosen:
        if name not in known:
            raise InputError(f"part = {name!r} is unknown; {nearest(name, known)}")
    if not 0 < given.scale <= 1:
        raise InputError(f"scale = {given.scale} must be above 0 and at most 1")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(chosen))
        if len(chosen) == 1:
            rows = measured(chosen[0], given.scale, given.again)
        else:
            rows = side_by_side(
                chosen,
                given.scale,
                given.again,
                lambda name: progress.update(task, advance=1, description=f"{name} ended"),
            )
    print(table(rows))
    if given.scale == 1 and set(chosen) == set(known):
        write(PAGE, HEAD + table(rows))
    sys.exit(any(row.held < row.tried for row in rows))


if __name__ == "__main__":
    main()
