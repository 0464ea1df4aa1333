"""Measurements of the benchmarks, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from benchmarks.experiments import concepts_at_once
from benchmarks.experiments.concepts_at_once import timed
from benchmarks.experiments.relation_tokens import swap_tokens
from erase.data.make_bank import make_bank
from erase.data.words.irrelevant import listed
from erase.methods.planning.configured import plan_of
from erase.methods.settings.erase_anything import Lower
from flux_jax import load
from flux_jax.programs import Conditioning


@pytest.mark.slow
def test_concepts_at_once_are_timed(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    # Two losses are enough here, and compile in half the time.
    config = tiny.run_config(tiny_folder, iterations=3, lower=Lower(attn=0.0))
    pipe = load(tiny_folder)
    planned = plan_of(config, pipe, listed(config))
    made = make_bank(config, pipe, planned)
    seconds = [8.25, 0.5, 0.25, 0.75]
    learnt: list[set[str]] = []

    def learn(runs: Any, pipe: Any, banks: Any, folder: Path) -> None:
        learnt.append(set(runs) & set(banks))
        lines = [json.dumps({"seconds": each}) for each in seconds]
        (folder / "one" / concepts_at_once.METRICS).write_text("\n".join(lines))

    with monkeypatch.context() as context:
        context.setattr(concepts_at_once, "learn", learn)
        made_up = timed(dict.fromkeys(("one", "two"), config), pipe, {"one": made, "two": made})
    # The first iteration compiles; the median of the others is the time of an iteration.
    assert made_up == {"concepts": 2, "compile_s": 7.8, "iteration_ms": 500.0}
    assert learnt == [{"one", "two"}]
    result = timed({"one": config, "two": config}, pipe, {"one": made, "two": made})
    assert result["concepts"] == 2
    assert set(result) == {"concepts", "compile_s", "iteration_ms"}
    assert result["iteration_ms"] > 0


def test_swapped_tokens_come_from_the_other_sentence():
    encoded = Conditioning(jnp.zeros((2, 3, 4)), jnp.zeros((2, 5)))
    taken = Conditioning(jnp.ones((2, 3, 4)), jnp.ones((2, 5)))
    places = np.array([[True, False, False], [False, True, True]])
    mixed = swap_tokens(encoded, taken, places)
    np.testing.assert_array_equal(mixed.text[..., 0], places)
    np.testing.assert_array_equal(mixed.pooled, encoded.pooled)
