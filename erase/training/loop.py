"""Training loop: the updates of each iteration, for all runs of a command at once.

Iteration i samples with the run's key folded with i. So a resumed run ends like an uninterrupted
one, and a run trained with others ends like one trained alone, on any number of devices: bit for
bit with the same number of CPU cores, up to rounding otherwise.
Axis letter: R runs.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Key, PyTree

from erase.config.schema import Config
from erase.data.bank import Bank, stack_banks
from erase.data.plan import Plan
from erase.methods import method_of
from erase.methods.base import Step
from erase.methods.parts.compiled import StepContext
from erase.methods.parts.keys import run_keys, update_keys
from erase.methods.parts.samples import Counts
from erase.methods.parts.step import State
from erase.methods.planning.configured import context_of, start
from erase.model.open import place_model
from erase.runtime import processes
from erase.runtime.memory import release
from erase.runtime.run_folder import CHECKPOINTS
from erase.runtime.signals import Stop
from erase.runtime.watchdog import Watchdog
from erase.training import checkpoints, guard, metrics
from erase.training.metrics import RunLog, named
from erase.training.prepare import shared_settings
from erase.watch.view import View
from flux_jax import progress as bars
from flux_jax import sharding
from flux_jax.errors import InputError, PreemptedError, say
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.progress import Bar
from flux_jax.system import xla_flags


@dataclass(frozen=True)
class Training:
    """Inputs of the iterations of all runs, and their initial state.

    Attributes:
        configs: configurations of the runs, by name.
        context: static arguments of the training step.
        state: initial state of fresh runs, [R, ...].
        params: parameters of the frozen transformer.
        bank: precomputed data that updates sample from.
        keys: random keys [R].
        plans: plans of the banks, by name; may be empty.
        view: what is shown while they run.
    """

    configs: Mapping[str, Config]
    context: StepContext[object]
    state: State
    params: PyTree
    bank: Bank
    keys: Key[Array, "R"]
    plans: Mapping[str, Plan]
    view: View = field(default_factory=View)

    @property
    def shared(self) -> Config:
        """The settings that all runs share."""
        return shared_settings(self.configs)

    @property
    def steps(self) -> Mapping[str, Step]:
        """The steps of an iteration by name, in their order."""
        return method_of(self.shared).steps(self.shared)

    def keys_at(self, step: int, keys: Key[Array, "R"] | None = None) -> dict[str, Key[Array, "R"]]:
        """Return the keys [R] of each update of an iteration, by default for all runs."""
        return update_keys(self.keys if keys is None else keys, step, list(self.steps))

    def iterate(self, state: State, step: int) -> tuple[State, dict[str, np.ndarray]]:
        """Run one iteration. Donates `state`.

        Args:
            state: state of all runs.
            step: the iteration, counted from 1.

        Returns:
            The new state, and losses and norms of gradients [R] by name, on the host.
        """
        by_update, keys = {}, self.keys_at(step)
        for name, each in self.steps.items():
            state, by_update[name] = each.update(
                state, self.params, self.bank, keys[name], context=self.context
            )
        values = jax.device_get(by_update).values()
        return state, {name: each for update in values for name, each in update.items()}

    def adapter(self, name: str, state: State) -> Adapter:
        """Return a run's adapter in a state, on the host, for use on any devices."""
        row = list(self.configs).index(name)
        lora = sharding.gather(self.context.mesh, jax.tree.map(lambda leaf: leaf[row], state.lora))
        return Adapter(jax.device_get(lora), self.context.alpha)

    def numbers(self) -> list[list[int]]:
        """Return the integers of the random keys, for JSON."""
        return np.asarray(
            sharding.gather(self.context.mesh, jax.random.key_data(self.keys))
        ).tolist()

    def drawn(self, name: str, step: int) -> dict[str, metrics.SampledRecord]:
        """Return a run's samples in an iteration: prompts (or rows of its bank) and timesteps."""
        row = list(self.configs).index(name)
        key = jax.random.wrap_key_data(jnp.asarray(self.numbers()[row : row + 1], jnp.uint32))
        keys, bank = self.keys_at(step, key), self.bank
        times = np.asarray(bank.times)
        pictures = 0 if bank.pictures is None else bank.pictures.shape[1]
        counts = Counts(bank.trajectories.shape[1], pictures, jnp.asarray(times))
        sentences = sharding.gather(self.context.mesh, bank.trajectory_sentences)[row]
        plan, samples = self.plans.get(name), {}
        for update, each in self.steps.items():
            for part, (kind, (rows, steps)) in each.drawn(
                keys[update][0], self.context, counts
            ).items():
                of_pictures = kind == "pictures"
                prompts = np.asarray(rows if of_pictures else sentences[rows]).tolist()
                if plan:
                    texts = (
                        plan.shown if of_pictures else [g.prompts[plan.drawn] for g in plan.groups]
                    )
                    prompts = [texts[i] for i in prompts]
                times_drawn = times[np.asarray(steps)].round(4).tolist()
                samples[part or update] = {"prompts": prompts, "t": times_drawn}
        return samples


