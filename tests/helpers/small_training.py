"""Train the tiny model, and read its final state."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from erase.config.schema import Checkpoints, Config, EarlyStop, MeshConfig
from erase.data.bank import stack_banks
from erase.methods.planning.configured import context_of
from erase.methods.settings.erase_anything import Lower, Upper
from erase.runtime.mesh import make_mesh
from erase.runtime.signals import Stop
from erase.training.loop import Training, train
from flux_jax import sharding
from helpers.small import BANK, CONFIG, KEYS, MODEL, PARAMS, every, fresh

# Two losses are enough here, and compile in half the time.
SHORT = replace(CONFIG, lower=Lower(attn=0.0, learning_rate=0.01), upper=Upper(rsc=0.0))


def training(runs: int = 1, bank: Any = BANK, **changes: Any) -> Training:
    """Runs of the tiny model on all devices, which split the samples."""
    config: Config = replace(SHORT, **{"checkpoints": Checkpoints(every=2)} | changes)
    mesh = make_mesh(MeshConfig(), runs, config.batch_size)
    context = context_of(config, MODEL, mesh)
    keys = jax.random.key_data(jnp.concatenate([KEYS] * runs))
    return Training(
        configs={f"run{i}" if runs > 1 else "": config for i in range(runs)},
        context=context,
        state=context.divided(every(*[fresh()] * runs)),
        params=jax.device_put(PARAMS, sharding.whole(mesh)),
        bank=context.placed(stack_banks([bank] * runs)),
        keys=jax.random.wrap_key_data(context.divided(keys)),
        plans={},
    )


def trained(workdir: Path, **changes: Any) -> list[np.ndarray]:
    """All leaves of a run's last state, wherever its folder was moved."""
    for name in (made := training(**changes)).configs:
        (workdir / name).mkdir(parents=True, exist_ok=True)
    state, _ = train(made, workdir, lambda *_: False, Stop())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def preempted(workdir: Path, stop: Stop, step: int, **changes: Any) -> None:
    """A run that receives a stop request during an iteration."""

    looks = itertools.count(1)

    def erased(*_: Any) -> bool:
        if next(looks) == step:
            stop.asked = "SIGTERM"
        return False

    made = training(early_stop=EarlyStop(every=1), **changes)
    train(made, workdir, erased, stop)
