"""Checkpoints of runs, through Orbax: written in the background, whole or not at all, and checked.

A checkpoint holds the adapters, both optimisers' states, and a record: the iteration, from which
with the keys follows all that is drawn next, the configurations, what the guard counts, and what it
was computed on. A run that goes on there ends bit for bit as it would have; with other devices or
another number of a CPU's cores, which add sums up in another order, up to rounding. With them comes
a manifest with the size and SHA-256 of every file: what was damaged later is noticed, named and set
aside, and the checkpoint before it serves.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from erase.config.schema import Checkpoints
from erase.methods.parts.step import State
from erase.runtime.run_folder import CHECKPOINTS, DAMAGED_CHECKPOINTS
from flux_jax.errors import EraseError, RunError

MANIFEST = "manifest.json"
# What Orbax writes after the manifest: when, and that it did.
UNREAD = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")
# Names within a checkpoint, and what checkpoints are compared by.
STATE, RECORD, LOSS = "state", "record", "loss"


class Record(TypedDict):
    """What a checkpoint holds besides the state.

    Attributes:
        keys: what the runs' random keys consist of.
        configs: of the runs, by name.
        skipped: updates in a row that each run left out, by name.
        lost: names of the runs that left out too many.
        place: what it was computed on; records of earlier versions do not say.
    """

    keys: list[list[int]]
    configs: dict[str, dict[str, Any]]
    skipped: dict[str, int]
    lost: list[str]
    place: NotRequired[dict[str, Any]]


@contextlib.contextmanager
def opened(workdir: Path, settings: Checkpoints) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in a run's folder; all are written when the context ends.

    Raises:
        RunError: one could not be written.
    """
    folder = (workdir / CHECKPOINTS).absolute()
    # Orbax keeps those that come last in their order.
    smallest = managers.BestN(
        get_metric_fn=lambda metrics: metrics[LOSS],
        reverse=True,
        n=settings.best,
        keep_checkpoints_without_metrics=False,
    )
    policy = managers.AnyPreservationPolicy([managers.LatestN(settings.last), smallest])
    options = ocp.CheckpointManagerOptions(
        create=True,
        cleanup_tmp_directories=True,
        preservation_policy=policy,
        temporary_path_class=Sealed,
    )
    with _explained(folder):
        manager = ocp.CheckpointManager(folder, options=options)
    try:
        yield manager
    except BaseException:
        # Whatever ended the run is what is told, not that a checkpoint failed besides.
        with contextlib.suppress(Exception):
            manager.close()
        raise
    with _explained(folder):
        manager.wait_until_finished()
        manager.close()


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Says why a checkpoint could not be written.

    Raises:
        RunError: it could not.
    """
    try:
        yield
    except EraseError:
        raise
    # Orbax and its stores raise errors of many kinds.
    except Exception as error:
        steps = steps_in(folder)
        reason = str(error).strip().splitlines()
        raise RunError(
            f"{folder}: a checkpoint could not be written "
            f"({reason[0] if reason else repr(error)}); make room there, or mend it, and start the "
            f"same command: it goes on after iteration {steps[-1] if steps else 0}"
        ) from error


def steps_in(folder: Path) -> list[int]:
    """The iterations that a folder has checkpoints of, in order; whether they are whole or not."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit())


def has_checkpoints(workdir: Path) -> bool:
    """Whether a run has come as far as its first checkpoint."""
    return bool(steps_in(workdir / CHECKPOINTS))


