"""What the benchmarks measure, on a tiny model."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from benchmarks.experiments.concepts_at_once import timed
from benchmarks.experiments.relation_tokens import swapped
from erase.data.make_bank import make_bank
from erase.data.words.irrelevant import listed
from erase.methods.configured import plan_of
from flux_jax import load
from flux_jax.programs import Conditioning


@pytest.mark.slow
def test_concepts_at_once_are_timed(tiny_folder: Path):
    config = tiny.run_config(tiny_folder, iterations=3)
    pipe = load(tiny_folder)
    planned = plan_of(config, pipe, listed(config))
    made = make_bank(config, pipe, planned)
    result = timed({"one": config, "two": config}, pipe, {"one": made, "two": made})
    assert result["concepts"] == 2
    assert set(result) == {"concepts", "compile_s", "iteration_ms"}
    assert result["iteration_ms"] > 0


def test_swapped_tokens_come_from_the_other_sentence():
    encoded = Conditioning(jnp.zeros((2, 3, 4)), jnp.zeros((2, 5)))
    taken = Conditioning(jnp.ones((2, 3, 4)), jnp.ones((2, 5)))
    places = np.array([[True, False, False], [False, True, True]])
    mixed = swapped(encoded, taken, places)
    np.testing.assert_array_equal(mixed.text[..., 0], places)
    np.testing.assert_array_equal(mixed.pooled, encoded.pooled)