def place_on_devices(
    configs: Mapping[str, Config],
    pipe: Pipeline,
    banks: Mapping[str, Bank],
    plans: Mapping[str, Plan] | None = None,
) -> Training:
    """Place fresh adapters, banks and keys on the devices.

    Args:
        configs: configurations of the runs, by name.
        pipe: the frozen model; the updates need only its transformer.
        banks: banks of the runs, by name.
        plans: plans of the banks, for messages.
    """
    first = shared_settings(configs)
    pipe = place_model(pipe, first, len(configs))
    context = context_of(first, pipe.transformer, pipe.mesh)
    keys = [run_keys(config.seed) for config in configs.values()]
    params = pipe.params["transformer"]
    states = [start(key[0], params, first) for key in keys]
    # Integers can be sent to other processes' devices, keys cannot.
    numbers = context.divided(jnp.stack([jax.random.key_data(key[1]) for key in keys]))
    return Training(
        configs=configs,
        context=context,
        state=context.divided(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)),
        params=params,
        bank=context.placed(stack_banks(list(banks.values()))),
        keys=jax.random.wrap_key_data(numbers),
        plans=plans or {},
    )


@dataclass
class Progress:
    """Progress of the runs.

    Attributes:
        step: the last completed iteration.
        state: state of all runs, [R, ...].
        active: whether each run is still training [R].
        lost: names of the runs that ended with too many consecutive skipped updates.
        tallies: histories of the runs' metrics, by name.
        losses: weighted losses of the iterations since the last interval of checkpoints.
    """

    step: int
    state: State
    active: np.ndarray
    lost: list[str]
    tallies: dict[str, guard.Tally]
    losses: list[float] = field(default_factory=list)


def train(
    training: Training, workdir: Path, erased: Callable[[str, State], bool], stop: Stop
) -> tuple[State, list[str]]:
    """Train from the latest checkpoint (for EraseAnything, the paper's Algorithm 1).

    Runs that have erased enough stop early (`early_stop`), and so do runs whose updates are
    repeatedly skipped.

    Args:
        training: inputs of the iterations.
        workdir: folder of the checkpoints, with the runs' folders in it.
        erased: whether the run of a name has erased enough, in a state.
        stop: stop request of the system.

    Returns:
        The last state, and the names of the runs that ended with non-finite updates.

    Raises:
        PreemptedError: the system requested a stop.
        RunError: a checkpoint could not be written.
    """
    shared, names = training.shared, list(training.configs)
    title = shared.concept if len(names) == 1 else f"{len(names)} concepts"
    done = processes.from_first(lambda: checkpoints.usable(workdir), int)
    watchdog, stopped = Watchdog(shared.guard), False
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoints.opened(workdir, shared.checkpoints))
        progress = _resumed(training, manager, done, workdir)
        logs = stack.enter_context(metrics.opened_logs(workdir, names, done))
        show = stack.enter_context(
            training.view.opened(done, lambda name: training.adapter(name, progress.state))
        )
        bar = bars.bar(total=shared.iterations, initial=done, desc=f"erasing {title}")
        stack.enter_context(bar)
        stack.enter_context(xla_flags.told(bar))
        stack.enter_context(watchdog.watching())
        stack.enter_context(stop.deferred())
        while progress.step < shared.iterations and progress.active.any() and not stopped:
            began = time.perf_counter()
            progress.step += 1
            with watchdog.iteration(progress.step):
                progress.state, values = training.iterate(progress.state, progress.step)
            seconds = round(time.perf_counter() - began, 4)
            after_iteration(training, progress, values, seconds, logs, bar, erased)
            show(progress.step, values, seconds, progress.active)
            stopped = processes.any_of(stop.asked is not None)
            if stopped or _checkpoint_is_due(shared, progress):
                _save(training, progress, manager, logs)
        if shared.checkpoints.adapter == "best" and not stopped:
            manager.wait_until_finished()
            best = checkpoints.best(manager, progress.step)
            processes.from_first(lambda: checkpoints.check_intact(workdir, best))
            progress.state, _ = checkpoints.restore(manager, best, progress.state)
    if stopped:
        raise PreemptedError(
            f"{stop.asked or 'another process'}: stopped and saved after iteration "
            f"{progress.step} of {shared.iterations}; run the same command to resume"
        )
    return progress.state, progress.lost


