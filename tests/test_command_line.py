"""Common behaviour of all commands: help, an example, exit codes, nearest names."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from absl import app, flags
from helpers import warm
from helpers.tiny import ROOT

from convert.arguments import Parser

SOURCES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text()
    for folder in ("benchmarks", "configs", "convert", "erase", "flux_jax", "recipes")
    for file in sorted((ROOT / folder).rglob("*.py"))
}
COMMANDS = [name for name, text in SOURCES.items() if "\nif __name__ ==" in text]
# The others parse their arguments with `convert.arguments`.
WITH_FLAGS = [name for name in COMMANDS if "app.run(" in SOURCES[name]]
# These take any number of positional arguments.
TAKES_MORE = {
    *("configs.flux.average", "convert.merge"),
    *("erase.cli.compose", "erase.cli.table", "erase.cli.wordnet"),
}
CONFIG = "--config=configs/emoji_cat.py"

# Raised by ml_collections when it loads a configuration's file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

Run = Callable[..., tuple[object, str, str]]


class Began(Exception):  # noqa: N818
    """Raised in place of a command's work, once its arguments are parsed."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Run a command's file in this process up to its work: exit code, stdout and stderr."""
    monkeypatch.chdir(ROOT)
    parse = Parser.parse_args

    def parsed(parser: Parser, *given: Sequence[str]) -> NoReturn:
        parse(parser, *given)
        raise Began

    def ran(main: Callable, flags_parser: Callable = app.parse_flags_with_usage) -> NoReturn:
        left = flags_parser(sys.argv)
        if left[1:] and not left[0].endswith("wordnet.py"):
            main(left)
        raise Began

    monkeypatch.setattr(Parser, "parse_args", parsed)
    # The real one affects the whole process.
    monkeypatch.setattr(app, "run", ran)

    def called(name: str, *arguments: str) -> tuple[object, str, str]:
        file, before = ROOT.joinpath(*name.split(".")).with_suffix(".py"), set(flags.FLAGS)
        monkeypatch.setattr(sys, "argv", [str(file), *arguments])
        # Left by another configuration's file.
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        try:
            runpy.run_path(str(file), run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code
        except Began:
            code = 0
        finally:
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
        return code, *capsys.readouterr()

    return called


def called(name: str) -> str:
    """How a command's own examples call it."""
    if name == "convert.lora":
        return "erase-anything convert adapter"
    for package, command in (("erase.cli.", ""), ("convert.", "convert ")):
        if name.startswith(package):
            return f"erase-anything {command}{name.removeprefix(package)}"
    return f"python -m {name}"


