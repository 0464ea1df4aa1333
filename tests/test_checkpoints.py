"""Checkpoints: retention, detection of damage, and fallback to older ones."""

import json
import math
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.small import every, fresh

from erase.config.schema import Checkpoints
from erase.methods.parts.step import State
from erase.runtime.run_folder import CHECKPOINTS
from erase.training import checkpoints
from flux_jax.errors import RunError


def states(count: int) -> list[State]:
    """States of one run, all different."""
    return [
        jax.tree.map(lambda leaf, k=k: (leaf + k).astype(leaf.dtype), every(fresh()))
        for k in range(count)
    ]


def record_of(number: int) -> Any:
    return {"keys": [[0, 1]], "configs": {}, "skipped": {}, "lost": [], "number": number}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the checkpoints of iterations 2, 4 and 6; read-only."""
    workdir = tmp_path_factory.mktemp("checkpoints")
    with checkpoints.opened(workdir, Checkpoints(last=3)) as manager:
        for number, state in enumerate(states(3), 1):
            checkpoints.save(manager, 2 * number, state, record_of(number), 1.0)
    return workdir


@pytest.fixture
def workdir(kept: Path, tmp_path: Path) -> Path:
    shutil.copytree(kept, tmp_path / "run")
    return tmp_path / "run"


def largest(checkpoint: Path) -> Path:
    """The file that holds the arrays."""
    return max(checkpoint.rglob("d/*"), key=lambda path: path.stat().st_size)


def restored(workdir: Path) -> int:
    """Index of the state that is restored."""
    step = checkpoints.usable(workdir)
    with checkpoints.opened(workdir, Checkpoints(last=3)) as manager:
        state, kept = checkpoints.restore(manager, step, every(fresh()))
    record: Any = kept
    wanted = states(3)[record["number"] - 1]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    assert 2 * record["number"] == step
    return step


def test_the_newest_comes_back(workdir: Path, capsys):
    assert restored(workdir) == 6
    assert checkpoints.usable(workdir, before=6) == 4
    assert checkpoints.usable(workdir / "nothing") == 0
    assert capsys.readouterr().err == ""


def flip(checkpoint: Path) -> str:
    path = largest(checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"the content of {path.relative_to(checkpoint)} has changed"


def truncate(checkpoint: Path) -> str:
    path = largest(checkpoint)
    os.truncate(path, path.stat().st_size - 1)
    return f"{path.relative_to(checkpoint)} has {path.stat().st_size} bytes instead of"


def lose(checkpoint: Path) -> str:
    path = largest(checkpoint)
    path.unlink()
    return f"{path.relative_to(checkpoint)} is missing"


def unfinished(checkpoint: Path) -> str:
    (checkpoint / checkpoints.MANIFEST).unlink()
    return "manifest.json is missing: the checkpoint was not finished"


def garbled(checkpoint: Path) -> str:
    (checkpoint / checkpoints.MANIFEST).write_text('{"files": {"a": 3}}')
    return "manifest.json cannot be read"


@pytest.mark.parametrize("damage", [flip, truncate, lose, unfinished, garbled])
def test_damage_is_named_and_the_one_before_serves(workdir: Path, damage, capsys):
    checkpoint = workdir / CHECKPOINTS / "6"
    message = damage(checkpoint)
    assert restored(workdir) == 4
    said = capsys.readouterr().err
    assert said.startswith(f"{checkpoint}: {message}")
    assert "damaged/6; continuing from the checkpoint of iteration 4" in said
    assert (workdir / "damaged" / "6").is_dir()
    # The iteration is repeated, and its checkpoint damaged again.
    with checkpoints.opened(workdir, Checkpoints(last=3)) as manager:
        checkpoints.save(manager, 6, states(3)[2], record_of(3), 1.0)
    damage(checkpoint)
    assert checkpoints.usable(workdir) == 4
    assert (workdir / "damaged" / "6-1").is_dir()


def test_where_none_is_whole_runs_begin_anew(workdir: Path, capsys):
    for step in checkpoints.steps_in(workdir / CHECKPOINTS):
        flip(workdir / CHECKPOINTS / str(step))
    assert checkpoints.usable(workdir) == 0
    assert "; continuing from the beginning" in capsys.readouterr().err
    assert not checkpoints.has_checkpoints(workdir)


def test_every_flipped_byte_is_noticed(workdir: Path):
    """Damage to any file is detected, including the manifest, unless restoring does not read it."""
    checkpoint = workdir / CHECKPOINTS / "6"
    assert checkpoints.fault(checkpoint) is None
    unread = [checkpoint / name for name in checkpoints.UNREAD[1:]]
    for path in unread:
        path.write_bytes(b"\x00nothing")
    assert restored(workdir) == 6
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path not in unread]
    files = [path for path in files if path.stat().st_size]
    assert len(files) > 5
    rng = np.random.default_rng(0)
    for path in files:
        content = path.read_bytes()
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 0xFF
        path.write_bytes(changed)
        assert checkpoints.fault(checkpoint) is not None, path
        path.write_bytes(content)
    assert checkpoints.fault(checkpoint) is None


def test_the_last_and_the_best_are_kept(tmp_path: Path):
    state = every(fresh())
    with checkpoints.opened(tmp_path, Checkpoints(last=2, best=1)) as manager:
        for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0, 2.5], 1):
            checkpoints.save(manager, step, state, {"loss": loss}, loss)
        manager.wait_until_finished()
        assert checkpoints.best(manager) == 2
    assert checkpoints.steps_in(tmp_path / CHECKPOINTS) == [2, 5, 6]
    for step in (2, 5, 6):
        assert checkpoints.fault(tmp_path / CHECKPOINTS / str(step)) is None


def test_the_best_is_the_same_after_every_restart(tmp_path: Path, capsys):
    """Also if the run is stopped within an interval, and with checkpoints of earlier versions."""
    state, settings = every(fresh()), Checkpoints(last=1, best=1)
    # A stopped run's checkpoint counts for nothing but to resume, unless it is the last.
    for step, loss, of_interval in (
        (1, 3.0, True),
        (2, 1.0, True),
        (3, 0.5, False),
        (4, math.inf, True),
        (5, 0.1, False),
    ):
        with checkpoints.opened(tmp_path, settings) as manager:
            checkpoints.save(manager, step, state, {"loss": loss}, loss, of_interval)
            manager.wait_until_finished()
            assert checkpoints.best(manager) == min(step, 2)
            assert checkpoints.best(manager, last=step) == (
                step if step in (3, 5) else min(2, step)
            )
    assert checkpoints.steps_in(tmp_path / CHECKPOINTS) == [2, 4, 5]
    checkpoints.check_intact(tmp_path, 2)
    largest(tmp_path / CHECKPOINTS / "2").unlink()
    with pytest.raises(RunError, match=r"checkpoints/2, the best .*adapter=last"):
        checkpoints.check_intact(tmp_path, 2)
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / CHECKPOINTS / "2" / "metrics")
    with checkpoints.opened(tmp_path, settings) as manager:
        assert checkpoints.best(manager) == 4
    assert "checkpoints/2 has no loss" in capsys.readouterr().err


def test_a_run_that_failed_does_not_wait_for_its_checkpoint(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CLOSING", 0.05)
    never = threading.Event()
    monkeypatch.setattr(ocp.CheckpointManager, "close", lambda manager: never.wait())
    with pytest.raises(ZeroDivisionError), checkpoints.opened(tmp_path, Checkpoints()):
        raise ZeroDivisionError
    never.set()


def test_a_checkpoint_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch):
    synced: list[str] = []
    monkeypatch.setattr(checkpoints, "sync", lambda path: synced.append(str(path)))
    with checkpoints.opened(tmp_path, Checkpoints()) as manager:
        checkpoints.save(manager, 1, every(fresh()), {"number": 1}, 1.0)
    folder = (tmp_path / CHECKPOINTS).absolute()
    assert synced.pop() == str(folder)
    inside = {str(path.relative_to(folder / "1")) for path in (folder / "1").rglob("*")}
    before = {path.partition("orbax-checkpoint-tmp")[2].lstrip("/") for path in synced}
    assert inside - before <= {checkpoints.UNREAD[1], checkpoints.UNREAD[2]}


def test_what_another_version_wrote_is_told(workdir: Path):
    path = workdir / CHECKPOINTS / "6"
    shutil.rmtree(path / checkpoints.RECORD)
    checkpoints.seal(path)
    with (
        pytest.raises(RunError, match=r"checkpoints/6 cannot be read .* --overwrite starts again"),
        checkpoints.opened(workdir, Checkpoints()) as manager,
    ):
        checkpoints.restore(manager, 6, every(fresh()))


NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("record/metadata", '{"keys": [[0, 1]]}', "record: configs is missing"),
        ("record/metadata", '{"keys": "x"}', "record: keys = 'x': input should be a valid list"),
        ("state/_METADATA", NESTED, "maximum recursion depth exceeded"),
        ("state/_METADATA", '{"tree_metadata": 5}', "not"),
    ],
    ids=["absent", "type", "nested", "tree"],
)
def test_metadata_of_other_contents_end_in_a_line(
    workdir: Path, name: str, content: str, problem: str
):
    path = workdir / CHECKPOINTS / "6"
    (path / name).write_text(content)
    checkpoints.seal(path)
    with (
        pytest.raises(RunError, match=rf"checkpoints/6 cannot be read \(.*{problem}"),
        checkpoints.opened(workdir, Checkpoints()) as manager,
    ):
        checkpoints.restore(manager, 6, every(fresh()))


def test_damage_in_an_older_checkpoint_names_what_to_remove(workdir: Path):
    folder = workdir / CHECKPOINTS
    for path, problem, mend in (
        (folder / "2/metrics/metrics", "metrics has 1 bytes instead of", f"remove {folder}/2, and"),
        (folder / "4" / checkpoints.TIMES, "recursion", r"remove \*/_CHECKPOINT_METADATA in it"),
    ):
        whole = path.read_text()
        path.write_text("{" if "metrics" in path.parts else NESTED)
        with (
            pytest.raises(RunError, match=rf"checkpoints cannot be read \(.*{problem}.*{mend}"),
            checkpoints.opened(workdir, Checkpoints()),
        ):
            pass
        path.write_text(whole)
    # Without the times, and with a loss of another type, it goes on.
    (folder / "4" / checkpoints.TIMES).unlink()
    (folder / "2/metrics/metrics").write_text('{"loss": [], "of_interval": true}')
    with checkpoints.opened(workdir, Checkpoints(last=1, best=3)) as manager:
        checkpoints.save(manager, 8, states(3)[2], record_of(3), 1.0)
        manager.wait_until_finished()
        assert checkpoints.best(manager) == 4
    assert checkpoints.steps_in(folder) == [4, 6, 8]


def test_a_manifest_names_every_file(workdir: Path):
    checkpoint = workdir / CHECKPOINTS / "4"
    files = json.loads((checkpoint / checkpoints.MANIFEST).read_text())["files"]
    there = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert set(files) == there - set(checkpoints.UNREAD)


def test_cores_are_those_that_xla_uses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert checkpoints.cores() == 3
    assert checkpoints.place()["cores"] == 3
    monkeypatch.setenv("NPROC", "2")
    assert checkpoints.cores() == 2
    monkeypatch.setenv("NPROC", "")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert checkpoints.cores() == 7


def test_who_goes_on_elsewhere_is_told():
    here = {"kind": "cpu", "devices": 1, "cores": 2}
    # The same place, and a checkpoint of an earlier version.
    assert checkpoints.moved({"place": dict(here)}, here) is None
    assert checkpoints.moved({}, here) is None
    told = checkpoints.moved({"place": here}, here | {"cores": 1})
    assert told is not None
    assert "on 1 x cpu (2 cores) so far, now on 1 x cpu (1 core): " in told
    assert "up to rounding" in told
    told = checkpoints.moved({"place": {"devices": 1}}, here)
    assert told is not None
    assert "on 1 x unknown devices so far, now on 1 x cpu (2 cores): " in told
    told = checkpoints.moved({"place": here}, {"kind": "H100", "devices": 8, "cores": None})
    assert told is not None
    assert "now on 8 x H100: " in told
    assert "\n" not in told
    assert len(told) < 400