class Sealed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint that appears under its name with its manifest."""

    async def finalize(self) -> None:
        """Writes the manifest, then gives the folder its name."""
        seal(Path(self.get()))
        await super().finalize()


def seal(checkpoint: Path) -> None:
    """Writes a checkpoint's manifest."""
    content = {"files": _digests(checkpoint)}
    (checkpoint / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def _digests(checkpoint: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file that anything is read from."""
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and name not in UNREAD:
            content = path.read_bytes()
            digests[name] = [len(content), hashlib.sha256(content).hexdigest()]
    return digests


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where nothing is."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing: it was not finished"
    try:
        wanted = json.loads(manifest.read_bytes())["files"]
        sizes = {name: (size, digest) for name, (size, digest) in wanted.items()}
        there = _digests(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, (size, digest) in sizes.items():
        if name not in there:
            return f"{name} is missing"
        if there[name][0] != size:
            return f"{name} has {there[name][0]} bytes and should have {size}"
        if there[name][1] != digest:
            return f"{name} has other content than was written"
    return None


def place() -> dict[str, Any]:
    """What this process computes on, as far as the last bits of its numbers depend on it."""
    devices = jax.devices()
    # XLA's products and sums on a CPU are divided over its cores.
    return {
        "kind": devices[0].device_kind,
        "devices": len(devices),
        "cores": cores() if devices[0].platform == "cpu" else None,
    }


def cores() -> int:
    """How many cores XLA uses on a CPU: those that the process may, unless NPROC says it."""
    if (said := os.environ.get("NPROC", "")).isdecimal():
        return int(said)
    # Some systems do not say.
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(allowed(0))


def moved(record: Mapping[str, Any], now: dict[str, Any]) -> str | None:
    """What a run that goes on is told where it was computed on something else; None if it was not.

    Args:
        record: of its checkpoint; those of earlier versions do not say.
        now: what `place` says.
    """
    before = record.get("place")
    if not before or before == now:
        return None
    there, here = (
        f"{each['devices']} x {each['kind']}"
        + (f" ({each['cores']} core{'s' * (each['cores'] > 1)})" if each["cores"] else "")
        for each in (before, now)
    )
    return (
        f"computed on {there} so far, now on {here}: the run will end as it would have there up to "
        "rounding, not bit for bit"
    )


def usable(workdir: Path, before: int | None = None) -> int:
    """The iteration of the newest whole checkpoint, 0 if there is none.

    Newer ones that are not whole are told of and set aside, into the run's folder `damaged`.

    Args:
        workdir: the run's folder.
        before: only earlier ones are looked at.
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
        instead = f"the one of iteration {steps[-1]}" if steps else "the beginning"
        print(
            f"{folder / str(step)}: {wrong}; it is now in {aside}, and {instead} serves instead",
            file=sys.stderr,
        )
    return 0


def save(
    manager: ocp.CheckpointManager, step: int, state: State, record: Record, loss: float
) -> None:
    """Saves runs after an iteration; the writing goes on in the background.

    Args:
        manager: of the folder.
        step: the iteration.
        state: of all runs.
        record: what is kept besides, for JSON.
        loss: what checkpoints are compared by.

    Raises:
        RunError: this one, or the one before, could not be written.
    """
    with _explained(Path(manager.directory)):
        args = {STATE: ocp.args.StandardSave(state), RECORD: ocp.args.JsonSave(record)}
        manager.save(step, args=ocp.args.Composite(**args), metrics={LOSS: loss})


def restore(manager: ocp.CheckpointManager, step: int, like: State) -> tuple[State, Record]:
    """The state and record of an iteration.

    Args:
        manager: of the folder.
        step: the iteration, of a whole checkpoint.
        like: a state of the same shapes, placed as the result should be; on whatever devices.

    Raises:
        RunError: it cannot be read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = {STATE: ocp.args.StandardRestore(abstract), RECORD: ocp.args.JsonRestore()}
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**args))
    except (ValueError, KeyError, OSError) as error:
        raise RunError(
            f"{manager.directory}/{step} cannot be read ({str(error).splitlines()[0]}): another "
            "version of this program may have written it; --overwrite begins anew"
        ) from error
    return cast(State, restored[STATE]), cast(Record, restored[RECORD])


def best(manager: ocp.CheckpointManager) -> int:
    """The iteration of the checkpoint with the smallest loss."""
    losses = {step: manager.metrics(step) for step in manager.all_steps()}
    return min(losses, key=lambda step: (losses[step] or {}).get(LOSS, float("inf")))