def examples(name: str) -> list[list[str]]:
    """The arguments of the command lines in a command's docstring."""
    doc = SOURCES[name].split('"""')[1].replace("\\\n", " ")
    lines = re.findall(rf"^    (?:\w+=\S+ )?{called(name)}\b(.*)$", doc, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def own_flags(name: str) -> list[str]:
    """Names of the flags that a command's file declares."""
    declared = r'(?:DEFINE_\w+\(|add_argument\(\s*"--)\s*"?(\w+)"'
    return re.findall(declared, SOURCES[name])


def refused(run: Run, name: str, *arguments: str) -> str:
    """The one-line message of a command about unusable arguments."""
    code, out, err = run(name, *arguments)
    assert (code, out) == (2, ""), err
    assert re.fullmatch("error: .*\n", err), err
    return err


def test_commands_are_those_with_a_main():
    with_main = {name for name, text in SOURCES.items() if re.search(r"^def main\(", text, re.M)}
    assert set(COMMANDS) == with_main
    assert len(WITH_FLAGS) >= 17
    assert {name for name in COMMANDS if "Parser(" in SOURCES[name]} == {*COMMANDS} - {*WITH_FLAGS}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_docstring_and_the_flags(name: str, run: Run):
    for flag in ("--help", "-h"):
        code, out, err = run(name, flag)
        assert (code, err) == (0, "")
        assert called(name) in " ".join(out.split())
        for own in own_flags(name):
            assert re.search(rf"--(\[no\])?{own}\b", out), own
        assert "--verbosity" not in out
        assert str(ROOT) not in out


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_full_help_has_the_libraries_flags_too(name: str, run: Run):
    code, out, err = run(name, "--config=nowhere.py", "--helpfull")
    assert (code, err) == (0, "")
    assert called(name) in " ".join(out.split())
    for own in (*own_flags(name), "verbosity"):
        assert re.search(rf"--(\[no\])?{own}\b", out), own


@pytest.mark.parametrize("name", COMMANDS)
def test_the_docstring_has_examples_that_can_be_used(name: str, run: Run):
    assert examples(name)
    for arguments in examples(name):
        code, _, err = run(name, *arguments)
        assert (code, err) == (0, ""), arguments


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_flags_are_refused(name: str, run: Run):
    # This is reported even if other arguments are missing.
    for arguments in (["--qqq=1"], [*examples(name)[0], "--qqq"]):
        assert refused(run, name, *arguments).startswith("error: --qqq is not a flag; choose from")
    for own in own_flags(name):
        misspelt = f"--{own[:-2]}{own[-1]}{own[-2]}"
        if misspelt != f"--{own}":
            assert re.search(rf"did you mean .*--{own}\b", refused(run, name, misspelt, "1"))


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in TAKES_MORE])
def test_stray_arguments_are_refused(name: str, run: Run):
    arguments = ["stray"] if "nargs=" in SOURCES[name] else [*examples(name)[0], "stray"]
    assert "stray" in refused(run, name, *arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_arguments_are_told(name: str, run: Run):
    needed = "required=True" in SOURCES[name] or re.search(r'add_argument\("\w', SOURCES[name])
    if needed:
        assert re.search("missing|required", refused(run, name))
    # Flags declared elsewhere may be missing as well.
    elif run(name)[0]:
        assert "missing" in refused(run, name)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("benchmarks.experiments.study", ["--out"], "--out has no value: give one"),
        ("benchmarks.experiments.study", [], "--study and --out are missing; see --help"),
        ("erase.cli.evaluate", [CONFIG], "--workdir is missing; see --help"),
        ("erase.cli.attack", ["--pictures=x"], "pictures = 'x' must be a positive integer"),
        ("erase.cli.calibrate", ["--most", "much"], "most = 'much' must be a number"),
        ("erase.train", ["--plan=may"], "plan = 'may' must be true or false"),
        ("erase.train", ["--noplan=x"], "--noplan=x does not take an argument"),
        ("erase.train", ["--config.seed=1"], "--config.seed=1 changes no file: give --config"),
        ("erase.train", [CONFIG, "--config.seed=x"], "config.seed = 'x' must be an integer"),
        ("erase.train", [CONFIG, "--config.lowr.attn=2"], "lowr.attn is not a field"),
        ("erase.train", [CONFIG, "--config.lower.esdd", "2"], "did you mean lower.esd"),
        (
            "erase.train",
            [CONFIG, "--config.each.cat.seed=2"],
            "each.cat.seed: overrides change only",
        ),
        ("erase.train", ["--config=nowhere.py"], "config = 'nowhere.py' is not a file"),
        ("erase.train", ["--config", "nowhere.py"], "config = 'nowhere.py' is not a file"),
        ("erase.train", ["--config"], "--config has no value: give a file"),
        ("erase.train", ["--config=", "--workdir=x"], "--config has no value: give a file"),
        ("erase.train", ["--workdir"], "--workdir has no value: give one"),
        ("erase.cli.new", ["cat", "--model"], "--model has no value: give one"),
        (
            "erase.train",
            [CONFIG, "--config.model=models/x"],
            "model = 'models/x' sets a section, which has fields of its own: set one of them, such "
            "as --config.model.path or",
        ),
        ("erase.train", [CONFIG, "--config.lower", "3"], "lower = '3' sets a section"),
        ("erase.train", [f"{CONFIG}:papr"], "preset = 'papr' is unknown; did you mean paper?"),
        (
            "benchmarks.speed.flux",
            ["--against=difusers"],
            "is unknown; did you mean diffusers?",
        ),
        (
            "recipes.emoji_flux.build",
            ["--stage=vea"],
            "stage = 'vea' is unknown; did you mean vae?",
        ),
        ("convert.lora", ["a", "b", "--to=koyha"], "to = 'koyha' is unknown; did you mean kohya?"),
        (
            "erase.cli.compose",
            ["a", "b", "--rank=x"],
            "--rank: invalid int value: 'x'; see --help",
        ),
        (
            "erase.cli.compose",
            ["a", "b", "--out=c", "--method=fusoin"],
            "method = 'fusoin' is unknown; did you mean fusion?",
        ),
    ],
)
def test_what_cannot_be_used_is_named(name: str, arguments: list[str], said: str, run: Run):
    assert said in refused(run, name, *arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:", "SyntaxError: invalid syntax"),
        ("x = 1\nraise ValueError('no\\nway')", "ValueError in line 2: no way"),
        ("def get_config():\n    return {}['a']", "KeyError in line 2: 'a'"),
        ("x = 1", "has no attribute 'get_config'"),
        ("def get_config(a): pass", "missing 1 required positional argument"),
    ],
)
def test_a_configuration_file_that_fails_is_told_in_a_line(
    text: str, said: str, run: Run, tmp_path: Path
):
    (tmp_path / "own.py").write_text(text)
    told = refused(run, "erase.train", f"--config={tmp_path / 'own.py'}", "--workdir=x")
    assert "own.py' cannot be run: " in told
    assert said in told


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_process_ends_with_code_2_and_a_line():
    ended = command("erase.cli.report", "--workdri=x")
    said = "error: --workdri is not a flag; did you mean --workdir?\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", said)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_a_process_ends_with_code_0_after_help(flag: str):
    shown = command("erase.train", flag)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--workdir: The run's folder." in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("erase.train --workdir=w", "config is missing: give --config"),
        (
            f"erase.cli.compare {CONFIG} --out=o --methods=edd",
            "'edd' is unknown; did you mean",
        ),
        (
            f"erase.train {CONFIG} --workdir=w --config.method=attention_erasure",
            "has no weights to train or to export",
        ),
    ],
)
def test_what_a_command_finds_once_it_begins_is_one_line_too(arguments: str, said: str):
    done = warm.run("-m", *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: .*\n", done.stderr), done.stderr
    assert said in done.stderr
    assert not any((ROOT / name).exists() for name in "wo")


@pytest.mark.slow
def test_a_run_says_nothing_on_stderr_but_how_far_it_is(tiny_folder: Path, tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "from erase.runs import configure\n\n\ndef get_config():\n"
        "    return configure(concept='cat', synonyms=('kitty',), irrelevant=('apple', 'tree'),\n"
        "        prompts=('a photo of a {}',), height=16, width=16, steps=2, iterations=2,\n"
        "        bank={'sentences': 2, 'trajectories': 2}, upper={'pictures': 2, 'rsc': 0.0},\n"
        "        evaluation={'pictures': 1, 'steps': 2, 'others': ('dog',)})\n"
    )
    model = f"--config.model.path={tiny_folder}"
    given = [f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'run'}", model]
    done = command("erase.train", *given)
    assert done.returncode == 0, done.stderr
    line = r"[\w ]+: \S+ of \S+ \(\d+ %\), \S+, [\d:]+ elapsed, [\d:?]+ left"
    compiling = r"[\w ]+: \S+ of \S+, compiling"
    assert re.fullmatch(rf"({compiling}\n|{line}(, \w+=\S+)*\n)+", done.stderr), done.stderr
    assert re.search(r"^erasing cat: 2 of 2 \(100 %\), .* left, attn=\S+, esd=", done.stderr, re.M)
    assert done.stdout.strip().endswith("report.html")
