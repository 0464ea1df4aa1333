"""`erase-anything new` writes a configuration for a concept; one entry point runs all commands."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import nltk
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erase.cli import commands, new
from erase.config.schema import Config
from erase.methods.planning.configured import with_synonyms
from erase.runs import configure, load_config
from flux_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
EMOJI, DEV = "models/emoji-flux", "black-forest-labs/FLUX.1-dev"


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch):
    """Hide any WordNet installed on this machine."""
    monkeypatch.setattr(nltk.data, "path", [])


def written(out: Path, *arguments: str) -> Config:
    new.main([*arguments, "--out", str(out)])
    return load_config(runpy.run_path(str(out))["get_config"]())


@pytest.mark.parametrize(
    ("concept", "model"),
    [
        ("guitar", EMOJI),
        ("turtle", EMOJI),
        ("sticker", EMOJI),
        ("above", EMOJI),
        ("car", DEV),
        ("qqq", DEV),
    ],
)
def test_the_file_says_what_three_lines_give(concept: str, model: str, tmp_path: Path):
    config = written(tmp_path / "new.py", concept, "--model", model)
    three = load_config(configure(concept=concept, model={"path": model}))
    assert config == with_synonyms(three)[0]
    # Presets work as in other configurations.
    paper = runpy.run_path(str(tmp_path / "new.py"))["get_config"]("paper")
    assert load_config(paper).upper.lora_target == "noise"


def test_the_file_and_the_terminal_say_where_words_come_from_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "turtle.py"
    written(out, "turtle", "--model", DEV, "--sense", "1")
    text, shown = out.read_text(), " ".join(capsys.readouterr().out.split())
    assert "# Other words for it: WordNet subset, turtleneck.n.01: a sweater or jersey" in text
    assert '        synonyms=(\n            "turtleneck",\n            "polo-neck",\n' in text
    assert '        sense="1",\n' in text
    assert "# No judge:" in text
    assert "turtleneck.n.01" in shown
    assert "No judge" in shown
    assert f"erase-anything train --config {out} --workdir runs/turtle" in shown
    written(tmp_path / "guitar.py", "guitar", "--model", EMOJI)
    text = (tmp_path / "guitar.py").read_text()
    assert '# synonyms=("...",),' in text
    assert "# No other word for the concept" in text
    assert "No judge" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_user_s_choices_are_written(tmp_path: Path):
    given = ("nude", "--model", DEV, "--part_of_speech", "adjective")
    config = written(tmp_path / "nude.py", *given)
    assert (config.part_of_speech, config.synonyms) == (
        "adjective",
        ("bare", "au naturel", "naked"),
    )
    config = written(tmp_path / "style.py", "Van Gogh", "--model", DEV, "--kind", "style")
    assert config.kind == "style"
    assert "style of {}" in config.prompts[0]


CONCEPTS = st.text(st.characters(exclude_categories=()), min_size=1, max_size=30)


@pytest.mark.slow
@given(concept=CONCEPTS)
@example(concept='"""')
@example(concept="a'b\"c")
@example(concept='x",), evaluation=exit(), y=("')
@example(concept="a\nimport os")
@example(concept="\\")
@example(concept="\u2028\r\x85#")
@example(concept="{0} [red]x[/red] {{}}")
@example(concept="'''\\'''\"\"\"\\")
@example(concept="]" * 30)
def test_no_concept_breaks_the_file(concept: str):
    changes = {"concept": concept, "model": {"path": DEV}}
    try:
        config, source, lacks = new.compose(changes)
    except InputError:
        return
    text = new.text_of(config, source, lacks, changes)
    names: dict = {}
    exec(compile(text, "new.py", "exec"), names)
    assert load_config(names["get_config"]()) == config
    new.table_of(config, source, lacks)
    assert new.file_name(concept).removesuffix(".py").replace("_", "a").isalnum()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["gutiar", "--model", EMOJI],
            "concept = 'gutiar' is none of the 120 .* did you mean guitar",
        ),
        (["qqqqqq", "--model", EMOJI], "choose from models/emoji-flux/erase.json"),
        (["x" * 5000, "--model", EMOJI], "is none of the 120 things"),
        (["cat", "--model", "no where"], "model = 'no where' does not exist; check the path"),
        (["cat", "--model", "models/nowhere"], "model = 'models/nowhere' does not exist"),
        (["cat", "--model", EMOJI, "--sense", "99"], "sense = '99': WordNet subset has 8 senses"),
        (
            ["cat", "--model", EMOJI, "--kind", "stile"],
            "kind = 'stile' is unknown; did you mean style",
        ),
        (["bunny", "--model", EMOJI], "'bunny' is what the model knows as 'rabbit'"),
        (["", "--model", DEV], "concept = '' is empty"),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_written(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "new.py"
    with pytest.raises(SystemExit) as ended:
        new.main([*arguments, "--out", str(out)])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(error.splitlines()) == 1
    assert len(error) <= 408
    assert re.search(told, error), error
    assert not out.exists()


def test_no_file_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "new.py"
    out.write_text("mine")
    with pytest.raises(SystemExit):
        new.main(["cat", "--model", EMOJI, "--out", str(out)])
    assert "already exists: choose another file with --out" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_every_command_has_one_name(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    ran: list = []
    monkeypatch.setattr(
        commands.runpy, "run_module", lambda module, **_: ran.append((module, sys.argv[1:]))
    )
    for name, module in commands.COMMANDS.items():
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
        monkeypatch.setattr(sys, "argv", ["erase-anything", *name.split(), "--help", "x"])
        commands.dispatch()
        given = [*commands.GIVEN.get(name, ()), "--help"]
        assert ran.pop() == (module, [*given, "x"])
        monkeypatch.setattr(sys, "argv", ["erase-anything", "help", *name.split()])
        commands.dispatch()
        assert ran.pop() == (module, given)
    for former, name in commands.FORMER.items():
        monkeypatch.setattr(sys, "argv", ["erase-anything", former, "x"])
        commands.dispatch()
        assert ran.pop() == (commands.COMMANDS[name], ["x"])
    monkeypatch.setattr(sys, "argv", ["erase-anything", "convert", str(ROOT), "x"])
    commands.dispatch()
    assert ran.pop() == ("convert.pipeline", [str(ROOT), "x"])
    capsys.readouterr()
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        monkeypatch.setattr(sys, "argv", ["erase-anything", *arguments])
        commands.dispatch()
        out = capsys.readouterr().out
        assert all(f"    {name} " in out for name in commands.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["erase-anything", "trian"])
    with pytest.raises(SystemExit) as ended:
        commands.dispatch()
    assert ended.value.code == 2
    assert "command = 'trian' is unknown; did you mean train?" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["erase-anything", "convert", "merg", "x"])
    with pytest.raises(SystemExit):
        commands.dispatch()
    assert "convert = 'merg' is unknown; did you mean merge?" in capsys.readouterr().err


def test_the_package_runs_its_commands():
    done = subprocess.run(
        [sys.executable, "-m", "erase", "inspect", "nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("note: inspect is `convert inspect` now\nerror: ")
    assert "nowhere" in done.stderr


def test_a_name_that_may_be_a_misspelt_folder_is_told():
    with pytest.raises(InputError, match="model = 'modles/emoji-flux' is not a local folder, and"):
        new.compose({"concept": "guitar", "model": {"path": "modles/emoji-flux"}})


@pytest.mark.parametrize("concept", ["red\nball", "a {} ball", "ball}", "bell\x07"])
def test_a_concept_is_plain_words(concept: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"concept = .* holds braces or a line break: give plain"):
        new.compose({"concept": concept, "model": {"path": DEV}})


def test_the_table_has_no_empty_row(tmp_path: Path, capsys: pytest.CaptureFixture):
    written(tmp_path / "car.py", "car", "--model", DEV)
    shown = capsys.readouterr().out
    assert "Erasing car" in shown
    assert re.search(r"pictures to keep\s+\S+ those of the first sentence", shown)
