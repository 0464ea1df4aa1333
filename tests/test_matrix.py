"""The matrix of Python and JAX: its cells, constraints, records and table; CI runs the same."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from helpers.tiny import ROOT

from benchmarks import matrix
from benchmarks.matrix import Cell, Record
from flux_jax.errors import InputError, RunError

PROJECT = {
    "classifiers": ["Programming Language :: Python :: 3.11", "Programming Language :: Python"],
    "dependencies": ["jax>=0.10,<0.13", "huggingface-hub>=1.32", "tool[extra] >= 2", "free"],
    "optional-dependencies": {
        "test": ["torch==2.13.0", "pytest>=9"],
        "cuda": ["jax[cuda13]>=0.11"],
    },
}
VERSIONS = {"jax": "0.12.0", "flax": "0.12.9"}


def record(code: str, problem: str = "", failed: int = 0) -> Record:
    counts = {"failed": failed} if failed else {}
    return Record("3.13.0", VERSIONS, {**counts, "passed": 7}, 61.6, code, problem)


def test_lowest_holds_every_dependency_at_its_lower_bound():
    expected = ["jax==0.10", "huggingface-hub==1.32", "tool==2", "pytest==9"]
    assert matrix.lower_bounds(PROJECT) == expected


def test_the_project_promises_six_cells_and_ci_runs_them():
    project = matrix.read_project(ROOT)
    cells = matrix.chosen_cells(project, None, None)
    expected = {(f"3.{minor}", each) for minor in (11, 12, 13) for each in ("lowest", "highest")}
    assert {(cell.python, cell.bounds) for cell in cells} == expected
    assert min(matrix.pythons(project)) == project["requires-python"].removeprefix(">=")
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["matrix"]
    asked = job["strategy"]["matrix"]
    assert asked["python"] == matrix.pythons(project)
    assert tuple(asked["jax"]) == matrix.BOUNDS
    assert any("benchmarks.matrix" in step.get("run", "") for step in job["steps"])


def test_cells_are_chosen_by_name():
    project = matrix.read_project(ROOT)
    assert matrix.chosen_cells(project, "3.13", "lowest") == [Cell("3.13", "lowest")]
    assert len(matrix.chosen_cells(project, "3.13", None)) == 2
    with pytest.raises(InputError, match=r"python = '3.10' is unknown; did you mean 3.1\d"):
        matrix.chosen_cells(project, "3.10", None)
    with pytest.raises(InputError, match="jax = 'higest' is unknown; did you mean highest"):
        matrix.chosen_cells(project, None, "higest")


def test_a_python_is_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A shim of pyenv without its version answers with an error."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    shim = tmp_path / "shims" / f"python{version}"
    home = tmp_path / "versions" / f"{version}.9" / "bin"
    shim.parent.mkdir()
    home.mkdir(parents=True)
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(shim.parent))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert matrix.find_python(version) is None
    (home / "python").symlink_to(sys.executable)
    assert matrix.find_python(version) == str(home / "python")
    assert matrix.find_python("3.99") is None


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("..\n= slowest =\n2 failed, 7 passed, 1 skipped in 3.1s\n", (2, 7, 1)),
        ("1 passed in 0.1s\n3 passed, 2 errors in 61.20s (0:01:01)\n", (0, 3, 0)),
        ("Fatal Python error: Aborted\n", (0, 0, 0)),
    ],
)
def test_outcomes_are_those_of_the_last_count(output: str, expected: tuple[int, ...]):
    counts = matrix.outcomes(output)
    assert tuple(counts.get(name, 0) for name in ("failed", "passed", "skipped")) == expected


def test_a_cell_installs_its_bounds_and_records_what_it_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands = []

    def call(command: list[str], log: Path) -> str:
        commands.append(command)
        Path(command[-1]).mkdir(exist_ok=True) if "venv" in command else None
        if "-c" in command:
            return '["3.13.7", {"jax": "0.10.0"}]'
        return "5 passed, 2 deselected in 9s" if "pytest" in command else ""

    monkeypatch.setattr(matrix, "call", call)
    monkeypatch.setattr(matrix, "find_python", lambda version: "python-of-3.13")
    made = matrix.run_cell(Cell("3.13", "lowest"), tmp_path, [], "2")
    assert (made.python, made.versions, made.problem) == ("3.13.7", {"jax": "0.10.0"}, "")
    assert made.counts == {"passed": 5}
    _, install, _, tests = commands
    constraints = Path(install[install.index("--constraint") + 1])
    assert constraints.read_text().startswith("jax==0.10.2\n")
    assert tests[-2:] == ["-m", "not slow"]
    assert not (tmp_path / "3.13-lowest").exists()
    matrix.run_cell(Cell("3.13", "highest"), tmp_path, ["tests/test_lora.py"], "2")
    assert "--constraint" not in commands[-3]
    assert commands[-1][-1] == "tests/test_lora.py"


def test_a_failure_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = tmp_path / "log"
    monkeypatch.setattr(matrix, "TAIL", 1)
    with pytest.raises(RunError, match=r"-c .* ended with code 3; see .*log"):
        matrix.call([sys.executable, "-c", "print('said'); raise SystemExit(3)"], log)
    assert "said" in log.read_text()
    monkeypatch.setattr(matrix, "find_python", lambda version: None)
    made = matrix.run_cell(Cell("3.13", "lowest"), tmp_path, [], "2")
    assert made.problem == "there is no python3.13"


def test_only_what_has_not_passed_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran, results = [], {"3.11": "", "3.12": "broken"}

    def run_cell(cell: Cell, folder: Path, tests: list[str], workers: str) -> Record:
        ran.append(cell.python)
        return record(matrix.digest(ROOT), results[cell.python])

    monkeypatch.setattr(matrix, "run_cell", run_cell)
    cells = [Cell("3.11", "lowest"), Cell("3.12", "lowest")]
    matrix.run_matrix(cells, tmp_path, [], "1")
    matrix.run_matrix(cells, tmp_path, [], "1")
    assert ran == ["3.11", "3.12", "3.12"]
    # Other code is tested anew, and chosen files of tests leave no record.
    monkeypatch.setattr(matrix, "digest", lambda root: "other")
    results["3.12"] = ""
    matrix.run_matrix(cells, tmp_path, ["tests/test_lora.py"], "1")
    matrix.run_matrix(cells, tmp_path, [], "1")
    assert ran[3:] == ["3.11", "3.12"] * 2
    assert [each.code for _, each in matrix.read_records(tmp_path, cells)] == ["other"] * 2
    matrix.run_matrix(cells, tmp_path, [], "1")
    assert len(ran) == 7


def test_the_table_has_a_row_for_each_cell():
    good, bad, open_ = Cell("3.13", "lowest"), Cell("3.13", "highest"), Cell("3.12", "lowest")
    records = {good: record(""), bad: record("", "pytest failed", failed=2)}
    page = matrix.table([open_, good, bad], records)
    rows = re.findall(r"^\| 3\.1.*$", page, re.MULTILINE)
    assert rows[0] == "| 3.12 | lowest | - | - | - | - | - | - | not run |"
    assert rows[1].split(" | ")[:4] == ["| 3.13.0", "lowest", "0.12.0", "0.12.9"]
    assert rows[1].endswith("| 7 passed in 62 s |")
    assert rows[2].endswith("| **failed**: 2 failed, 7 passed |")


def test_the_digest_follows_code_and_dependencies(tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text("a")
    (tmp_path / "erase").mkdir()
    (tmp_path / "erase" / "x.py").write_text("1")
    first = matrix.digest(tmp_path)
    (tmp_path / "docs.md").write_text("no code")
    assert matrix.digest(tmp_path) == first
    (tmp_path / "erase" / "x.py").write_text("2")
    second = matrix.digest(tmp_path)
    (tmp_path / "pyproject.toml").write_text("b")
    assert len({first, second, matrix.digest(tmp_path)}) == 3
