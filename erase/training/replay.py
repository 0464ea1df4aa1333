"""Replay one iteration of runs and print its losses and gradients; the runs do not change.

The state before the iteration is restored from the newest earlier checkpoint and the updates since.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import SupportsFloat, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from convert import tables
from erase.data.bank import Bank
from erase.methods.parts.forward import RunInputs
from erase.methods.parts.step import Losses, Metrics, State
from erase.runtime import processes
from erase.runtime.files import write
from erase.runtime.run_folder import REPLAY
from erase.training import checkpoints
from erase.training.loop import Training
from flux_jax import progress, sharding
from flux_jax.errors import InputError, say
from flux_jax.system import xla_flags


class GradientRecord(TypedDict):
    """A gradient's norm, as text if it is not finite, and its number of non-finite values."""

    norm: float | str
    lost: int


class LevelRecord(TypedDict):
    """Losses by name, and gradients by the path of the trained array."""

    losses: dict[str, float | str]
    gradients: dict[str, GradientRecord]


def show(training: Training, workdir: Path, step: int) -> None:
    """Print each run's losses and gradients in an iteration, and write them to a file.

    Args:
        training: training of the runs.
        workdir: the runs' folder.
        step: the iteration.

    Raises:
        InputError: there is no such iteration.
    """
    if step > training.shared.iterations:
        raise InputError(
            f"replay = {step} is beyond iterations = {training.shared.iterations}; choose less"
        )
    done = processes.from_first(lambda: checkpoints.usable(workdir, step), int)
    state = training.state
    with checkpoints.opened(workdir, training.shared.checkpoints) as manager:
        if done:
            state, _ = checkpoints.restore(manager, done, state)
    with (
        progress.bar(range(done + 1, step), desc=f"replaying {done} to {step}") as bar,
        xla_flags.told(bar),
    ):
        for number in bar:
            state, _ = training.iterate(state, number)
    runs = {name: dict(_levels(training, state, name, step)) for name in training.configs}
    for name, levels in runs.items():
        samples = training.drawn(name, step)
        content = {"step": step, "from": done, "drawn": samples, "levels": levels}
        write(workdir / name / REPLAY.format(step), json.dumps(content, indent=1) + "\n")
        tables.show(_table(name or training.configs[name].concept, step, levels))
        for part, rows in samples.items():
            for prompt, t in zip(rows["prompts"], rows["t"], strict=True):
                say(f"{part}: {prompt!r} at t = {t}")


def _levels(
    training: Training, state: State, run: str, step: int
) -> Iterator[tuple[str, LevelRecord]]:
    """Yield the losses and gradient norms of a run, level by level in the order of the updates."""
    row = list(training.configs).index(run)
    common = {"times": training.bank.times, "image_ids": training.bank.image_ids}
    per_run = training.bank.replace(**dict.fromkeys(common))
    bank = jax.tree.map(lambda leaf: leaf[row], per_run).replace(**common)
    after = jax.tree.map(jnp.copy, state)
    keys = training.keys_at(step)
    for name, each in training.steps.items():
        lora, opt_states = jax.tree.map(lambda leaf: leaf[row], (after.lora, after.own))
        for level, (losses, key) in each.losses(keys[name][row], opt_states).items():
            yield level, _level(training, bank, losses, lora, key)
        after, _ = each.update(
            after, training.params, training.bank, keys[name], context=training.context
        )


def _level(
    training: Training, bank: Bank, losses: Losses[object], lora: PyTree, key: PRNGKeyArray
) -> LevelRecord:
    """Compute the losses and gradient norms of a run at one adapter."""

    def loss(lora: PyTree) -> tuple[Float[Array, ""], Metrics]:
        run = RunInputs.of(training.context, training.params, bank)
        with jax.sharding.use_abstract_mesh(training.context.mesh.abstract_mesh):
            return losses(lora, run, key)

    (_, parts), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(lora)
    parts, gradient = jax.device_get(sharding.gather(training.context.mesh, (parts, gradient)))
    return {
        "losses": {part: _number(value) for part, value in parts.items()},
        "gradients": {
            jax.tree_util.keystr(path, simple=True, separator="/"): {
                "norm": _number(np.linalg.norm(np.asarray(leaf, np.float64))),
                "lost": int((~np.isfinite(leaf)).sum()),
            }
            for path, leaf in jax.tree.leaves_with_path(gradient)
        },
    }


def _number(value: SupportsFloat) -> float | str:
    """Return a number for JSON: text if it is not finite, which JSON cannot represent."""
    return number if math.isfinite(number := float(value)) else str(number)


def _table(title: str, step: int, levels: dict[str, LevelRecord]) -> tables.Table:
    """Build a table with a row for each loss and each gradient."""
    table = tables.Table("level", "", title=f"{title!r}, iteration {step}")
    for heading in ("loss or norm", "non-finite"):
        table.add_column(heading, justify="right")
    for level, values in levels.items():
        for part, value in values["losses"].items():
            table.add_row(level, part, str(value), "")
        for path, gradient in values["gradients"].items():
            table.add_row(
                level, f"gradient of {path}", str(gradient["norm"]), str(gradient["lost"])
            )
    return table
