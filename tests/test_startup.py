"""Help and usage errors are fast, and only the three packages are installed."""

import importlib
import os
import runpy
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers.forks import Forks

from erase.cli.commands import COMMANDS
from erase.methods import METHODS, fields_of
from erase.methods.settings import FIELDS
from flux_jax import moved

ROOT = Path(__file__).resolve().parents[1]
# CPU time of a process and its children; an idle machine takes at most half of it.
SECONDS = 1.0
# Machines are shared: a command that is slow by chance is fast in one of several attempts.
ATTEMPTS = 3
# Modules that help and usage errors must not import: slow to import, or possibly not installed.
HEAVY = {
    *("diffusers", "flax", "gguf", "huggingface_hub", "jax", "matplotlib", "nltk", "openai"),
    *("optax", "orbax", "peft", "PIL", "scipy", "torch", "transformers"),
    *("cv2", "h5py", "nudenet", "onnxruntime"),
}
# Required arguments of each command, as named in its message.
REQUIRED = {
    "new": "CONCEPT, --model",
    "train": "--config is missing",
    "plan": "--config is missing",
    "evaluate": "--workdir is missing",
    "sample": "--prompt is missing",
    "attack": "--workdir is missing",
    "calibrate": "--workdir is missing",
    "compose": "ADAPTER",
    "compare": "--out is missing",
    "report": "--workdir is missing",
    "card": "--workdir is missing",
    "benchmark": "--prompts and --out are missing",
    "table": "RESULTS",
    "convert pipeline": "SRC, DST",
    "convert adapter": "SRC, DST",
    "convert merge": "MODEL, ADAPTER",
    "convert inspect": "FILE",
}
CONFIG = "--config configs/nudity.py"
RUN = f"{CONFIG} --workdir nowhere"
BENCHMARK = "benchmark --prompts {tmp}/p.txt --out {tmp}/x"
# Arguments with a mistake, and a part of the message about it.
MISTAKES = [
    ("qqq", "command = 'qqq' is unknown"),
    ("help qqq", "command = 'qqq' is unknown"),
    ("extra", "command = 'extra' is unknown; choose from new, train"),
    ("convert qqq", "convert = 'qqq' is unknown"),
    ("convert", "convert needs the name of a conversion; choose from pipeline, adapter"),
    ("-x", "-x is not a flag; choose from --help, --version"),
    *((f"{name} --qqq", "--qqq is not a flag") for name in COMMANDS),
    *((name, said) for name, said in REQUIRED.items()),
    # Next to a valid configuration.
    (f"train {CONFIG} --qqq", "--qqq is not a flag"),
    (f"train {CONFIG} qqq", "argument 'qqq' is not a flag"),
    (f"train {CONFIG}", "--workdir is missing"),
    (f"train {CONFIG} --overwrite=7", "overwrite = '7' must be true or false"),
    (f"train {RUN} --process 1", "--coordinator, --processes missing"),
    (f"train {RUN} --config.lowr.attn=2", "did you mean lower.attn"),
    (f"train {RUN} --config.iterations=-3", "iterations = -3 must be at least 1"),
    (f"train {RUN} --config.iterations=x", "iterations = 'x' must be an integer"),
    (f"train {RUN} --config.method=esp", "method = 'esp' must be"),
    (f"train {RUN} --config.esd.eta=2", "esd.eta is a setting of another method"),
    (f"train {RUN} --config.prompts=a", "does not hold the concept"),
    (f"train {RUN} --config.method=uce --config.uce.templates=a", "uce.templates: 'a' needs"),
    (f"train {RUN} --config.model.path=nowhere", "model = 'nowhere' does not exist"),
    (f"train {RUN} --config.evaluation.judge=nowhere", "judge = 'nowhere' has no config.json"),
    (f"plan {CONFIG} --config.height=0", "height = 0 must be at least 1"),
    ("train --config configs/emoji_all.py --config.batch_size=0", "batch_size = 0 must be"),
    ("train --config configs/nudity.py:qqq", "preset = 'qqq' is unknown"),
    ("train --config.iterations=3", "changes no file"),
    # Files.
    ("train --config nowhere.py", "config = 'nowhere.py' is not a file"),
    ("train --config {tmp}/syntax.py", "cannot be run: SyntaxError"),
    ("train --config {tmp}/field.py", "modl is not a field of the configuration"),
    ("train --config {tmp}/value.py", "lower.attn = -1.0 must be at least 0"),
    (f"evaluate {RUN}", "workdir = 'nowhere' does not exist; check the path, or train"),
    (f"attack {RUN}", "workdir = 'nowhere' does not exist"),
    (f"attack {RUN} --adapter models/emoji-flux", "is a whole model: an attack needs the base"),
    (f"attack {RUN} --family inversoin", "did you mean inversion"),
    (f"attack {RUN} --family misspelt,tokens --steps 0", "steps = 0 must be at least 1"),
    (f"attack {RUN} --family tokens --eta 1", "only ring_a_bell takes it"),
    (f"calibrate {RUN}", "workdir = 'nowhere' does not exist"),
    (f"compare {CONFIG} --out {{tmp}}/x.json --methods esp", "methods: 'esp' is unknown"),
    ("sample --prompt cat --model nowhere", "model = 'nowhere' does not exist"),
    ("sample --prompt cat --adapter nowhere", "adapter = 'nowhere' does not exist"),
    ("sample --prompt cat --steps 0", "steps = 0 must be at least 1"),
    ("sample --prompt cat --batch x", "batch = 'x' must be an integer"),
    ("report --workdir nowhere", "nowhere/config.json is missing"),
    ("card --workdir nowhere", "nowhere/config.json is missing"),
    ("benchmark --prompts {tmp}/a.csv --out {tmp}/x", "no column 'prompt'"),
    ("benchmark --prompts nowhere --out {tmp}/x", "nowhere cannot be read"),
    (f"{BENCHMARK} --find cat", "find is for --judge emoji, which is not there"),
    (f"{BENCHMARK} --erased cat", "erased is for --judge classes or persons, which is not there"),
    (f"{BENCHMARK} --trunk x.h5", "trunk is for --judge persons, which is not there"),
    (f"{BENCHMARK} --clip_model x", "clip_model is for --judge classes or q16, which is not"),
    (f"{BENCHMARK} --template x", "template is for --judge classes, which is not there"),
    (f"{BENCHMARK} --where hard>1", "p.txt is no CSV file; leave it out"),
    (f"plan {CONFIG} --table 3", "table = 3 has its own configurations; leave out --config"),
    ("train --table 3 --workdir {tmp}/x", "table = 3 is for --plan"),
    ("plan --table 1", "table = '1' is unknown; choose from 2, 3, 4"),
    ("plan --config configs/flux/concepts.py:qqq", "concept = 'qqq' is not one of the paper's"),
    ("plan --config configs/flux/celebrity.py:adele/qqq", "losses = 'qqq' are unknown"),
    (f"{BENCHMARK} --fid_weights x", "fid_weights is for --reference, which is not there"),
    (f"{BENCHMARK} --reference_judge x", "reference_judge is for --reference, which is not"),
    (f"{BENCHMARK} --adapter ,", "adapter = ',' has a name missing; name a file or folder"),
    (f"{BENCHMARK} --seed -1", "seed = -1 must be from 0 to 4294967295"),
    (f"{BENCHMARK} --seed 4294967295", "must be from 0 to 4294967295"),
    ("benchmark --prompts {tmp}/p.txt --out {tmp}/p.txt/x", "p.txt is not a folder; name another"),
    ("sample --prompt cat --seed 99999999999", "seed = 99999999999 must be from 0 to 4294967295"),
    ("table nowhere", "nowhere is missing"),
    ("new guitar --model nowhere", "model = 'nowhere' does not exist"),
    ("new qqq --model models/emoji-flux --out {tmp}/x.py", "none of the 120 things"),
    ("compose nowhere other --method sum --out {tmp}/x", "adapter = 'nowhere' does not exist"),
    ("compose nowhere other --method sun --out {tmp}/x", "did you mean sum"),
    ("convert pipeline nowhere {tmp}/x", "SRC = 'nowhere' does not exist"),
    ("convert adapter nowhere {tmp}/x", "SRC = 'nowhere' does not exist"),
    ("convert merge nowhere other {tmp}/x", "adapter = 'other' does not exist"),
    ("convert merge models/nowhere other {tmp}/x", "model = 'models/nowhere' does not exist: the"),
    ("convert pipeline models/nowhere {tmp}/x", "model = 'models/nowhere' does not exist: the"),
    ("convert inspect nowhere", "FILE = 'nowhere' does not exist"),
    ("convert pipeline models/emoji-flux {tmp}/x --to flx", "did you mean flax"),
]
FILES = {
    "syntax.py": "def get_config(:\n",
    "a.csv": "name,mood\na,b\n",
    "p.txt": "a cat\n",
    "field.py": "get_config = lambda: configure(concept='cat', modl={})\n",
    "value.py": "get_config = lambda: configure(concept='cat', lower={'attn': -1.0})\n",
}


