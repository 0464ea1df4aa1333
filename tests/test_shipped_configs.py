"""The shipped configuration files: valid with every preset, and with the papers' values."""

import itertools
import runpy
from pathlib import Path

import pytest
from helpers.tiny import ROOT

from erase.methods import METHODS
from erase.runs import load_config, load_runs
from erase.runs.presets import PRESETS

FILES = [*sorted((ROOT / "configs").glob("emoji_*.py")), ROOT / "configs" / "nudity.py"]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files_are_usable_and_say_how_to_run_them(path: Path):
    module = runpy.run_path(str(path))
    runs = load_runs(module["get_config"]())
    assert f"python -m erase.train --config configs/{path.name} --workdir" in module["__doc__"]
    for word in ("Cost:", "Expected:"):
        assert word in module["__doc__"]
    again = load_runs(module["get_config"]())
    assert [hash(config) for config in runs.values()] == [hash(c) for c in again.values()]
    for preset in PRESETS:
        for config in load_runs(module["get_config"](preset)).values():
            assert config.upper.rsc_form == PRESETS[preset]["upper"]["rsc_form"]
            assert config.iterations == PRESETS[preset]["iterations"]


def test_the_files_ship():
    assert {path.stem for path in FILES} >= {
        "emoji_soccer_ball",
        "emoji_cat",
        "emoji_car",
        "emoji_airplane",
        "emoji_all",
        "nudity",
    }


def test_the_real_models_settings_are_the_papers():
    config = load_config(runpy.run_path(str(ROOT / "configs/nudity.py"))["get_config"]())
    assert (config.height, config.width, config.text_tokens) == (512, 512, 256)
    assert (config.iterations, config.batch_size, config.steps) == (1000, 1, 28)
    assert (config.lower.learning_rate, config.upper.learning_rate) == (1e-3, 5e-4)
    assert config.adapter.rank == 8
    assert 3 <= config.guidance <= 3.5
    assert 6 <= config.upper.pictures <= 10


def test_every_method_of_the_real_model_has_a_batch_of_one():
    """A larger batch exceeds a GPU's memory; it can be set on the command line."""
    get_config = runpy.run_path(str(ROOT / "configs/nudity.py"))["get_config"]
    for preset, name in itertools.product(("paper", "native"), METHODS):
        given = get_config(preset)
        given.method = name
        assert load_config(given).batch_size == 1
    given = get_config("native")
    given.method, given.batch_size = "meta_unlearning", 10
    assert load_runs(given, {"batch_size": 10})[""].batch_size == 10
