"""Checkpoints of runs with Orbax: written in the background, atomically, and verified.

A checkpoint contains the adapters, the optimisers' states, its loss and a record: the iteration,
which with the keys determines all later samples, the configurations, the guard's counts, and the
hardware it was computed on. A resumed run ends bit for bit like an uninterrupted one; on other
devices or with another number of CPU cores, which sum in a different order, it does so up to
rounding. A manifest holds the size and SHA-256 of every file: a checkpoint that is damaged later is
detected, reported and moved aside, and the one before it is used.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, cast

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers
from typing_extensions import TypedDict

from erase.config.schema import Checkpoints
from erase.methods.parts.step import State
from erase.runtime.mesh import cores
from erase.runtime.run_folder import (
    CHECKPOINTS,
    DAMAGED_CHECKPOINTS,
    LOSS,
    OF_INTERVAL,
    best_step,
    loss_of,
    steps_in,
)
from flux_jax.errors import EraseError, RunError, note, say
from flux_jax.system.files import read_bytes
from flux_jax.system.json_files import checked, parse_json
from flux_jax.weights.safetensors_files import sync

MANIFEST = "manifest.json"
# Files that Orbax writes after the manifest: timestamps and a success marker.
TIMES = "_CHECKPOINT_METADATA"
UNREAD = (MANIFEST, TIMES, "commit_success.txt")
# Names of the items in a checkpoint.
STATE, RECORD = "state", "record"
# Seconds for the checkpoint that is being written when a run ends with an error.
CLOSING = 60.0


class Record(TypedDict):
    """Content of a checkpoint besides the state.

    Attributes:
        keys: the integers of the runs' random keys.
        configs: configurations of the runs, by name.
        skipped: number of consecutive skipped updates of each run, by name.
        lost: names of the runs that ended with too many skipped updates.
        place: hardware that it was computed on; absent in records of earlier versions.
        losses: weighted losses of the iterations since the last interval's end; absent in records
            of earlier versions.
    """

    keys: list[list[int]]
    configs: dict[str, dict[str, Any]]
    skipped: dict[str, int]
    lost: list[str]
    place: NotRequired[dict[str, Any]]
    losses: NotRequired[list[float]]


@dataclass(frozen=True)
class Preserved(managers.PreservationPolicy):
    """Which checkpoints to keep: the newest, and those with the smallest losses.

    Attributes:
        last: number of newest ones.
        best: number of those with the smallest losses, of intervals only; of equal losses, the
            first.
    """

    last: int
    best: int

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: Any,
    ) -> list[bool]:
        """Return whether to keep each checkpoint; they are in the order of their iterations."""
        losses = {
            c.step: loss
            for c in checkpoints
            if (loss := loss_of(c.metrics)) is not None and c.metrics.get(OF_INTERVAL, 1)
        }
        best = sorted(losses, key=losses.__getitem__)[: self.best]
        newest = [c.step for c in checkpoints][-self.last :] + list(losses)[-self.last :]
        return [c.step in (*best, *newest) for c in checkpoints]


@contextlib.contextmanager
def opened(workdir: Path, settings: Checkpoints) -> Iterator[ocp.CheckpointManager]:
    """Open the checkpoints in a run's folder; all are written when the context ends.

    Raises:
        RunError: a checkpoint could not be written, or the folder cannot be read.
    """
    folder = (workdir / CHECKPOINTS).absolute()
    options = ocp.CheckpointManagerOptions(
        create=True,
        cleanup_tmp_directories=True,
        # Without this function, Orbax writes no metrics.
        best_fn=lambda metrics: metrics[LOSS],
        best_mode="min",
        preservation_policy=Preserved(settings.last, settings.best),
        temporary_path_class=Sealed,
    )
    with _explained(folder):
        manager = _manager(folder, options)
    try:
        yield manager
    except BaseException:
        _close_after_error(manager)
        raise
    with _explained(folder):
        manager.wait_until_finished()
        manager.close()


def _manager(folder: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    """Open a folder; Orbax reads losses and times of all its checkpoints.

    Raises:
        RunError: one of them cannot be read.
    """
    try:
        return ocp.CheckpointManager(folder, options=options)
    except OSError:
        raise
    except Exception as error:
        faults = {f"{folder}/{step}": fault(folder / str(step)) for step in steps_in(folder)}
        damaged = [(wrong, path) for path, wrong in faults.items() if wrong]
        # The times are in no manifest.
        wrong, path = [*damaged, (_reason(error), f"*/{TIMES} in it")][0]
        raise RunError(
            f"{folder} cannot be read ({wrong}); remove {path}, and run the same command, or start "
            "again with --overwrite"
        ) from error


def _close_after_error(manager: ocp.CheckpointManager) -> None:
    """Report the error that ended the run, not a checkpoint that failed, or hangs, as well."""

    def close() -> None:
        with contextlib.suppress(Exception):
            manager.close()

    thread = threading.Thread(target=close, daemon=True)
    thread.start()
    thread.join(CLOSING)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn errors of writing a checkpoint into a `RunError`.

    Raises:
        RunError: a checkpoint could not be written.
    """
    try:
        yield
    except EraseError:
        raise
    # Orbax and its stores raise errors of many kinds.
    except Exception as error:
        steps = steps_in(folder)
        raise RunError(
            f"{folder}: a checkpoint could not be written ({_reason(error)}); free some space or "
            "fix the error, and run the same command: it resumes after iteration "
            f"{steps[-1] if steps else 0}"
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error."""
    return str(error).strip().partition("\n")[0] or repr(error)


def has_checkpoints(workdir: Path) -> bool:
    """Whether a run has written a checkpoint."""
    return bool(steps_in(workdir / CHECKPOINTS))


class Sealed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Temporary checkpoint that is renamed only after its manifest is written."""

    async def finalize(self) -> None:
        """Write the manifest, then rename the folder."""
        seal(Path(self.get()))
        await super().finalize()
        sync(Path(self.get_final()).parent)


def seal(checkpoint: Path) -> None:
    """Write a checkpoint's manifest, and all its files to disk."""
    content = {"files": _digests(checkpoint)}
    (checkpoint / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
    for path in (*checkpoint.rglob("*"), checkpoint):
        sync(path)


def _digests(checkpoint: Path) -> dict[str, list[Any]]:
    """Return the size and SHA-256 of every file that is read when restoring."""
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and name not in UNREAD:
            content = path.read_bytes()
            digests[name] = [len(content), hashlib.sha256(content).hexdigest()]
    return digests


def fault(checkpoint: Path) -> str | None:
    """Describe what is wrong with a checkpoint's files; None if it is intact."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing: the checkpoint was not finished"
    try:
        wanted = parse_json(read_bytes(manifest))["files"]
        sizes = {name: (size, digest) for name, (size, digest) in wanted.items()}
        if not sizes:
            raise ValueError("it lists no file")
        there = _digests(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    if surplus := sorted(there.keys() - sizes):
        return f"{surplus[0]} is not in {MANIFEST}"
    for name, (size, digest) in sizes.items():
        if name not in there:
            return f"{name} is missing"
        if there[name][0] != size:
            return f"{name} has {there[name][0]} bytes instead of {size}"
        if there[name][1] != digest:
            return f"the content of {name} has changed"
    return None


def place() -> dict[str, Any]:
    """Describe this process's hardware, as far as it affects rounding."""
    devices = jax.devices()
    # On a CPU, XLA splits products and sums over the cores.
    return {
        "kind": devices[0].device_kind,
        "devices": len(devices),
        "cores": cores() if devices[0].platform == "cpu" else None,
    }


def moved(record: Mapping[str, Any], now: dict[str, Any]) -> str | None:
    """Return a note for a run that resumes on other hardware; None if the hardware is the same.

    Args:
        record: record of its checkpoint; those of earlier versions have no `place`.
        now: the current result of `place`.
    """
    before = record.get("place")
    if not before or before == now:
        return None
    there, here = (_described(each) for each in (before, now))
    return (
        f"computed on {there} so far, now on {here}: the result will be the same up to rounding, "
        "not bit for bit"
    )


def _described(place: Mapping[str, Any]) -> str:
    # Other versions may know less of the hardware.
    cores = place.get("cores")
    return f"{place.get('devices', '?')} x {place.get('kind', 'unknown devices')}" + (
        f" ({cores} core{'s' * (cores != 1)})" if cores else ""
    )


def usable(workdir: Path, before: int | None = None) -> int:
    """Return the iteration of the newest intact checkpoint, 0 if there is none.

    Newer damaged checkpoints are reported and moved to the folder `damaged` in the run's folder.

    Args:
        workdir: the run's folder.
        before: only consider checkpoints of earlier iterations.
    """
    folder = workdir / CHECKPOINTS
    steps = [step for step in steps_in(folder) if before is None or step < before]
    while steps:
        step = steps.pop()
        if (wrong := fault(folder / str(step))) is None:
            return step
        aside = workdir / DAMAGED_CHECKPOINTS / str(step)
        number = 0
        while aside.exists():
            number += 1
            aside = workdir / DAMAGED_CHECKPOINTS / f"{step}-{number}"
        aside.parent.mkdir(exist_ok=True)
        os.replace(folder / str(step), aside)
        instead = f"the checkpoint of iteration {steps[-1]}" if steps else "the beginning"
        say(
            f"{folder / str(step)}: {wrong}; moved to {aside}; continuing from {instead}",
            sys.stderr,
        )
    return 0


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: State,
    record: Record,
    loss: float,
    of_interval: bool = True,
) -> None:
    """Save runs after an iteration; the files are written in the background.

    Args:
        manager: checkpoint manager of the folder.
        step: the iteration.
        state: state of all runs.
        record: further content, for JSON.
        loss: loss for comparing checkpoints.
        of_interval: whether it is written at the end of an interval.

    Raises:
        RunError: this checkpoint, or the one before, could not be written.
    """
    with _explained(Path(manager.directory)):
        args = {STATE: ocp.args.StandardSave(state), RECORD: ocp.args.JsonSave(record)}
        metrics = {LOSS: loss, OF_INTERVAL: of_interval}
        manager.save(step, args=ocp.args.Composite(**args), metrics=metrics)


def restore(manager: ocp.CheckpointManager, step: int, like: State) -> tuple[State, Record]:
    """Restore the state and record of an iteration.

    Args:
        manager: checkpoint manager of the folder.
        step: the iteration of an intact checkpoint.
        like: a state of the same shapes, placed on devices as the result should be.

    Raises:
        RunError: the checkpoint cannot be read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = {STATE: ocp.args.StandardRestore(abstract), RECORD: ocp.args.JsonRestore()}
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**args))
        record = checked(Record, restored[RECORD], RECORD)
    # Those of Orbax for damaged metadata; not those of too little memory.
    except (ValueError, LookupError, OSError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{manager.directory}/{step} cannot be read ({_reason(error)}): another version of "
            "this program may have written it; --overwrite starts again"
        ) from error
    return cast(State, restored[STATE]), record


def best(manager: ocp.CheckpointManager, last: int | None = None) -> int:
    """Return the iteration of the checkpoint with the smallest loss; of equal ones, the first.

    Args:
        manager: checkpoint manager of the folder, which has checkpoints.
        last: the last iteration of the runs, whose checkpoint counts even within an interval.
    """
    metrics = {step: manager.metrics(step) for step in manager.all_steps()}
    for step, each in metrics.items():
        if loss_of(each) is None:
            note(
                f"{manager.directory}/{step} has no loss (an earlier version wrote it, or it is "
                "damaged): it is not compared for the best checkpoint"
            )
    best = best_step(metrics, last)
    return max(metrics) if best is None else best


def check_intact(workdir: Path, step: int) -> None:
    """Check the best checkpoint before it becomes the adapter.

    Raises:
        RunError: it is damaged.
    """
    checkpoint = workdir / CHECKPOINTS / str(step)
    if wrong := fault(checkpoint):
        raise RunError(
            f"{checkpoint}, the best checkpoint, is damaged: {wrong}; take the last one with "
            "--config.checkpoints.adapter=last, or start again with --overwrite"
        )
