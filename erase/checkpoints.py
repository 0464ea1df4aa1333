"""Checkpoints of a run: adapter, both optimisers' states and the iteration, through Orbax."""

from pathlib import Path
from typing import cast

import jax
import orbax.checkpoint as ocp

from erase.updates import State

FOLDER = "checkpoints"
KEPT = 2


def open_manager(workdir: Path) -> ocp.CheckpointManager:
    """The checkpoints in a run's folder; use it as a context, or close it."""
    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True)
    return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)


def has_checkpoints(workdir: Path) -> bool:
    """Whether a run has come as far as its first checkpoint."""
    folder = workdir / FOLDER
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


def save(manager: ocp.CheckpointManager, iteration: int, state: State) -> None:
    """Saves the state after an iteration; the file writing goes on in the background."""
    manager.save(iteration, args=ocp.args.StandardSave(state))


def restore(manager: ocp.CheckpointManager, like: State) -> tuple[int, State]:
    """The latest state and its iteration; (0, `like`) if there is none.

    Args:
        manager: of the run.
        like: a state of the same shapes, placed as the result should be.
    """
    latest = manager.latest_step()
    if latest is None:
        return 0, like
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = manager.restore(latest, args=ocp.args.StandardRestore(abstract))
    return latest, cast(State, restored)
