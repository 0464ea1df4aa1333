"""Help and usage errors take little time, and what is installed is the three packages alone."""

import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.tiny import ROOT

from erase.cli.commands import COMMANDS

# Twice what an idle machine takes at most: CPU time grows where others share the cores.
SECONDS = 2.0
ERASE = [name for name in COMMANDS if not name.startswith("convert ")]


def run(*arguments: str, cwd: Path = ROOT) -> tuple[float, subprocess.CompletedProcess[str]]:
    """A command's seconds on the CPU, and how it ended."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    return used() - before, done


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        *(([*name.split(), "--help"], 0) for name in COMMANDS),
        *(([name, "--qqq"], 2) for name in ERASE),
        (["qqq"], 2),
        (["--help"], 0),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_help_and_usage_errors_take_a_second_of_the_cpu(arguments: list[str], code: int):
    seconds, done = run("-m", "erase", *arguments)
    assert done.returncode == code, done.stderr
    if seconds > SECONDS:
        # Another process was in the way.
        seconds, _ = run("-m", "erase", *arguments)
    assert seconds <= SECONDS


@pytest.mark.parametrize("name", ERASE)
def test_help_imports_no_jax(name: str):
    _, done = run("-X", "importtime", "-m", "erase", name, "--help")
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "absl" in modules or "argparse" in modules
    assert not modules & {"jax", "flax", "transformers", "openai", "nltk", "scipy", "matplotlib"}


@pytest.mark.slow
def test_a_wheel_holds_three_packages_and_works_anywhere(tmp_path: Path):
    source, empty, site = tmp_path / "source", tmp_path / "empty", tmp_path / "site"
    empty.mkdir()
    source.mkdir()
    for name in ("flux_jax", "convert", "erase", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    wheel = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path))
    _, done = run(*wheel, str(source))
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as packed:
        packed.extractall(site)
    packages = {each.name for each in site.iterdir() if each.suffix != ".dist-info"}
    assert packages == {"flux_jax", "convert", "erase"}
    assert (site / "erase/data/words/wordnet.json").is_file()
    assert all((site / name / "py.typed").is_file() for name in packages)
    begin = f"import sys; sys.path[:] = [{str(site)!r}, *filter(None, sys.path)]; "
    again = "sys.argv = ['erase', *{}]; from erase.cli.commands import dispatch; dispatch()"
    _, done = run("-c", begin + again.format(["--help"]), cwd=empty)
    assert done.returncode == 0, done.stderr
    new = ["new", "turtle", "--model", "black-forest-labs/FLUX.1-dev", "--out", "x.py"]
    _, done = run("-c", begin + again.format(new), cwd=empty)
    assert done.returncode == 0, done.stderr
    assert (empty / "x.py").is_file()
