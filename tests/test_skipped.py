"""Non-finite updates: skipped, logged and replayed; runs with too many of them end."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small import BANK, every, fresh, with_levels
from helpers.small_training import trained, training

from erase.config.schema import Guard
from erase.methods.erase_anything import lower_update
from erase.methods.parts.step import adamw
from erase.runtime.run_folder import CHECKPOINTS, METRICS, SKIPPED
from erase.runtime.signals import Stop
from erase.training import checkpoints, loop, make_adapters, replay
from flux_jax.errors import InputError, RunError
from flux_jax.pipeline import Pipeline

# One of four trajectories is not finite.
SPOILT = BANK.replace(trajectories=BANK.trajectories.at[2].set(jnp.nan))
NOTHING = BANK.replace(trajectories=jnp.full_like(BANK.trajectories, jnp.inf))
FORBEARING = Guard(skips=50)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A run of eight iterations, some of which are skipped, and its final state; read-only."""
    workdir = tmp_path_factory.mktemp("spoilt")
    return workdir, trained(workdir, bank=SPOILT, iterations=8, batch_size=1, guard=FORBEARING)


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_left_out(spoilt: Any):
    workdir, last = spoilt
    assert all(np.isfinite(leaf).all() for leaf in last)
    skipped, metrics = lines(workdir / SKIPPED), lines(workdir / METRICS)
    assert 0 < len(skipped) < 8
    assert [line["step"] for line in metrics] == list(range(1, 9))
    for line in skipped:
        assert line["lost"] == ["esd", "lower_gradient"]
        assert line["seed"] == 0
        # The upper level's numbers belong to a successful update.
        assert line["numbers"].keys() == {"lora", "upper_gradient"}
        assert metrics[line["step"] - 1].keys() == {"step", "lora", "upper_gradient", "seconds"}
    made = training(bank=SPOILT, batch_size=1)
    for step in range(1, 9):
        lower = made.keys_at(step)["lower"][0]
        rows = jax.random.randint(jax.random.split(lower)[0], (1,), 0, 4)
        assert (int(rows[0]) == 2) == (step in [line["step"] for line in skipped])


@pytest.mark.slow
def test_what_was_left_out_can_be_done_again(spoilt: Any, capsys: pytest.CaptureFixture):
    workdir, _ = spoilt
    step = lines(workdir / SKIPPED)[-1]["step"]
    before = sorted(path.name for path in (workdir / CHECKPOINTS).iterdir())
    made = training(bank=SPOILT, iterations=8, batch_size=1, guard=FORBEARING)
    replay.show(made, workdir, step)
    told = json.loads((workdir / f"replay-{step}.json").read_text())
    assert told["step"] == step
    assert told["levels"]["lower"]["losses"]["esd"] == "nan"
    assert all(found["lost"] for found in told["levels"]["lower"]["gradients"].values())
    upper = told["levels"]["upper"]
    assert not any(found["lost"] for found in upper["gradients"].values())
    # The upper level's number equals the run's own up to rounding.
    wanted = lines(workdir / METRICS)[step - 1]
    np.testing.assert_allclose(upper["losses"]["lora"], wanted["lora"], rtol=1e-5)
    norm = math.hypot(*(found["norm"] for found in upper["gradients"].values()))
    np.testing.assert_allclose(norm, wanted["upper_gradient"], rtol=1e-4)
    assert f"iteration {step}" in capsys.readouterr().out
    assert sorted(path.name for path in (workdir / CHECKPOINTS).iterdir()) == before
    with pytest.raises(InputError, match="replay = 9 is beyond iterations = 8"):
        replay.show(made, workdir, 9)


@pytest.mark.slow
def test_a_run_that_loses_too_many_in_a_row_ends_with_its_last_good_state(tmp_path: Path):
    made = training(bank=NOTHING, iterations=9, batch_size=1, guard=Guard(skips=3))
    state, lost = loop.train(made, tmp_path, lambda *_: False, Stop())
    assert lost == [""]
    assert checkpoints.usable(tmp_path) == 3
    assert len(lines(tmp_path / SKIPPED)) == 3
    # The lower level was never updated, the upper one was.
    count = jax.tree.leaves(state.own["lower"][0].count)[0]
    assert int(count[0]) == 0
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))
    # After resuming, the run still fails.
    again, lost = loop.train(made, tmp_path, lambda *_: False, Stop())
    assert lost == [""]
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_where_every_run_is_lost_it_is_told(tmp_path: Path, monkeypatch):
    made = training(runs=2)
    monkeypatch.setattr(loop, "place_on_devices", lambda *_: made)
    monkeypatch.setattr(loop, "train", lambda *_: (made.state, ["run1", "run0"]))
    with pytest.raises(
        RunError, match=r"5 consecutive updates had a non-finite .*set lower\.clip and upper\.clip"
    ):
        make_adapters.learn(made.configs, Mock(spec=Pipeline), {}, tmp_path)
    monkeypatch.setattr(loop, "train", lambda *_: (made.state, ["run1"]))
    adapters = make_adapters.learn(made.configs, Mock(spec=Pipeline), {}, tmp_path)
    assert list(adapters) == ["run0"]


@pytest.mark.slow
def test_a_gradient_is_shortened_to_its_limit():
    limit = 1e-3
    made = training(batch_size=1)
    clipped = replace(made.shared, lower=replace(made.shared.lower, clip=limit))
    made = replace(
        made, configs={"": clipped}, context=with_levels(made.context, lower=clipped.lower)
    )
    start = fresh()
    own = start.own | {"lower": adamw(clipped.lower).init(start.lora)}
    start = start.replace(own=own)
    keys = made.keys_at(1)["lower"]
    state, numbers = lower_update(
        every(start), made.params, made.bank, keys, context=cast(Any, made.context)
    )
    moment = jax.tree.leaves(optax.tree.get(state.own["lower"], "mu"))
    norm = math.sqrt(sum(float(jnp.vdot(leaf, leaf)) for leaf in moment))
    # Adam's first moment is a tenth of the gradient.
    np.testing.assert_allclose(10 * norm, limit, rtol=1e-4)
    assert numbers["lower_gradient"][0] > limit