def after_iteration(
    training: Training,
    progress: Progress,
    values: Mapping[str, np.ndarray],
    seconds: float,
    logs: Mapping[str, RunLog],
    bar: Bar,
    erased: Callable[[str, State], bool],
) -> None:
    """Log an iteration's metrics, and end the runs that failed or have erased enough.

    Args:
        training: inputs of the iterations.
        progress: progress after the iteration; changed in place.
        values: losses and norms of gradients [R], by name.
        seconds: duration of the iteration.
        logs: logs of the runs, by name.
        bar: the progress bar.
        erased: whether the run of a name has erased enough, in a state.
    """
    shared, names, before = training.shared, list(training.configs), progress.active.copy()
    for index in np.flatnonzero(before):
        name = names[index]
        of_run = {metric: float(each[index]) for metric, each in values.items()}
        _log(training, progress.step, name, of_run, seconds, logs[name], bar)
        if progress.tallies[name].count(of_run):
            progress.active[index] = False
            progress.lost.append(name)
        if progress.step % guard.MEDIAN_WINDOW == 0:
            for message in progress.tallies[name].diverging():
                text = f"iteration {progress.step}: {message}: it may diverge"
                bar.write(named(name, text, ", "))
    progress.losses.append(metrics.mean_weighted_loss(shared, values, progress.active))
    bar.set_postfix(metrics.mean_losses(values, progress.active), refresh=False)
    bar.update()
    every, last = shared.early_stop.every, progress.step == shared.iterations
    if every and progress.step % every == 0 and not last:
        for index in np.flatnonzero(progress.active):
            progress.active[index] = not erased(names[index], progress.state)
            if not progress.active[index]:
                bar.write(named(names[index], f"erased after {progress.step} iterations"))
    if (progress.active != before).any():
        active = training.context.divided(jnp.asarray(progress.active))
        progress.state = progress.state.replace(active=active)


def _log(
    training: Training,
    step: int,
    name: str,
    values: Mapping[str, float],
    seconds: float,
    log: RunLog,
    bar: Bar,
) -> None:
    """Log a run's metrics of an iteration, and its samples if a metric is not finite."""
    lost = guard.non_finite(values)
    finite = {metric: value for metric, value in values.items() if metric not in lost}
    log.add_metrics({"step": step, "metrics": finite, "seconds": seconds})
    if lost:
        bar.write(named(name, guard.skipped_update(step, lost), ", "))
        log.add_skipped(
            {
                "step": step,
                "lost": lost,
                "seed": training.configs[name].seed,
                "numbers": finite,
                "drawn": training.drawn(name, step),
            }
        )


def _resumed(
    training: Training, manager: ocp.CheckpointManager, done: int, workdir: Path
) -> Progress:
    """Restore the progress from a checkpoint; fresh progress if `done` is 0.

    Raises:
        InputError: the checkpoint belongs to runs with other random keys.
        RunError: the checkpoint cannot be read.
    """
    state, skipped, lost = training.state, dict.fromkeys(training.configs, 0), []
    losses: list[float] = []
    if done:
        state, record = checkpoints.restore(manager, done, state)
        if record["keys"] != training.numbers():
            raise InputError(
                f"{workdir / CHECKPOINTS} holds runs with other random keys: give the same "
                "seeds and runs, --overwrite to start again, or another folder"
            )
        if message := checkpoints.moved(record, checkpoints.place()):
            say(f"after iteration {done}, {message}", sys.stderr)
        skipped, lost = record["skipped"], list(record["lost"])
        losses = list(record.get("losses", []))
    return Progress(
        step=done,
        state=state,
        active=np.array(sharding.gather(training.context.mesh, state.active)),
        lost=lost,
        tallies={n: guard.Tally(training.shared.guard, skipped[n]) for n in training.configs},
        losses=losses,
    )


def _checkpoint_is_due(shared: Config, progress: Progress) -> bool:
    """Whether a checkpoint is due: at each interval and after the last iteration."""
    last = progress.step == shared.iterations or not progress.active.any()
    return last or progress.step % shared.checkpoints.every == 0


def _save(
    training: Training,
    progress: Progress,
    manager: ocp.CheckpointManager,
    logs: Mapping[str, RunLog],
) -> None:
    """Flush the logs and save a checkpoint.

    Its losses are those since the last interval's end, also if the run was stopped in between: so
    it ends with the best checkpoint of a run that was not.
    """
    for log in logs.values():
        log.flush()
    of_interval = progress.step % training.shared.checkpoints.every == 0
    record: checkpoints.Record = {
        "keys": training.numbers(),
        "configs": {name: dataclasses.asdict(c) for name, c in training.configs.items()},
        "skipped": {name: tally.skipped for name, tally in progress.tallies.items()},
        "lost": list(progress.lost),
        "place": checkpoints.place(),
        "losses": [] if of_interval else list(progress.losses),
    }
    loss = float(np.mean(progress.losses))
    checkpoints.save(manager, progress.step, progress.state, record, loss, of_interval)
    progress.losses = list(record["losses"])
    release()
