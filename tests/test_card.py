"""The model card: its contents, and that its snippet runs as printed."""

import json
import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import tiny, warm
from markdown_it import MarkdownIt

from convert import lora
from convert.adapters.files import read_layers, write_lora
from erase.config.schema import Evaluation
from erase.evaluation.statistics import wilson_interval
from erase.methods.settings.erase_anything import Lower
from erase.report import card
from erase.runtime.files import write
from erase.training import run as run_module
from flux_jax.errors import InputError


def header(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---")[1])


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path) -> Path:
    """A run's folder with the files that a card is rendered from."""
    config = tiny.run_config(tiny_folder, concept='"quoted" cat', prompts=("a {}",))
    described = json.loads(json.dumps(config, default=vars))
    described["model"]["path"] = "black-forest-labs/FLUX.1-dev"
    write(tmp_path / "config.json", json.dumps(described))
    sides = {"before": wilson_interval(60, 64), "after": wilson_interval(1, 64)}
    write(tmp_path / "evaluation.json", json.dumps({"cells": {"Acc_e": sides}}))
    write(tmp_path / "before_after.png", b"picture")
    return tmp_path


def test_a_card_says_what_was_measured(run: Path):
    text = card.of_run(run).read_text()
    assert header(text)["base_model"] == "black-forest-labs/FLUX.1-dev"
    assert '# "quoted" cat, erased\n' in text
    row = next(line for line in text.splitlines() if "lower is better" in line)
    assert row.startswith('| Acc_e: pictures for prompts with “"quoted" cat” in which ')
    assert re.search(r"\| 64 \| 93\.8 % \(.* to .*\) \| 1\.6 % \(.* to .*\) \|$", row)
    assert "](before_after.png)" in text
    assert (run / "adapter" / "before_after.png").read_bytes() == b"picture"
    assert r'"a photo of a \"quoted\" cat"' in text


def test_without_evaluation_nothing_is_claimed(run: Path):
    (run / "evaluation.json").unlink()
    text = card.of_run(run).read_text()
    assert "No shares have been measured for this adapter." in text
    assert " %" not in text
    assert "Pictures before and after" not in text


def test_a_card_is_markdown_in_order(run: Path):
    config = json.loads((run / "config.json").read_text())
    config["concept"] = "a|b *c* <i>"
    write(run / "config.json", json.dumps(config))
    body = card.of_run(run).read_text().split("---\n", 2)[2]
    tokens = MarkdownIt().enable("table").parse(body)
    headings = [
        (int(token.tag[1]), tokens[index + 1].content)
        for index, token in enumerate(tokens)
        if token.type == "heading_open"
    ]
    levels = [level for level, _ in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert [text for level, text in headings if level > 1] == [
        "Evaluation",
        "Pictures before and after",
        "How to use it",
        "In diffusers",
        "In ComfyUI",
        "Words",
        "Limits",
        "Licence",
    ]
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == 2
    assert kinds.count("tr_open") == 2 + 5
    assert kinds.count("td_open") == 4 + 4 * 3
    assert kinds.count("image") + body.count("![") == 1
    assert (kinds.count("ordered_list_open"), kinds.count("bullet_list_open")) == (1, 1)
    assert not {"html_block", "em_open"} & set(kinds)
    # What the template leaves between parts.
    assert "\n\n\n" not in body


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("black-forest-labs/FLUX.1-dev", "other"),
        ("black-forest-labs/FLUX.1-schnell", "apache-2.0"),
        ("models/emoji-flux", None),
    ],
)
def test_the_licence_is_the_base_models(run: Path, model: str, licence: str | None):
    config = json.loads((run / "config.json").read_text())
    config["model"]["path"] = model
    write(run / "config.json", json.dumps(config))
    text = card.of_run(run).read_text()
    front, last = header(text), text[text.index("## Licence") :]
    assert front.get("license") == licence
    assert ("license_name" in front) == ("license_link" in front) == (licence == "other")
    assert f"derived from `{model}`" in last
    assert ("](https://" in last) == (licence is not None)


def test_a_composition_says_what_was_measured(run: Path, tmp_path: Path):
    folder = tmp_path / "fused"
    leaf = {"A": np.ones((2, 32, 2), np.float32), "B": np.ones((2, 2, 32), np.float32)}
    lora = {"dual_blocks": {"attn": {"add_k_proj": leaf}}}
    made = {"method": "fusion", "adapters": [{"concept": "cat"}, {"concept": "dog"}]}
    write_lora(folder, lora, 2.0, {"method": card.COMPOSED, "settings": json.dumps(made)})
    config = tiny.run_config(tmp_path, concept="cat")
    cells = json.loads((run / "evaluation.json").read_text())["cells"]
    write(run / "second" / "before_after.png", b"picture of a cat")
    names = {"first": "tree", "second": "cat", "third": "dog"}
    results = {name: {"concept": concept, "cells": cells} for name, concept in names.items()}
    card.of_evaluated(folder, config, results, run)
    text = (folder / "README.md").read_text()
    assert "erases “cat”, “dog”" in text
    for concept in ("cat", "dog"):
        assert re.search(rf"with “{concept}” in which .* \| 64 \| 93\.8 % ", text)
    assert (folder / "before_after.png").read_bytes() == b"picture of a cat"
    assert "tree" not in text
    assert card.composed_of(folder) == ["cat", "dog"]
    # A README in the run's folder is not overwritten.
    (folder / "README.md").unlink()
    write_lora(folder, lora, 2.0, {"method": "EraseAnything"})
    assert card.composed_of(folder) == []
    card.of_evaluated(folder, config, results, run)
    assert not (folder / "README.md").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        card.of_run(tmp_path)


@pytest.mark.slow
def test_the_snippets_of_a_run_run_as_printed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Two losses are enough here, and compile in half the time.
    config = tiny.run_config(tiny_folder, lower=Lower(attn=0.0))
    shown = Evaluation(pictures=1, others=("dog",), steps=2, attention_examples=0)
    run_module.run({"": replace(config, evaluation=shown)}, tmp_path / "run")
    text = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "base_model" not in header(text)
    assert (tmp_path / "run" / "adapter" / "before_after.png").is_file()
    snippet = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippet) == 1
    done = warm.run("-c", snippet[0], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "after.png").is_file()
    (command,) = re.findall(r" ```sh\n(.*?)\n *```", text, re.DOTALL)
    prefix, *arguments = shlex.split(command)[2:]
    assert prefix == "adapter"
    monkeypatch.chdir(tmp_path)
    lora.main(arguments)
    assert read_layers(tmp_path / "erased.safetensors").layout == "original"
