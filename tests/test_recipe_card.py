"""The shipped folder's README contains the recipe's measurements."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erase.evaluation.statistics import wilson_interval
from erase.model.draw import png
from erase.runtime.files import write
from flux_jax.errors import InputError
from recipes.emoji_flux.card import NETWORKS, write_card


def measured() -> dict[str, Any]:
    classes = {"cat": 1.0, "dog": 0.5, "bee": 0.75, "car": 0.25}
    return {
        "settings": {"per_class": 4, "steps": 28, "guidance": 3.5},
        "entity": {"accuracy": wilson_interval(10, 16), "classes": classes},
        "style": {"accuracy": wilson_interval(16, 16), "classes": {"noto": 1.0}},
    }


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    work, out = tmp_path / "work", tmp_path / "out"
    for number, name in enumerate(NETWORKS, 1):
        last = {"update": 1000 * number, "loss": 0.5 / number, "psnr": 36.84, "kl": 2.31}
        lines = [json.dumps({"update": 1, "loss": 9.0}), json.dumps(last)]
        write(work / name / "metrics.jsonl", "\n".join(lines) + "\n")
    (work / "transformer" / "metrics.jsonl").unlink()
    for cycle in (2, 10):
        line = json.dumps({"update": 800 * cycle, "loss": 1 / cycle})
        write(work / "transformer" / str(cycle) / "metrics.jsonl", line + "\n")
    write(work / "measure" / "measure.json", json.dumps(measured()))
    write(work / "measure" / "entity.png", png(np.zeros((4, 4, 3), np.uint8)))
    accuracy = {"held_out": 8192, "entity": 0.9775, "style": 0.9988}
    accuracy |= {"relation": 0.9961, "relation_swapped": 0.997}
    write(out / "judge" / "accuracy.json", json.dumps(accuracy))
    return work, out


def test_the_card_says_what_was_measured(folders: tuple[Path, Path]):
    work, out = folders
    write_card(work, out)
    text = (out / "README.md").read_text()
    assert "| autoencoder | 2,000 | 0.2500 | 36.8 dB PSNR, 2.3 nats of KL per value |" in text
    assert "| text encoders and transformer | 9,600 | 0.1000 |  |" in text
    assert "| distillation of guidance | 4,000 | 0.1250 |  |" in text
    assert "on 8,192 held-out renders: exactly the right entities 97.8 %" in text
    low, high = (f"{100 * wilson_interval(10, 16)[key]:.1f}" for key in ("low", "high"))
    weakest = "car 25 %, dog 50 %, bee 75 %"
    assert f"| entity | 16 | 62.5 % | {low} to {high} % | {weakest} |" in text
    assert "28 steps, guidance 3.5" in text
    assert json.loads((out / "measure.json").read_text()) == measured()
    assert (out / "samples.png").is_file()
    assert "CC-BY-4.0" in (out / "ATTRIBUTION.md").read_text()


def test_a_stage_that_was_not_run_is_named(folders: tuple[Path, Path]):
    work, out = folders
    (work / "vae" / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"vae/metrics\.jsonl is missing: run the stages"):
        write_card(work, out)
    assert not (out / "README.md").exists()
