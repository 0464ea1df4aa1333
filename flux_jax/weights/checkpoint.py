"""This project's layout of a model's weights: its Flax tree in an Orbax checkpoint (OCDBT)."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from flux_jax.errors import InputError
from flux_jax.tree import flatten, nest
from flux_jax.weights.mapping import MEND, differences, refuse

FOLDER = "checkpoint"


def is_checkpoint(folder: Path) -> bool:
    """Whether a model's folder has its weights in this layout."""
    return (folder / FOLDER).is_dir()


def write_params(folder: Path, params: Mapping[str, Any]) -> None:
    """Writes a model's parameters to its folder."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / FOLDER).absolute(), params)


def stored_shapes(folder: Path) -> dict[str, Any]:
    """Shapes and types of the leaves by path, joined by "/".

    Raises:
        InputError: the folder has no complete checkpoint.
    """
    import orbax.checkpoint as ocp

    path = (folder / FOLDER).absolute()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            leaves = flatten(checkpointer.metadata(path).item_metadata.tree)
        if not all(isinstance(leaf, ocp.metadata.ArrayMetadata) for leaf in leaves.values()):
            raise TypeError("not all leaves are arrays")
        return leaves
    # Orbax documents no exception class for unreadable files.
    except Exception as error:
        raise InputError(
            f"{path}: not a complete checkpoint ({type(error).__name__}); convert the model again"
        ) from error


def stored_bytes(folder: Path) -> int:
    """Total bytes of all leaves.

    Raises:
        InputError: see `stored_shapes`.
    """
    leaves = stored_shapes(folder).values()
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def check(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Checks that a model's folder has the leaves that `read_params` will read.

    Raises:
        InputError: leaves are missing, surplus or misshapen, or the checkpoint is incomplete.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(wanted).items()}
    refuse(folder, MEND, differences(stored_shapes(folder), shapes))


def read_params(
    folder: Path,
    wanted: Mapping[str, Any] | None = None,
    changes: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Reads a model's parameters from its folder.

    Args:
        folder: the model's folder.
        wanted: nested dictionaries of `jax.ShapeDtypeStruct`; leaves with a sharding are placed on
            its devices. By default all leaves are read to host memory with their stored types.
        changes: functions applied to leaves, by path. These leaves are read one by one, so that
            each can be freed before the next is read; all others are read at once.

    Raises:
        InputError: leaves are missing, surplus or misshapen, or the checkpoint is incomplete.
    """
    if wanted is None:
        import jax

        stored = stored_shapes(folder).items()
        wanted = nest({path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in stored})
    check(folder, wanted)
    flat = flatten(wanted)
    params = _restored(folder, {path: flat[path] for path in flat if path not in changes})
    for path, change in changes.items():
        params[path] = change(_restored(folder, {path: flat[path]})[path])
    return nest(params)


def _restored(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Reads some of the leaves, by path.

    Raises:
        InputError: they cannot be read.
    """
    import orbax.checkpoint as ocp

    path, tree = (folder / FOLDER).absolute(), nest(wanted)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=tree,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
                    partial_restore=True,
                ),
            )
            return flatten(restored)
    # As above.
    except Exception as error:
        raise InputError(f"{path}: damaged; convert the model again") from error
