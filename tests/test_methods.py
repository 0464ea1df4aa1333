"""Every method as a whole: its run, its settings, what it refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from convert.lora import read_adapter
from erase import train
from erase.methods import METHODS
from erase.model import open_model
from erase.runs import configure, load_runs
from erase.sample import read_adapter as read_for_drawing

TRAINED = [name for name, method in METHODS.items() if method.exports]


def runs_of(folder: Path, method: str, **changes: Any) -> Any:
    """The smallest run of a method."""
    usual = dataclasses.asdict(tiny.run_config(folder)) | {"method": method, "iterations": 2}
    usual["bank"] |= {"trajectories": 3, "batch": 4}
    return load_runs(configure(**usual | changes))


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED)
def test_a_run_of_every_method_ends_with_an_adapter(method: str, tiny_folder: Path, tmp_path: Path):
    runs = runs_of(tiny_folder, method)
    made = train.run(runs, tmp_path / "run")[""]
    found = read_adapter(tmp_path / "run" / "adapter")
    assert found.metadata["method"] == METHODS[method].title
    assert json.loads(found.metadata["settings"])["method"] == method
    for a, b in zip(*map(jax.tree.leaves, (made.lora, found.lora)), strict=True):
        np.testing.assert_array_equal(a, b)
    changes = [np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(made.lora)]
    assert all(np.isfinite(changes))
    assert min(changes) > 0
    pipe = open_model(runs[""])
    pipe.check(read_for_drawing(tmp_path / "run"))
    # The same command finds all done.
    again = train.run(runs, tmp_path / "run")[""]
    for a, b in zip(*map(jax.tree.leaves, (made.lora, again.lora)), strict=True):
        np.testing.assert_array_equal(a, b)
