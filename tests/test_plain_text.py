"""Text of any origin stays text: on the terminal, in Markdown, YAML, HTML, tables and figures."""

import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from helpers import tiny
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib import cbook
from rich.console import Console

from convert.tables import Table, show
from erase.evaluation.percent import csv_cell, csv_of_shares
from erase.evaluation.statistics import wilson_interval
from erase.report import card, report
from erase.report.plain_text import code, label, literal, markdown, one_line
from erase.runtime.files import write
from flux_jax import progress, xla_flags
from flux_jax.errors import InputError, printable, say

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.text("\\`*_{}[]<>#|!~&$@:/w.=+- \t\r\n\x1b\x9bax1;,\"'", max_size=20),
)
HOSTILE = 'x\n\n# Owned <img src=x onerror=alert(1)>\x1b[31m [/b] | `c` $x$ {{ 1 }} "=1+1"'
TRICKS = [
    HOSTILE,
    "https://host/x www.host.org a@host.org",
    "``` a ``",
    "=cmd|' /C calc'!A0",
    " @SUM(1;2)",
    "\t=1",
    "[a](http://b) ![c](d) <http://e> &amp; &#35;",
]


def tricks(test):
    """The texts above as examples of a property."""
    for text in TRICKS:
        test = example(text=text)(test)
    return test


@tricks
@given(text=TEXT)
def test_markdown_shows_the_text(text: str):
    line = one_line(text)
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    (inline,) = page.parseInline(f"x{markdown(text)}x")
    children = inline.children or []
    assert {token.type for token in children} <= {"text", "text_special"}
    assert "".join(token.content for token in children) == f"x{line}x"
    # In a table it is one cell, and in a heading one line.
    tokens = page.parse(f"| a |\n| --- |\n| x{markdown(text)}x |\n")
    assert [token.type for token in tokens].count("td_open") == 1
    if line:
        (inline,) = page.parseInline(f"x {code(text)} x")
        (only,) = [each for each in inline.children or [] if each.type != "text"]
        assert (only.type, only.content.strip()) == ("code_inline", line)
    for sign in ("https:", "www."):
        assert f"{sign}//" not in markdown(text)


@tricks
@given(text=TEXT)
def test_literals_are_those_of_python_and_yaml(text: str):
    assert literal(text).isprintable()
    assert json.loads(json.dumps(eval(literal(text)))) == text
    assert yaml.safe_load(f"a: {literal(text)}") == {"a": text}


@tricks
@given(text=TEXT)
def test_spreadsheets_take_cells_for_text(text: str):
    cell = csv_cell(text)
    (row,) = csv.reader(io.StringIO(f"{cell},1\n"))
    assert row == [row[0], "1"]
    assert row[0].removeprefix("'") == printable(text) or row[0] == printable(text)
    assert row[0].lstrip()[:1] not in tuple("=+-@\t\r")
    # Where spreadsheets separate by ";", the cell is one cell too.
    assert len(next(csv.reader(io.StringIO(f"{cell};1\n"), delimiter=";"))) == 2
    assert "\x1b" not in cell


def test_numbers_stay_numbers():
    share = {"found": 1, "of": 2, "share": -0.5, "low": -1.0, "high": 1.0}
    assert csv_of_shares(("run",), [(("-a",), share)]) == (
        "run,found,of,share,low,high\n'-a,1,2,-0.5,-1.0,1.0\n"
    )


@tricks
@given(text=TEXT)
def test_the_terminal_shows_the_text(text: str):
    console = Console(file=io.StringIO(), width=400, force_terminal=True, color_system=None)
    table = Table(f"h{text}h", title=f"t{text}t", caption=f"c{text}c")
    table.add_row(f"r{text}r")
    show(table, f"l{text}l", console=console)
    shown = console.file.getvalue()
    assert not {"\x1b", "\x9b", "\r", "\a"} & set(shown)
    if "\n" not in text and text == " ".join(text.split()):
        for sides in ("hh", "tt", "cc", "rr", "ll"):
            assert f"{sides[0]}{printable(text)}{sides[1]}" in shown


@tricks
@given(text=TEXT)
def test_figures_show_the_text(text: str):
    shown = label(text)
    assert not cbook.is_math_text(shown)
    assert shown.replace(r"\$", "$").removeprefix(" ") == one_line(text).removeprefix(" ")
    assert not shown.startswith("_")


def test_lines_and_bars_escape_control_characters(capsys: pytest.CaptureFixture[str]):
    say("a\x1b[1mb\x9b\u202ec")
    with progress.bar(total=1, desc=f"erasing {HOSTILE}" * 50) as bar:
        bar.write("run \x1b[1m: lost")
        bar.update()
    output = "".join(capsys.readouterr())
    assert "a\\x1b[1mb\\x9b\\u202ec" in output
    assert "\x1b[1m" not in output.replace("\x1b[A", "")
    assert max(map(len, output.splitlines())) < 400


def test_control_characters_in_flags_of_xla_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", "--x=\x1b[1m")
    with pytest.raises(InputError, match="XLA_FLAGS has control characters"):
        xla_flags.set_flags()


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path) -> Path:
    """A run's folder whose every text is hostile."""
    config = tiny.run_config(tiny_folder, concept=HOSTILE, prompts=("a {}",), synonyms=(HOSTILE,))
    described = json.loads(json.dumps(config, default=vars))
    described["model"]["path"] = described["command"] = HOSTILE
    described["adapter"]["targets"] = [HOSTILE]
    described["synonyms_from"] = HOSTILE
    write(tmp_path / "config.json", json.dumps(described))
    sides = {"before": wilson_interval(60, 64), "after": wilson_interval(1, 64)}
    word = {"concept": HOSTILE, "word": HOSTILE, "before": 0, "after": 0, "of": 4}
    evaluation = {"cells": {"Acc_e": sides}, "synonyms": [word | {"left_out": True}]}
    write(tmp_path / "evaluation.json", json.dumps(evaluation))
    attacks = {"cells": {HOSTILE: sides | {"silenced": wilson_interval(1, 2)}}}
    write(tmp_path / "attacks.json", json.dumps(attacks))
    record = {"step": 1, f"{HOSTILE} $a_b$ \\frac{{": 1.0, "seconds": 1.0}
    write(tmp_path / "metrics.jsonl", json.dumps(record) + "\n")
    return tmp_path


def test_a_card_of_hostile_texts_is_a_card(run: Path):
    text = card.of_run(run).read_text()
    assert printable(text) == text
    _, front, body = text.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"library_name", "pipeline_tag", "tags"}
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or []]
    assert not {"html_inline", "image", "link_open"} & {child.type for child in inline}
    assert "html_block" not in {token.type for token in tokens}
    headings = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert "Owned" in headings[0].content
    assert [heading.content for heading in headings[1:]] == [
        "Evaluation", "How to use it", "In diffusers", "In ComfyUI", "Words", "Limits", "Licence",
    ]  # fmt: skip
    assert "\n# Owned" not in body


def test_a_page_of_hostile_texts_is_a_page(run: Path):
    text = report.write(run).read_text()
    assert printable(text) == text
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
