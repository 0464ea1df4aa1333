"""Compute the adapters of a command's runs with any method: banks, training, closed forms."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import jax

from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.make_bank import make_bank
from erase.data.plan import Plan
from erase.evaluation import early_stop
from erase.methods import method_of
from erase.methods.parts.step import State
from erase.methods.planning.configured import sampled_points, shapes_of, start
from erase.runtime.memory import host_memory, memory
from erase.runtime.mesh import RUNS
from erase.runtime.signals import Stop
from erase.training import guard, loop
from erase.training.memory_plan import compiling_updates
from erase.training.prepare import (
    PreparedRun,
    configs_of,
    plans_of,
    sample_set,
    shared_settings,
)
from erase.watch.view import View
from flux_jax.errors import InputError, RunError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

GB = 1e9


def banks_of(
    configs: Mapping[str, Config], pipe: Pipeline, plans: Mapping[str, Plan]
) -> dict[str, Bank]:
    """Compute the runs' banks, completed by their method, on the host.

    Args:
        configs: configurations of the runs, by name.
        pipe: the frozen model.
        plans: plans of the banks, by name.

    Raises:
        InputError: a closed form cannot be solved, or the banks exceed the memory.
    """
    check_size(configs, pipe)
    banks = {}
    for name, config in configs.items():
        points = sampled_points(config, pipe, plans[name])
        bare = make_bank(config, pipe, plans[name], points)
        banks[name] = method_of(config).completes(config, pipe, plans[name], bare)
    return banks


def check_size(configs: Mapping[str, Config], pipe: Pipeline) -> None:
    """Check that the runs' banks fit into memory, before they are computed.

    Args:
        configs: configurations of the runs, by name.
        pipe: the frozen model, on its devices.

    Raises:
        InputError: they exceed the memory of a device, or of the machine.
    """
    shared = shared_settings(configs)
    tokens = len(pipe.image_ids(shared.height, shared.width))
    shapes = [
        shapes_of(config, pipe.transformer, tokens, pipe.tokenizer_2.model_max_length)
        for config in configs.values()
    ]
    sizes = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(s)) for s in shapes]
    runs_a_device = math.ceil(len(sizes) / pipe.mesh.shape.get(RUNS, 1))
    for needed, available, where in (
        (sum(sizes), host_memory(), "this machine"),
        (max(sizes) * runs_a_device, memory(list(pipe.mesh.devices.flat)), "a device"),
    ):
        if available is not None and needed > available:
            raise InputError(
                f"bank: its {needed / GB:.1f} GB exceed the {available / GB:.1f} GB of {where}; "
                "set bank.teacher to computed and upper.rsc_features to adapted, or make "
                "bank.trajectories, bank.sentences, upper.noises, height or width smaller"
            )


def make_adapters(
    runs: Mapping[str, PreparedRun],
    pipe: Pipeline,
    workdir: Path,
    stop: Stop | None = None,
    watched: bool = False,
) -> dict[str, Adapter]:
    """Compute the runs' adapters; training resumes from the latest intact checkpoint.

    Args:
        runs: the runs, by name.
        pipe: the frozen model.
        workdir: folder of the checkpoints, with the runs' folders in it.
        stop: stop request of the system.
        watched: whether event files are written.

    Returns:
        The adapters, by name; without the runs that ended with non-finite updates.

    Raises:
        InputError: a closed form cannot be solved.
        PreemptedError: the system requested a stop.
        RunError: all runs ended with non-finite updates, or a checkpoint could not be written.
    """
    configs, plans = configs_of(runs), plans_of(runs)
    shared = shared_settings(configs)
    method = method_of(shared)
    assert method.exports is not None, "checked by run"
    banks: dict[str, Bank] = {}
    if method.steps(shared):
        with compiling_updates(configs, pipe):
            banks = banks_of(configs, pipe, plans)
        samples = [sample_set(run) for run in runs.values()]
        view = View(pipe, samples, shared.samples.every or 0, watched)
        adapters = learn(configs, pipe, banks, workdir, plans, stop, view)
    else:
        fresh = start(jax.random.key(shared.seed), pipe.shapes, shared).lora
        alpha = float(shared.adapter.alpha or shared.adapter.rank)
        adapters = dict.fromkeys(configs, Adapter(fresh, alpha))
    return {
        name: method.exports(configs[name], pipe, plans[name], banks.get(name), adapter)
        for name, adapter in adapters.items()
    }


def learn(
    configs: Mapping[str, Config],
    pipe: Pipeline,
    banks: Mapping[str, Bank],
    workdir: Path,
    plans: Mapping[str, Plan] | None = None,
    stop: Stop | None = None,
    view: View | None = None,
) -> dict[str, Adapter]:
    """Train all runs at once, from fresh adapters or the latest intact checkpoint.

    Args:
        configs: configurations of the runs, by name.
        pipe: the frozen model.
        banks: banks of the runs, by name.
        workdir: folder of the checkpoints, with the runs' folders in it.
        plans: plans of the banks, for messages.
        stop: stop request of the system.
        view: what is shown while they train.

    Returns:
        The adapters, by name; without the runs that ended with non-finite updates.

    Raises:
        PreemptedError: the system requested a stop.
        RunError: all runs ended with non-finite updates, or a checkpoint could not be written.
    """
    training = loop.place_on_devices(configs, pipe, banks, plans)
    training = dataclasses.replace(training, view=view or View())

    def erased(name: str, state: State) -> bool:
        return early_stop.has_erased(pipe, training.adapter(name, state), configs[name])

    state, lost = loop.train(training, workdir, erased, stop or Stop())
    if set(lost) == set(configs):
        raise RunError(guard.no_adapter(lost, training.shared.guard))
    return {name: training.adapter(name, state) for name in configs if name not in lost}
