"""Runs the fast tests on every Python and JAX that pyproject.toml promises.

    python -m benchmarks.matrix
    python -m benchmarks.matrix --python 3.13 --jax highest

A cell of the matrix is a version of Python (the classifiers) with the lowest or the highest
dependencies. "Lowest" installs each dependency at its lower bound, "highest" the newest release
that the bounds and this Python allow. Each cell has a virtual environment of its own, in
build/matrix/, which is deleted once the cell has passed: with PyTorch it takes several GB. uv
installs it if it is on the PATH, else pip.

`python3.11` and so on are searched on the PATH, then in pyenv's folder. A passed cell is recorded
and not run again until the code or pyproject.toml changes, so an interrupted matrix continues.
The table of all records goes into docs/matrix.md. Exit code 1: a cell failed, or has no Python.

Needs nothing but Python >= 3.11: this module imports the standard library only.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess  # nosec B404
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.arguments import Parser
from flux_jax.errors import InputError, RunError, exits_cleanly, nearest
from flux_jax.system.json_files import read_json

ROOT = Path(__file__).resolve().parents[1]
BOUNDS = ("lowest", "highest")
# Whose versions the table shows; the first is the one that the matrix is about.
SHOWN = {
    "jax": "JAX",
    "flax": "Flax",
    "optax": "Optax",
    "orbax-checkpoint": "Orbax",
    "numpy": "NumPy",
    "transformers": "Transformers",
}
CODE = ("flux_jax", "convert", "erase", "recipes", "configs", "benchmarks", "tests")
CLASSIFIER = re.compile(r"Programming Language :: Python :: (3\.\d+)")
LOWER_BOUND = re.compile(r"([\w.-]+)\s*(?:\[[^\]]*\])?\s*>=\s*([\w.]+)")
COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped)\b")
# Lines of a log that are shown of a cell that failed.
TAIL = 30


@dataclass(frozen=True)
class Cell:
    """One Python with one set of dependencies."""

    python: str
    bounds: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.python}-{self.bounds}"


@dataclass(frozen=True)
class Record:
    """What came of a cell.

    Attributes:
        python: its full version.
        versions: of the packages in `SHOWN`.
        counts: tests by their outcome, as pytest prints it.
        seconds: that the tests took.
        code: digest of the code and pyproject.toml.
        problem: what failed, empty if nothing did.
    """

    python: str
    versions: dict[str, str]
    counts: dict[str, int]
    seconds: float
    code: str
    problem: str = ""


def pythons(project: Mapping[str, Any]) -> list[str]:
    """The versions of Python that the classifiers promise, such as "3.13"."""
    matches = map(CLASSIFIER.fullmatch, project["classifiers"])
    return [match[1] for match in matches if match]


def lower_bounds(project: Mapping[str, Any]) -> list[str]:
    """Constraints that hold every dependency, those of the tests too, at its lower bound."""
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    matches = map(LOWER_BOUND.match, asked)
    return [f"{match[1]}=={match[2]}" for match in matches if match]


def digest(root: Path) -> str:
    """Of the code, the tests and pyproject.toml."""
    files = [file for folder in CODE for file in sorted((root / folder).rglob("*.py"))]
    total = hashlib.sha256()
    for file in (root / "pyproject.toml", *files):
        total.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return total.hexdigest()


def find_python(version: str) -> str | None:
    """An interpreter of a version, or None; pyenv's names on the PATH may be without one."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    places = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for place in filter(None, places):
        command = [str(place), "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # nosec B603
        if done.stdout.strip() == version:
            return str(place)
    return None


def call(command: Sequence[str], log: Path) -> str:
    """Runs a command in the repository's root, appends its output to a log and returns it.

    Raises:
        RunError: its exit code is not 0.
    """
    done = subprocess.run(  # nosec B603
        list(command), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-TAIL:]), file=sys.stderr)
        raise RunError(f"{' '.join(command[1:4])} ended with code {done.returncode}; see {log}")
    return done.stdout


def run_cell(cell: Cell, folder: Path, tests: Sequence[str], workers: str) -> Record:
    """Installs a cell's environment, runs its tests, and deletes the environment if they pass.

    Args:
        cell: the cell.
        folder: takes its files.
        tests: files of tests; all, if there are none.
        workers: processes of pytest, as its `-n`.
    """
    code, log = digest(ROOT), folder / f"{cell.name}.log"
    log.unlink(missing_ok=True)
    interpreter = find_python(cell.python)
    if interpreter is None:
        return Record(cell.python, {}, {}, 0.0, code, f"there is no python{cell.python}")
    venv = folder / cell.name
    python = str(venv / "bin" / "python")
    version, versions, counts, seconds, problem = cell.python, {}, {}, 0.0, ""
    try:
        say(cell, "installing")
        call([interpreter, "-m", "venv", "--clear", str(venv)], log)
        uv = shutil.which("uv")
        pip = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
        install = [*pip, "--quiet", "--editable", ".[test]"]
        if cell.bounds == "lowest":
            constraints = folder / f"{cell.name}.txt"
            constraints.write_text("\n".join(lower_bounds(read_project(ROOT))) + "\n")
            install += ["--constraint", str(constraints)]
        call(install, log)
        version, versions = installed(python, log)
        say(cell, f"testing with JAX {versions['jax']}")
        begun = time.monotonic()
        distribute = ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"]
        chosen = [*tests] if tests else ["-m", "not slow"]
        pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", *distribute, *chosen]
        counts = outcomes(call(pytest, log))
        seconds = time.monotonic() - begun
        shutil.rmtree(venv)
    except RunError as error:
        problem = str(error)
        counts = outcomes(log.read_text())
    return Record(version, versions, counts, seconds, code, problem)


