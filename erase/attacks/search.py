"""Run a search in parts that are saved, so that an interrupted command continues it."""

import contextlib
import io
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from erase.runtime import signals
from erase.runtime.cache import Cache
from flux_jax import progress
from flux_jax.system import xla_flags

# Steps between two saves.
PART = 25
# Largest saved state in bytes: an adapter of all layers with its optimiser's state.
MOST = 1 << 33

StateT = TypeVar("StateT", bound=PyTree)


def run_search(
    advance: Callable[[StateT, int, int], StateT],
    state: StateT,
    steps: int,
    title: str,
    saved: Cache | None,
) -> StateT:
    """Run all steps of a search.

    Args:
        advance: returns the state after steps `start` to `stop - 1`, from the one before them.
        state: a tree of arrays: the state before the first step.
        steps: number of steps.
        title: of the progress bar.
        saved: saves the state after every part, and has that of an interrupted command.

    Raises:
        PreemptedError: the system requested a stop; the steps so far are saved.
    """
    done = 0
    if saved and (content := saved.read("search", MOST)):
        done, state = _unpack(content, state)
    with progress.bar(total=steps, desc=title, leave=None) as bar, xla_flags.told(bar):
        bar.update(done)
        while done < steps:
            stop = min(done + PART, steps)
            with signals.finishing("part of the search") if saved else contextlib.nullcontext():
                state = jax.block_until_ready(advance(state, done, stop))
                bar.update(stop - done)
                done = stop
                if saved:
                    saved.write("search", _pack(done, state))
    return state


def saved_array(saved: Cache | None, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return an array from the cache, or make and save it.

    Args:
        saved: the cache; with None nothing is saved.
        name: of the array.
        make: computes it.
    """
    if saved and (content := saved.read(name, MOST)):
        return _unpack(content, [np.zeros(0)])[1][0]
    value = make()
    if saved:
        saved.write(name, _pack(0, [value]))
    return value


def _pack(done: int, tree: PyTree) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, np.asarray(done), *map(np.asarray, jax.tree.leaves(tree)))
    return buffer.getvalue()


def _unpack(content: bytes, like: StateT) -> tuple[int, StateT]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        done, *leaves = (file[f"arr_{index}"] for index in range(len(file.files)))
    return int(done), jax.tree.unflatten(jax.tree.structure(like), leaves)
