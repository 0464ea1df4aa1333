"""Detection of non-finite updates, diverging losses and iterations that hang."""

import math
import threading
import time

import numpy as np
import pytest

from erase.config.schema import Guard
from erase.runs import RunConfig
from erase.runtime.watchdog import Watchdog
from erase.training import metrics
from erase.training.guard import Tally, non_finite, skipped_update


def test_lost_numbers_are_named():
    assert non_finite({"esd": float("nan"), "attn": 1.0, "lora": float("-inf")}) == ["esd", "lora"]
    assert "--replay 7" in skipped_update(7, ["esd"])


def test_a_run_is_lost_with_so_many_in_a_row():
    tally = Tally(Guard(skips=3))
    bad, good = {"esd": float("nan")}, {"esd": 1.0}
    assert [tally.count(values) for values in (bad, bad, good, bad, bad)] == [False] * 5
    assert tally.skipped == 2
    assert tally.count(bad)
    # A resumed run continues its count.
    assert Tally(Guard(skips=3), skipped=2).count(bad)


def test_divergence_is_told_once():
    rng = np.random.default_rng(0)
    tally = Tally(Guard(divergence=10))
    for value in rng.lognormal(0, 2, size=200):
        # Single values a thousand times larger are no divergence.
        tally.count({"esd": float(value), "lower_gradient": float(value)})
    assert tally.diverging() == []
    for value in 1e6 * rng.lognormal(0, 2, size=21):
        tally.count({"esd": float(value), "lower_gradient": 1e9})
    (told,) = tally.diverging()
    assert told.startswith("esd ")
    assert tally.diverging() == []


def test_short_runs_do_not_diverge():
    tally = Tally(Guard(divergence=10))
    for value in [1e-3] * 20 + [1e3] * 25:
        tally.count({"esd": value})
    assert tally.diverging() == []


def usual(watchdog: Watchdog) -> None:
    for step in range(1, 5):
        with watchdog.iteration(step):
            time.sleep(0.01)


def test_a_hung_iteration_is_noticed_and_ends(capfd: pytest.CaptureFixture):
    ended = []
    watchdog = Watchdog(Guard(patience=0.6), min_seconds=0.1, poll_seconds=0.02, end=ended.append)
    over = threading.Event()
    # More threads than Python's dump of their stacks shows.
    others = [threading.Thread(target=over.wait) for _ in range(101)]
    for thread in others:
        thread.start()
    with watchdog.watching():
        usual(watchdog)
        with watchdog.iteration(5):
            time.sleep(1.0)
    over.set()
    said = capfd.readouterr().err
    assert said.count("iteration 5 has taken") == 1
    assert "a device or another process may hang" in said
    # The report contains the place where it hangs.
    assert "test_a_hung_iteration_is_noticed_and_ends" in said
    assert "iteration 5 did not end in guard.patience" in said
    assert ended == [75]


def test_slow_iterations_are_left_alone(capfd: pytest.CaptureFixture):
    ended = []
    watchdog = Watchdog(Guard(hung=1000.0), min_seconds=0.05, poll_seconds=0.02, end=ended.append)
    with watchdog.watching():
        # Compiling takes long, and no time is known yet.
        with watchdog.iteration(1):
            time.sleep(0.3)
        usual(watchdog)
        # Between iterations, checkpoints may be written.
        time.sleep(0.3)
        with watchdog.iteration(6):
            time.sleep(0.2)
    assert capfd.readouterr().err == ""
    assert ended == []


def test_an_interval_without_numbers_is_never_the_best():
    config = RunConfig("cat", irrelevant=("dog",))
    every = {"esd": np.array([2.0, np.nan]), "lora": np.array([3.0, 1.0])}
    active = np.array([True, True])
    assert metrics.mean_weighted_loss(config, every, active) == 2.0 + config.upper.lora * 3.0
    assert metrics.mean_weighted_loss(config, every, np.array([False, True])) == math.inf
    assert metrics.mean_weighted_loss(config, every, np.array([False, False])) == math.inf
