"""Compare this project's speed with diffusers' at FLUX.1 [dev]'s size, on one GPU with 80 GB.

    python -m benchmarks.speed.flux --out flux.json --against diffusers
    python -m benchmarks.speed.flux --out flux.json --works forward-512,step-512 --resume

Each side runs in a separate process, one after another, so that each has the GPU to itself. Every
workload is written to the file as soon as it is measured; `--resume` measures those missing.
`WORKS` in `benchmarks.speed.cases` defines the workloads; see `benchmarks.speed.flux_ours` and
`benchmarks.speed.flux_torch` for how each side is measured. The exit code is 1 if a workload failed
for a reason other than memory.
"""

import itertools
import subprocess  # nosec B404
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.console import Console

from benchmarks.speed import cases as shared
from benchmarks.speed.cases import OUT_OF_MEMORY, SIDES, UNFINISHED, WORKS, Result, chosen, read
from convert.tables import Table, show
from erase.cli.flags import begin, parse_flags
from flux_jax.errors import InputError, exits_cleanly, say

# Number of diffusers' forward passes that the two updates of EraseAnything's own code cost.
OFFICIAL_FORWARDS = 145
GB = 1e9
NOTHING = "–"
# Width of the tables in columns, also in files.
WIDTH = 140


@dataclass(frozen=True)
class Target:
    """Upper limit for this project's fastest of some workloads.

    Attributes:
        title: of the table's row.
        works: by name; if there are several, they do the same work, and each side's fastest counts.
        limit: seconds, bytes, or the ratio to the partner's seconds.
        partner: a side of diffusers.
        field: of the records.
    """

    title: str
    works: tuple[str, ...]
    limit: float
    partner: str | None = None
    field: str = "seconds"


TARGETS = (
    Target("forward, 512", ("forward-512",), 0.78, "compiled"),
    Target("step, 512", ("step-512",), 0.72, "compiled"),
    Target("step, 512", ("step-512",), 0.41, "eager"),
    Target("iteration, 512", ("iteration-512",), 0.50),
    Target("step, 1024, the faster way", ("step-1024", "step-1024-checkpointed"), 0.80, "eager"),
    Target("28 steps of sampling, 1024", ("sample-1024",), 3.9),
    Target("memory of an iteration, 512", ("iteration-512",), 45 * GB, field="memory_bytes"),
)


def number(result: Result, side: str, name: str, field: str = "seconds") -> float | None:
    """A number of a workload's record, if it was measured.

    An iteration of diffusers is not measured; it counts as `OFFICIAL_FORWARDS` forward passes.
    """
    works = result.get(side, {}).get("works", {})
    if side == "eager" and name == "iteration-512" and field == "seconds":
        once = number(result, side, "forward-512")
        return None if once is None else OFFICIAL_FORWARDS * once
    return works.get(name, {}).get(field)


def reached(result: Result, target: Target) -> float | None:
    """The value that a target limits, if all of its workloads were measured."""
    least = []
    for side in ("ours", target.partner):
        if side is None:
            continue
        numbers = [number(result, side, name, target.field) for name in target.works]
        if not (known := [value for value in numbers if value is not None]):
            return None
        least.append(min(known))
    return least[0] if target.partner is None else least[0] / least[1]


def times_table(result: Result) -> Table:
    """A row for each workload: milliseconds of each side, their ratios, our share of the peak."""
    table = Table(title="Milliseconds, medians", caption=caption(result))
    headings = ("", *SIDES, *(f"ours / {side}" for side in SIDES[1:]), "of matmul rate")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
    rate = result.get("ours", {}).get("matmul_flops_per_second")
    for name in measured(result):
        ours, *theirs = (number(result, side, name) for side in SIDES)
        table.add_row(
            name,
            *(cell(result, side, name, 1e-3, 1) for side in SIDES),
            *(f"{ours / other:.2f}" if ours and other else NOTHING for other in theirs),
            share(number(result, "ours", name, "flops"), ours, rate),
        )
    return table


def memory_table(result: Result) -> Table:
    """A row for each workload: gigabytes and seconds of compiling, for each side."""
    table = Table(title="Peak memory, GB (10⁹ bytes), and compile time, s")
    table.add_column("", no_wrap=True)
    for what, side in itertools.product(("GB", "s"), SIDES):
        table.add_column(f"{side}, {what}", justify="right")
    for name in measured(result):
        table.add_row(
            name,
            *(cell(result, side, name, GB, 1, "memory_bytes") for side in SIDES),
            *(cell(result, side, name, 1, 1, "compile_seconds") for side in SIDES),
        )
    return table