def run(*arguments: str, cwd: Path = ROOT) -> tuple[float, int, str, str]:
    """A command's CPU seconds, its exit code, and its output to stdout and stderr."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=out,
            stderr=errors,
            text=True,
        )
        # This process's only, whatever other children of the test do.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        seconds = usage.ru_utime + usage.ru_stime
        return seconds, process.returncode, out.read(), errors.read()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks(ROOT)
    yield made
    made.close()


def check_cheap(forks: Forks, *arguments: str) -> tuple[int, str, str]:
    """Run a command, which must be fast and import no slow module.

    Returns:
        Its exit code, and its output to stdout and stderr.
    """
    seconds, code, out, errors, modules = forks.run(*arguments)
    assert modules[0] != "?", errors
    assert not HEAVY.intersection(modules)
    # A fork's time includes what it did not need, so that a process of its own decides.
    for _ in range(ATTEMPTS):
        if seconds <= SECONDS:
            break
        seconds = min(seconds, run("-m", *arguments)[0])
    assert seconds <= SECONDS
    return code, out, errors


@pytest.mark.parametrize(
    "arguments",
    [
        "erase convert",
        "erase.sample --help",
        "erase help train",
        f"erase train {RUN} --config.method=esp",
        "erase convert inspect nowhere",
    ],
)
def test_a_process_of_its_own_gives_what_a_fork_gives(arguments: str, forks: Forks):
    seconds, *found, listed = run("-X", "importtime", "-m", *arguments.split())
    modules = {
        line.rpartition("|")[2].strip()
        for line in listed.splitlines()
        if line.startswith("import time:")
    }
    assert {"runpy", "argparse"} & modules
    assert not modules & HEAVY
    errors = [line for line in listed.splitlines() if not line.startswith("import time:")]
    code, out, said = check_cheap(forks, *arguments.split())
    assert (found, errors) == ([code, out], said.splitlines())
    assert seconds <= SECONDS or run("-m", *arguments.split())[0] <= SECONDS


@pytest.mark.parametrize(
    "arguments",
    [
        *(f"erase {name} --help" for name in COMMANDS),
        *("erase", "erase --help", "erase help train", "erase convert -h", "erase.train --help"),
        *("convert.pipeline -h", "convert.lora -h", "convert.merge -h", "convert.inspect -h"),
        # By their former names.
        *("erase.sample --help", "erase.compose -h", "erase merge --help"),
    ],
)
def test_help_takes_a_second_of_the_cpu(arguments: str, forks: Forks):
    code, out, errors = check_cheap(forks, *arguments.split())
    assert code == 0, errors
    assert len(out.splitlines()) > 5


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_usage_error_takes_a_second_of_the_cpu(
    arguments: str, said: str, forks: Forks, tmp_path: Path
):
    for name, text in FILES.items():
        (tmp_path / name).write_text(f"from erase.runs import configure\n\n{text}")
    code, out, errors = check_cheap(forks, "erase", *arguments.format(tmp=tmp_path).split())
    assert (code, out) == (2, ""), errors
    assert "error: " in errors
    assert said in errors
    # Python keeps the bytecode of a configuration that it has read.
    assert {each.name for each in tmp_path.iterdir()} - {"__pycache__"} == set(FILES)


def test_the_installed_command_finds_what_a_configuration_imports():
    script = Path(sys.executable).with_name("erase-anything")
    _, code, out, errors = run(str(script), "evaluate", *CONFIG.split())
    assert (code, out) == (2, "")
    assert "workdir is missing" in errors


def test_the_version_is_that_of_the_package(forks: Forks):
    code, out, _ = check_cheap(forks, "erase", "--version")
    assert (code, out) == (0, f"erase-anything {version('erase-anything-jax')}\n")


def test_help_on_convert_lists_its_commands_only(forks: Forks):
    _, out, _ = check_cheap(forks, "erase", "convert", "--help")
    listed = [line[4:] for line in out.splitlines() if line.startswith("    ")]
    assert len(listed) == 4
    assert all(line.startswith("convert ") for line in listed)


def test_a_former_command_outside_of_the_wheel_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    moved.announce("erase", {"gone": "nowhere_installed.study"})
    finder = sys.meta_path.pop()
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    said = "erase.gone is nowhere_installed.study now, which is not installed: run it in"
    with pytest.raises(ModuleNotFoundError, match=said):
        importlib.import_module("erase.gone")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("erase.gone", run_name="__main__")
    assert (ended.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


@pytest.mark.slow
def test_seconds_are_those_of_the_cpu():
    """Computing for long is measured, sleeping is not."""
    program = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"
    assert run("-c", program.format(0.4))[0] >= 0.4
    assert run("-c", "import time; time.sleep(0.4)")[0] < 0.3


def test_a_heavy_import_is_seen_in_a_fork(forks: Forks):
    assert HEAVY & {"PIL"} == HEAVY.intersection(forks.run("PIL")[-1])
    assert not HEAVY.intersection(forks.run("erase", "--help")[-1])


def test_every_method_s_settings_need_no_jax():
    assert list(FIELDS) == list(METHODS)
    for name, method in METHODS.items():
        assert fields_of(name) is FIELDS[name] is method.fields


@pytest.mark.slow
def test_a_wheel_holds_three_packages_and_works_anywhere(tmp_path: Path):
    source, empty, site = tmp_path / "source", tmp_path / "empty", tmp_path / "site"
    empty.mkdir()
    source.mkdir()
    for name in ("flux_jax", "convert", "erase", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    wheel = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path))
    _, code, _, errors = run(*wheel, str(source))
    assert code == 0, errors
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as packed:
        packed.extractall(site)
    packages = {each.name for each in site.iterdir() if each.suffix != ".dist-info"}
    assert packages == {"flux_jax", "convert", "erase"}
    assert (site / "erase/data/words/wordnet.json").is_file()
    assert all((site / name / "py.typed").is_file() for name in packages)
    begin = f"import sys; sys.path[:] = [{str(site)!r}, *filter(None, sys.path)]; "
    again = "sys.argv = ['erase', *{}]; from erase.cli.commands import dispatch; dispatch()"
    _, code, _, errors = run("-c", begin + again.format(["--help"]), cwd=empty)
    assert code == 0, errors
    new = ["new", "turtle", "--model", "black-forest-labs/FLUX.1-dev", "--out", "x.py"]
    _, code, _, errors = run("-c", begin + again.format(new), cwd=empty)
    assert code == 0, errors
    assert (empty / "x.py").is_file()
