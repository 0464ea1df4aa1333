"""Code structure: import order, sizes of folders, files and functions, and moved modules."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.tiny import ROOT

import erase
import flux_jax

# Each imports only itself and those listed before it.
ORDER = (
    "flux_jax",
    "convert",
    "erase.config",
    "erase.runtime",
    "erase.data.words",
    "erase.data",
    "erase.model",
    "erase.methods.settings",
    "erase.methods.parts",
    "erase.methods",
    "erase.runs",
    "erase.evaluation",
    "erase.attacks.families",
    "erase.attacks.disguises",
    "erase.judges",
    "erase.benchmark",
    "erase.report",
    "erase.watch",
    "erase.training",
    "erase.attacks",
    "erase.compose",
    "erase.figures",
    "erase.survey",
    "erase.play",
    "erase.cli",
    "erase",
    "recipes",
    "configs",
    "benchmarks",
)
PACKAGES = ("flux_jax", "convert", "erase", "recipes", "configs", "benchmarks")
MOST_ENTRIES = 14
# A folder for each package of `erase`, and a file for each of its commands; FLUX.2's models.
MORE_ENTRIES = {"erase": 21, "erase/cli": 20, "flux_jax/models": 15}
# Lines of a file; lines of a function, with its signature and docstring; arguments of a function.
MOST_LINES, MOST_FUNCTION_LINES, MOST_ARGUMENTS = 400, 60, 8
# The transformer's forward pass, kept in one piece for comparison with diffusers'.
WHOLE = {
    ("flux_jax/models/transformer.py", "__call__"),
    ("flux_jax/models/flux2/transformer.py", "__call__"),
}


MODULES = [
    (".".join(file.relative_to(ROOT).with_suffix("").parts), file)
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
]


def floor(module: str) -> int:
    """Index in `ORDER` of the innermost package that contains a module."""
    names = [name for name in ORDER if f"{module}.".startswith(f"{name}.")]
    return ORDER.index(max(names, key=len))


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("module", "file"), MODULES)
def test_nothing_imports_upwards(module: str, file: Path):
    for name in imported(file):
        # The packages' own names, such as the table of moved modules.
        if name.partition(".")[0] in PACKAGES:
            assert floor(name) <= floor(module), f"{module} imports {name}"


# The modules that print, and those that read or format text of spreadsheets, pages and figures.
SINKS = {
    "print": {"flux_jax.errors", "flux_jax.errors.messages", "flux_jax.errors.libraries"},
    "rich": {"convert.tables"},
    "csv": {"erase.benchmark.prompt_sets", "erase.survey.answers"},
    "jinja2": {"erase.report.plain_text", "benchmarks.results.page"},
}
# Files that are printed to, and widths of tables.
PRINTS_ELSEWHERE = {"erase.training.metrics"}


@pytest.mark.parametrize(("module", "file"), MODULES)
def test_text_reaches_a_terminal_or_a_file_through_one_place(module: str, file: Path):
    if module.partition(".")[0] not in ("flux_jax", "convert", "erase"):
        return
    module = module.removesuffix(".__init__")
    names = {name.partition(".")[0] for name in imported(file)}
    names |= {
        node.func.id
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    for name, homes in SINKS.items():
        allowed = homes | (PRINTS_ELSEWHERE | {"flux_jax.moved"} if name == "print" else set())
        assert name not in names or module in allowed, f"{module}: {name}; use {homes}"


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the signature, docstring and body, without decorators."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of arguments without `self` and `cls`; `*args` and `**kwargs` count as one each."""
    spec = function.args
    names = [each.arg for each in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    bundles = [each for each in (spec.vararg, spec.kwarg) if each]
    return len(names) - (names[:1] in (["self"], ["cls"])) + len(bundles)


FILES = [file for _, file in MODULES] + sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_is_short(file: Path):
    count = len(file.read_text().splitlines())
    assert count <= MOST_LINES, f"{file.relative_to(ROOT)}: {count} lines"


@pytest.mark.parametrize(("module", "file"), MODULES)
def test_functions_are_short_and_take_few_arguments(module: str, file: Path):
    del module
    path = file.relative_to(ROOT).as_posix()
    counts = [
        (each.name, count, most, what)
        for each in functions(file)
        if (path, each.name) not in WHOLE
        for count, most, what in (
            (lines(each), MOST_FUNCTION_LINES, "lines"),
            (arguments(each), MOST_ARGUMENTS, "arguments"),
        )
    ]
    over = [f"{path}: {n} has {count} {what}" for n, count, most, what in counts if count > most]
    assert not over, "; ".join(over)


def test_lines_and_arguments_are_counted():
    """For a function with known numbers."""
    text = "class A:\n @final\n def f(self, a, /, b, *c, d=1, **e):\n  return (\n1)\n"
    (function,) = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))
    assert (lines(function), arguments(function)) == (3, 5)


def test_a_folder_has_few_entries():
    for package in ("flux_jax", "convert", "erase", "benchmarks"):
        for folder in [ROOT / package, *(ROOT / package).rglob("*/")]:
            entries = {e.name for e in folder.iterdir() if e.suffix in (".py", "")}
            entries -= {"__pycache__"}
            path = folder.relative_to(ROOT).as_posix()
            most = MORE_ENTRIES.get(path, MOST_ENTRIES)
            assert len(entries) <= most, f"{path}: {sorted(entries)}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("former", "name", "home"),
    [
        ("erase.losses", "squared_error", "erase.methods.parts.losses"),
        ("erase.bank", "Plan", "erase.data.plan"),
        ("convert.errors", "InputError", "flux_jax.errors"),
        ("flux_jax.transformer", "FluxTransformer", "flux_jax.models.transformer"),
        ("convert.lora", "read_lora", "convert.adapters.files"),
        ("erase.config", "Config", "erase.config.schema"),
    ],
)
def test_names_of_moved_modules_are_those_of_the_present_ones(former: str, name: str, home: str):
    program = f"from {former} import {name}; from {home} import {name} as now; print({name} is now)"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "True\n", run.stderr
    moved = former not in ("convert.lora", "erase.config")
    assert bool(re.fullmatch(rf"note: {former} is .*{home}.* now\n", run.stderr)) == moved


@pytest.mark.parametrize("former", ["erase.sample", "erase.report", "erase.evaluate"])
def test_former_commands_work_and_say_what_they_are_now(former: str):
    run = subprocess.run(
        [sys.executable, "-m", former, "--qqq"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2, run.stderr
    note, error = run.stderr.splitlines()
    assert note == f"note: python -m {former} is python -m {former.replace('.', '.cli.')} now"
    assert error.startswith("error: --qqq is not a flag")


def test_all_that_moved_is_there():
    """The new homes of all moved modules can be imported."""
    for finder in sys.meta_path:
        modules = getattr(finder, "modules", {})
        # The `modules` of the finder that checks annotations is a list.
        for former, homes in modules.items() if isinstance(modules, dict) else ():
            if not former.startswith("benchmarks"):
                for home in homes.split():
                    importlib.import_module(home)


def test_names_of_the_packages_are_imported_when_asked_for():
    program = "import sys, flux_jax, erase, convert; print('jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr
    assert flux_jax.Adapter.__name__ == "Adapter"
    with pytest.raises(AttributeError, match="no attribute 'Adaptor'"):
        flux_jax.Adaptor  # noqa: B018
    assert erase.__doc__
