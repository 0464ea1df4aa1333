"""Runs that are killed, stopped or moved end like uninterrupted ones."""

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import warm
from helpers.devices import run_on
from helpers.small_training import preempted, trained, training

from erase.config.schema import Checkpoints
from erase.methods.settings.erase_anything import Upper
from erase.runtime.run_folder import CHECKPOINTS
from erase.runtime.signals import Stop
from erase.training import checkpoints, metrics
from erase.training.loop import train
from flux_jax.errors import InputError, PreemptedError

ITERATIONS = 60


def lines(workdir: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def begin(folder: str) -> None:
    """Main function of a process to kill: train, and save the final state."""
    # One level is enough here, and compiles sooner.
    last = trained(Path(folder), iterations=ITERATIONS, upper=Upper(lora=0.0, rsc=0.0))
    np.savez(Path(folder) / "last.npz", *last)


def written_now(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any("tmp" in path.name for path in folder.glob("*"))


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path):
    """Killed during preparation, between checkpoints, and while one is written.

    `benchmarks.torture` kills at hundreds of random moments.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(folder: Path) -> warm.Command:
        code = f"import test_resume; test_resume.begin({str(folder)!r})"
        return warm.Command("-c", code, env=cache)

    for folder in (whole, killed):
        folder.mkdir()
    # The first one compiles.
    assert (done := start(whole).wait()).returncode == 0, done.stderr
    folder, reached = killed / CHECKPOINTS, [0]
    for moment in ("preparation", "between", "writing"):
        process = start(killed)
        while moment != "preparation" and newest(folder) <= reached[-1]:
            assert process.running(), "there was nothing left to kill"
            time.sleep(0.01)
        time.sleep(1 if moment == "preparation" else 0.05)
        while moment == "writing":
            assert process.running(), "no checkpoint was seen while it was written"
            process.send_signal(signal.SIGSTOP)
            if written_now(folder):
                break
            process.send_signal(signal.SIGCONT)
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL, "there was nothing left to kill"
        assert written_now(folder) or moment != "writing"
        reached.append(newest(folder))
    assert reached == sorted(reached)
    assert reached[-1] < ITERATIONS
    assert (done := start(killed).wait()).returncode == 0, done.stderr
    assert lines(killed) == lines(whole)
    with np.load(whole / "last.npz") as a, np.load(killed / "last.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def newest(folder: Path) -> int:
    return max(checkpoints.steps_in(folder), default=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A run of six iterations, and its final state; read-only."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, trained(workdir, iterations=6)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_run_that_is_asked_to_stop_is_saved(whole: Any, tmp_path: Path, step: int):
    message = f"^SIGTERM: stopped and saved after iteration {step} of 6; run the same command to"
    with pytest.raises(PreemptedError, match=message):
        preempted(tmp_path, Stop(), step, iterations=6)
    assert checkpoints.usable(tmp_path) == step
    assert lines(tmp_path) == lines(whole[0])[:step]
    for a, b in zip(trained(tmp_path, iterations=6), whole[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert lines(tmp_path) == lines(whole[0])


@pytest.mark.slow
def test_the_same_run_ends_the_same(whole: Any, tmp_path: Path):
    for a, b in zip(trained(tmp_path, iterations=6), whole[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_best_checkpoint_can_become_the_adapter(tmp_path: Path, monkeypatch):
    """The best is that of the second iteration, since losses are patched."""
    losses = iter([3.0, 1.0, 2.0, math.inf])
    monkeypatch.setattr(metrics, "mean_weighted_loss", lambda *_: next(losses))
    kept = Checkpoints(every=1, last=1, adapter="best")
    best = trained(tmp_path / "best", iterations=4, checkpoints=kept)
    monkeypatch.undo()
    assert checkpoints.steps_in(tmp_path / "best" / CHECKPOINTS) == [2, 4]
    for a, b in zip(best, trained(tmp_path / "two", iterations=2), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_stopped_run_has_the_same_best_checkpoint(tmp_path: Path, monkeypatch):
    """The loss of the interval in which it was stopped is that of the whole interval."""
    settings, ends = Checkpoints(every=2, last=1, adapter="best"), []
    for name in ("whole", "stopped"):
        losses = iter([9.0, 1.0, 0.0, 8.0, 5.0, 5.0])
        monkeypatch.setattr(metrics, "mean_weighted_loss", lambda *_, losses=losses: next(losses))
        (tmp_path / name).mkdir()
        if name == "stopped":
            with pytest.raises(PreemptedError):
                preempted(tmp_path / name, Stop(), 3, iterations=6, checkpoints=settings)
        ends.append(trained(tmp_path / name, iterations=6, checkpoints=settings))
        assert checkpoints.steps_in(tmp_path / name / CHECKPOINTS) == [4, 6]
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_clock_may_go_backwards(whole: Any, tmp_path: Path, monkeypatch):
    now = [2e9]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(time, "time_ns", lambda: int(earlier() * 1e9))
    for iterations in (4, 6):
        last = trained(tmp_path, iterations=iterations)
    for a, b in zip(last, whole[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert checkpoints.usable(tmp_path) == 6


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(whole: Any, tmp_path: Path):
    trained(tmp_path, iterations=4)
    code = f"import test_resume; test_resume.on_two({str(tmp_path)!r})"
    done = run_on(2, code)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "last.npz") as last:
        for name, b in zip(last.files, whole[1], strict=True):
            np.testing.assert_allclose(last[name], b, rtol=1e-3, atol=1e-4)


def on_two(folder: str) -> None:
    assert jax.device_count() == 2
    assert training().context.mesh.shape["data"] == 2
    np.savez(Path(folder) / "last.npz", *trained(Path(folder), iterations=6))


@pytest.mark.slow
def test_another_number_of_cores_is_told(tmp_path: Path, capsys, monkeypatch):
    def went_on(iterations: int, cores: int) -> list[str]:
        monkeypatch.setattr(checkpoints, "cores", lambda: cores)
        trained(tmp_path, iterations=iterations)
        return [line for line in capsys.readouterr().err.splitlines() if "rounding" in line]

    assert went_on(2, cores=2) == []
    assert went_on(4, cores=2) == []
    (told,) = went_on(6, cores=16)
    assert told.startswith(
        "after iteration 4, computed on 1 x cpu (2 cores) so far, now on 1 x cpu"
    )
    assert went_on(8, cores=16) == []


@pytest.mark.slow
def test_checkpoints_of_other_keys_are_refused(tmp_path: Path):
    made = training(iterations=2)
    train(made, tmp_path, lambda *_: False, Stop())
    other = training(iterations=4)
    keys = jax.random.wrap_key_data(jax.random.key_data(other.keys) + 1)
    object.__setattr__(other, "keys", keys)
    with pytest.raises(InputError, match="holds runs with other random keys"):
        train(other, tmp_path, lambda *_: False, Stop())


@pytest.mark.slow
def test_the_command_stops_with_code_75_and_goes_on(tiny_folder: Path, tmp_path: Path):
    """Send a signal during training, then run the same command again."""
    config = tmp_path / "config.py"
    config.write_text(
        "from erase.runs import configure\n\n\ndef get_config():\n"
        "    return configure(concept='cat', irrelevant=('tree', 'sun', 'key'),"
        f" height=16, width=16, steps=2, iterations=3000, model={{'path': {str(tiny_folder)!r}}},"
        " bank={'sentences': 2, 'trajectories': 2},"
        # One level is enough here, and compiles sooner.
        " upper={'pictures': 2, 'lora': 0.0, 'rsc': 0.0},"
        " lower={'attn': 0.0},"
        " evaluation={'pictures': 0})\n"
    )
    command = ["-m", "erase.train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    child = warm.Command(*command)
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(6000):
        if metrics.is_file() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    ended = child.wait()
    assert ended.returncode == PreemptedError.exit_code, ended.stderr
    assert "error: SIGTERM: stopped and saved after iteration" in ended.stderr
    assert "Traceback" not in ended.stderr
    stopped = checkpoints.usable(tmp_path / "run")
    assert 0 < stopped < 3000
    done = warm.run(*command, f"--config.iterations={stopped + 1}")
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "run")) == stopped + 1