def targets_table(result: Result) -> Table:
    """A row for each target."""
    table = Table("", "measured", "target", "met", title="Targets")
    for target in TARGETS:
        value = reached(result, target)
        met = NOTHING if value is None else ("yes" if value <= target.limit else "no")
        shown = NOTHING if value is None else quantity(target, value)
        table.add_row(target.title, shown, f"<= {quantity(target, target.limit)}", met)
    return table


def quantity(target: Target, value: float) -> str:
    """A number with its unit."""
    if target.field == "memory_bytes":
        return f"{value / GB:.1f} GB"
    return f"{value:.2f} s" if target.partner is None else f"{value:.2f} x {target.partner}"


def cell(
    result: Result, side: str, name: str, unit: float, digits: int, field: str = "seconds"
) -> str:
    """A number in a unit, or why it is missing; marked if a result of the run was not finite."""
    record = result.get(side, {}).get("works", {}).get(name, {})
    if "error" in record:
        return record["error"] if field == "seconds" else NOTHING
    if (value := number(result, side, name, field)) is None:
        return NOTHING
    return f"{value / unit:.{digits}f}" + ("" if record.get("finite", True) else " (not finite)")


def share(flops: float | None, seconds: float | None, rate: float | None) -> str:
    """Achieved share of the matrix product's rate."""
    return f"{flops / seconds / rate:.0%}" if flops and seconds and rate else NOTHING


def caption(result: Result) -> str:
    """Machines, matrix product rate, memory, and the number that is not measured."""
    machines = [
        f"{side}: {', '.join(f'{key} {value}' for key, value in result[side]['machine'].items())}"
        for side in SIDES
        if side in result
    ]
    if rate := result.get("ours", {}).get("matmul_flops_per_second"):
        machines.append(f"matmul rate: {rate / 1e12:.0f} TFLOP/s in bfloat16")
    if used := result.get("ours", {}).get("peak_bytes"):
        machines.append(f"peak use of ours: {used / GB:.1f} GB, including creating the weights")
    if number(result, "eager", "iteration-512") is not None:
        machines.append(f"eager's iteration: {OFFICIAL_FORWARDS} x its forward pass, not measured")
    return "\n".join(machines)


def measured(result: Result) -> list[str]:
    """Names of the workloads that any side has, in order."""
    return [n for n in WORKS if any(n in result[s].get("works", {}) for s in SIDES if s in result)]


def missing(result: Result, side: str, names: Sequence[str]) -> list[str]:
    """Workloads of a side that are missing or failed for a reason other than memory."""
    known: Mapping[str, Any] = result.get(side, {}).get("works", {})
    settled = (None, OUT_OF_MEMORY)
    return [
        name
        for name in chosen(names, side)
        if name not in known or known[name].get("error") not in settled
    ]


def run(file: Path, side: str, names: Sequence[str], repeats: int) -> None:
    """Measure a side's workloads in a separate process; restart it if a workload kills it."""
    own = ["flux_ours"] if side == "ours" else ["flux_torch", "--side", side]
    command = [sys.executable, "-m", f"benchmarks.{own[0]}", *own[1:], "--out", str(file)]
    left = list(names)
    while left:
        given = ["--works", ",".join(left), "--repeats", str(repeats)]
        # No shell, and the arguments are this command's own.
        code = subprocess.run([*command, *given], check=False).returncode  # nosec B603
        if code:
            say(f"{side}: the process ended with exit code {code}", sys.stderr)
        # Restart only after a signal: an exit by Python itself would repeat.
        works = read(file).get(side, {}).get("works", {}) if code < 0 else {}
        begun = [index for index, name in enumerate(left) if works.get(name) == UNFINISHED]
        left = left[begun[-1] + 1 :] if begun else []


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    file = Path(given.out)
    chosen(given.works, "ours")
    if file.exists() and not given.resume:
        raise InputError(f"{file} exists; give --resume to measure what it lacks, or another --out")
    sides = SIDES if given.against == "diffusers" else SIDES[:1]
    for side in sides:
        run(file, side, missing(read(file), side, given.works), given.repeats)
    result, console = read(file), Console()
    console.width = max(console.width, WIDTH)
    for table in (times_table(result), memory_table(result), targets_table(result)):
        show(table, console=console)
    if any(missing(result, side, given.works) for side in sides):
        sys.exit(1)


if __name__ == "__main__":
    shared.define_flags()
    flags.adopt_module_key_flags(shared)
    flags.DEFINE_enum("against", None, ["diffusers"], "Also measure diffusers, eager and compiled.")
    flags.DEFINE_bool("resume", False, "Measure only what the file lacks.")
    app.run(main, flags_parser=parse_flags)
