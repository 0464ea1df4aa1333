"""The words of a run, as shown by the terminal, the report and the model card."""

import json
import re
from pathlib import Path

import pytest
from helpers import tiny

from erase.evaluation.statistics import wilson_interval
from erase.report import card, report, words
from erase.runtime.files import write

OTHERS = {"concept": "cat", "pools": [["dog", "sun"], ["tree"]], "source": "a model at home"}


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path) -> Path:
    """A run's folder with its words, some of which look like markup."""
    config = tiny.run_config(
        tiny_folder,
        concept="cat",
        prompts=tuple(f"a {{}} and [b]{number}" for number in range(4)),
        synonyms=("kitty", "<i>puss|puss</i>"),
    )
    described = json.loads(json.dumps(config, default=vars))
    described["synonyms_from"] = "WordNet, true_cat.n.01: a feline"
    counted = {"before": wilson_interval(0, 4), "after": wilson_interval(0, 4)}
    lost = {"concept": "cat", "word": "kitty", "before": 0, "after": 0, "of": 4, "left_out": True}
    evaluation = {
        "concept": "cat",
        "cells": {"Acc_e": counted, "Acc_ir": counted},
        "H": {"before": 0.5, "after": 0.5},
        "synonyms": [lost],
    }
    for name, values in (
        ("config", described),
        ("irrelevant", OTHERS),
        ("sentences", {"concept": "cat", "sentences": ["a cat at sea"], "source": "a model"}),
        ("evaluation", evaluation),
    ):
        write(tmp_path / f"{name}.json", json.dumps(values))
    return tmp_path


def test_lines_show_the_first_words_and_count_the_rest(run: Path):
    config = json.loads((run / "config.json").read_text())
    shown = {line.name: line for line in report.words_of(run, config)}
    assert shown["concept"].words == "cat"
    assert shown["sentences"].words == (
        "“a {} and [b]0”, “a {} and [b]1”, “a {} and [b]2”, ... (5 in all)"
    )
    assert shown["synonyms"].words == "kitty, <i>puss|puss</i>"
    assert shown["synonyms"].source == "WordNet, true_cat.n.01: a feline"
    assert (shown["other things"].words, shown["other things"].source) == (
        "dog, sun, tree",
        "a model at home",
    )
    # Files of earlier versions.
    old = words.of_run({"concept": "cat"}, {}, {})
    assert [line.words for line in old] == ["cat", "none", "none", "none"]


def test_the_terminal_shows_them_as_they_are(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    lines = report.words_of(run, json.loads((run / "config.json").read_text()))
    words.show({"": lines})
    said = capsys.readouterr().out
    for line in lines:
        assert line.words in said
        assert line.source in said
    words.show({str(number): lines for number in range(9)})
    said = capsys.readouterr().out
    assert re.findall(r"(\d): concept", said) == ["0", "1", "2", "3"]
    assert "5 more runs" in said


def test_the_report_and_the_card_show_them_and_what_was_not_counted(run: Path):
    page, text = report.write(run).read_text(), card.of_run(run).read_text()
    assert "&lt;i&gt;puss|puss&lt;/i&gt;" in page
    assert "| synonyms | kitty, \\<i\\>puss\\|puss\\</i\\> | WordNet, true\\_cat.n.01" in text
    for shown in (page, text):
        assert "a model at home" in shown
        assert "(5 in all)" in shown
        assert "Left out of Acc_g: “kitty” (0 of 4)" in shown
        assert "H is the harmonic mean of 1 − Acc_e and Acc_ir alone" in shown
