"""Random keys of runs, iterations and updates; a run's samples depend on nothing else.

Axis letter: R runs.
"""

import functools
from collections.abc import Sequence

import jax
from jaxtyping import Array, Int, Key, PRNGKeyArray


def run_keys(seed: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Return the key of a run's fresh adapter, and that of its iterations."""
    adapter, iterations = jax.random.split(jax.random.key(seed))
    return adapter, iterations


@functools.partial(jax.jit, static_argnums=2)
def keys_of(
    keys: Key[Array, "R"], step: int | Int[Array, ""], count: int
) -> Key[Array, "R {count}"]:
    """Derive keys [R, count] for the updates of each run in an iteration."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step), count))(keys)


def update_keys(
    keys: Key[Array, "R"], step: int | Int[Array, ""], names: Sequence[str]
) -> dict[str, Key[Array, "R"]]:
    """Return the keys [R] of each of an iteration's updates, by name."""
    every = keys_of(keys, step, max(2, len(names)))
    return {name: every[:, index] for index, name in enumerate(names)}
