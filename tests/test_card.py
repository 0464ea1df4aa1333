"""The model card: its contents, and that its snippet runs as printed."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import tiny

from convert.adapters.files import write_lora
from erase.config.schema import Evaluation
from erase.evaluation.statistics import wilson_interval
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
    assert re.search(r"\| 64 \| 93\.8 % \(.* to .*\) \| 1\.6 % \(.* to .*\) \|$", row)
    assert "![Pictures before and after](before_after.png)" in text
    assert (run / "adapter" / "before_after.png").read_bytes() == b"picture"
    assert r'"a photo of a \"quoted\" cat"' in text


def test_without_evaluation_nothing_is_claimed(run: Path):
    (run / "evaluation.json").unlink()
    text = card.of_run(run).read_text()
    assert "## Measured" not in text
    assert "## Before and after" not in text


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
def test_the_snippet_of_a_run_runs_as_printed(tiny_folder: Path, tmp_path: Path):
    config = tiny.run_config(tiny_folder)
    shown = Evaluation(pictures=1, others=("dog",), steps=2, attention_examples=0)
    run_module.run({"": replace(config, evaluation=shown)}, tmp_path / "run")
    text = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "base_model" not in header(text)
    assert (tmp_path / "run" / "adapter" / "before_after.png").is_file()
    snippet = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippet) == 1
    done = subprocess.run(
        [sys.executable, "-c", snippet[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "after.png").is_file()