def installed(python: str, log: Path) -> tuple[str, dict[str, str]]:
    """The full version of an environment's Python, and those of the packages in `SHOWN`."""
    program = (
        "import json, platform, sys; from importlib.metadata import version; "
        "print(json.dumps([platform.python_version(), {n: version(n) for n in sys.argv[1:]}]))"
    )
    version, versions = json.loads(call([python, "-c", program, *SHOWN], log))
    return version, versions


def outcomes(output: str) -> dict[str, int]:
    """Tests by their outcome, from the last line of pytest's output that counts any."""
    lines = [line for line in output.splitlines() if COUNTS.search(line) and " in " in line]
    return {what: int(n) for n, what in COUNTS.findall(lines[-1])} if lines else {}


def say(cell: Cell, what: str) -> None:
    """Prints a line of progress."""
    print(f"Python {cell.python}, {cell.bounds} dependencies: {what}", file=sys.stderr)


def read_project(root: Path) -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def read_records(folder: Path, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Record]]:
    """The cells that have a record, in order."""
    for cell in cells:
        file = folder / f"{cell.name}.json"
        if file.is_file():
            try:
                yield cell, Record(**read_json(file, mend="remove it to test again"))
            except TypeError as error:
                raise InputError(f"{file} is no record ({error}); remove it") from error


def table(cells: Sequence[Cell], records: Mapping[Cell, Record]) -> str:
    """The page: a row for each cell; one without a record was not run."""
    head = ["Python", "dependencies", *SHOWN.values(), "tests"]
    unknown = Record("", {}, {}, 0.0, "")
    rows = []
    for cell in cells:
        record = records.get(cell, unknown)
        versions = [record.versions.get(name, "-") for name in SHOWN]
        tests = tests_of(record) if cell in records else "not run"
        rows.append([record.python or cell.python, cell.bounds, *versions, tests])
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return PAGE.format(table="\n".join(lines))


def tests_of(record: Record) -> str:
    """A record's counts and seconds as text."""
    counts = ", ".join(f"{number} {what}" for what, number in record.counts.items())
    if not record.problem:
        return f"{counts} in {record.seconds:.0f} s"
    return f"**failed**: {counts or record.problem}"


PAGE = """# Python and JAX

The fast tests (`make test-fast`) on every Python that the package promises, with the lowest and the
highest dependencies that `pyproject.toml` allows, on CPU. `make matrix` runs them and writes this
page; `.github/workflows/ci.yml` runs the same cells.

{table}

The highest JAX for Python 3.11 is 0.10.2: later releases need Python 3.12.
"""


def chosen_cells(project: Mapping[str, Any], python: str | None, bounds: str | None) -> list[Cell]:
    """The cells of a version of Python and of a set of dependencies; None stands for all.

    Raises:
        InputError: there is no such cell.
    """
    promised = pythons(project)
    for field, value, known in (("python", python, promised), ("jax", bounds, BOUNDS)):
        if value is not None and value not in known:
            raise InputError(f"{field} = {value!r} is unknown; {nearest(value, known)}")
    return [
        Cell(version, each)
        for version in ([python] if python else promised)
        for each in ([bounds] if bounds else BOUNDS)
    ]


def run_matrix(
    cells: Sequence[Cell], folder: Path, tests: Sequence[str], workers: str
) -> list[tuple[Cell, Record]]:
    """Runs the cells that have not passed yet.

    Args:
        cells: to run.
        folder: of the records.
        tests: files of tests; all, if there are none, and only then is anything recorded.
        workers: processes of pytest.

    Returns:
        Cells with their records, the earlier ones included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code, earlier, results = digest(ROOT), dict(read_records(folder, cells)), []
    for number, cell in enumerate(cells, start=1):
        record = earlier.get(cell)
        if tests or record is None or record.problem or record.code != code:
            say(cell, f"cell {number} of {len(cells)}")
            record = run_cell(cell, folder, tests, workers)
            if not tests:
                text = json.dumps(asdict(record), indent=2) + "\n"
                (folder / f"{cell.name}.json").write_text(text)
        say(cell, tests_of(record))
        results.append((cell, record))
    return results


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = Parser("benchmarks.matrix", __doc__)
    parser.add_argument(
        "--tests", nargs="+", default=[], help="Only these test files; nothing is recorded."
    )
    parser.add_argument("--python", help="Only this version, such as 3.13.")
    parser.add_argument("--jax", help="Only the lowest or the highest dependencies.")
    parser.add_argument("--workers", default="auto", help="Processes that test at once.")
    parser.add_argument("--out", default="docs/matrix.md", help="The page with the table.")
    given = parser.parse_args(argv)
    project = read_project(ROOT)
    folder = ROOT / "build" / "matrix"
    cells = chosen_cells(project, given.python, given.jax)
    results = run_matrix(cells, folder, given.tests, given.workers)
    if not given.tests:
        every = chosen_cells(project, None, None)
        Path(given.out).write_text(table(every, dict(read_records(folder, every))))
    failed = [cell.name for cell, record in results if record.problem]
    if failed:
        raise RunError(f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
