"""Training: lower and upper updates in turn, for all runs of a command at once.

Iteration i draws from a run's key folded with i, so a resumed run goes on as it would have gone,
and a run among others as it would have gone alone, on however many devices: bit for bit on as many
cores of a CPU, up to rounding on others.
Axis letter: R runs.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from erase.config.schema import Config
from erase.data.bank import Bank, stack_banks
from erase.data.plan import Plan
from erase.evaluation import early_stop
from erase.methods import method_of
from erase.methods.base import Step
from erase.methods.configured import context_of, start
from erase.methods.parts.compiled import StepContext
from erase.methods.parts.samples import Counts
from erase.methods.parts.step import State
from erase.model.open import share
from erase.runtime import processes
from erase.runtime.files import write
from erase.runtime.signals import Stop
from erase.runtime.watchdog import Watchdog
from erase.training import checkpoints, guard
from flux_jax import progress, xla_flags
from flux_jax import sharding as meshes
from flux_jax.errors import InputError, PreemptedError, RunError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Training:
    """All that the iterations of some runs need, and where they begin.

    Attributes:
        configs: of the runs, by name.
        context: static arguments of the training step.
        state: where fresh runs start, [R, ...].
        params: the frozen transformer's parameters.
        bank: what updates draw from.
        keys: random keys [R].
        plans: what the banks were made of, by name; may be empty.
    """

    configs: Mapping[str, Config]
    context: StepContext[Any]
    state: State
    params: PyTree
    bank: Bank
    keys: Key[Array, "R"]
    plans: Mapping[str, Plan]

    @property
    def config(self) -> Config:
        """That of the first run, for what all share."""
        return next(iter(self.configs.values()))

    @property
    def steps(self) -> Mapping[str, Step]:
        """The updates of an iteration, in their order."""
        return method_of(self.config).steps(self.config)

    def keys_at(self, step: int, keys: Key[Array, "R"] | None = None) -> dict[str, Key[Array, "R"]]:
        """Each run's key for each update of an iteration; by default all runs' [R]."""
        every = keys_of(self.keys if keys is None else keys, step, max(2, len(self.steps)))
        return {name: every[:, index] for index, name in enumerate(self.steps)}

    def iterate(self, state: State, step: int) -> tuple[State, dict[str, dict[str, np.ndarray]]]:
        """An iteration: the next state (the old one is donated), and each update's numbers [R]."""
        numbers, keys = {}, self.keys_at(step)
        for name, each in self.steps.items():
            given = (state, self.params, self.bank, keys[name])
            state, numbers[name] = each.update(*given, context=self.context)
        return state, jax.device_get(numbers)

    def adapter(self, name: str, state: State) -> Adapter:
        """A run's adapter in a state, on the host: whatever devices draw with it can take it."""
        row = list(self.configs).index(name)
        lora = meshes.gather(self.context.mesh, jax.tree.map(lambda leaf: leaf[row], state.lora))
        return Adapter(jax.device_get(lora), self.context.alpha)

    def numbers(self) -> list[list[int]]:
        """What the random keys consist of, for JSON."""
        return np.asarray(meshes.gather(self.context.mesh, jax.random.key_data(self.keys))).tolist()

    def drawn(self, name: str, step: int) -> dict[str, Any]:
        """What a run drew in an iteration: prompts (or rows of its bank) and timesteps."""
        row = list(self.configs).index(name)
        own = jax.random.wrap_key_data(jnp.asarray(self.numbers()[row : row + 1], jnp.uint32))
        keys, bank = self.keys_at(step, own), self.bank
        times = np.asarray(bank.times)
        pictures = 0 if bank.pictures is None else bank.pictures.shape[1]
        counts = Counts(bank.trajectories.shape[1], pictures, jnp.asarray(times))
        sentences = meshes.gather(self.context.mesh, bank.trajectory_sentences)[row]
        plan, told = self.plans.get(name), {}
        for update, each in self.steps.items():
            drawn = each.drawn(keys[update][0], self.context, counts)
            for part, (kind, (rows, steps)) in drawn.items():
                kept = kind == "pictures"
                index = np.asarray(rows if kept else sentences[rows]).tolist()
                if plan:
                    shown = plan.shown if kept else [g.prompts[plan.drawn] for g in plan.groups]
                    index = [shown[i] for i in index]
                times_drawn = times[np.asarray(steps)].round(4).tolist()
                told[part or update] = {"prompts": index, "t": times_drawn}
        return told


@functools.partial(jax.jit, static_argnums=2)
def keys_of(
    keys: Key[Array, "R"], step: int | Int[Array, ""], count: int
) -> Key[Array, "R {count}"]:
    """Keys [R, count] for so many updates of each run in an iteration."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step), count))(keys)


def prepare(
    configs: Mapping[str, Config],
    pipe: Pipeline,
    banks: Mapping[str, Bank],
    plans: Mapping[str, Plan] | None = None,
) -> Training:
    """Puts fresh adapters, banks and keys onto the devices.

    Args:
        configs: of the runs, by name.
        pipe: the frozen model, of which the updates need the transformer alone.
        banks: of the runs.
        plans: what the banks were made of, for messages.
    """
    first = next(iter(configs.values()))
    pipe = share(pipe, first, len(configs))
    context = context_of(first, pipe.transformer, pipe.mesh)
    keys = [jax.random.split(jax.random.key(config.seed)) for config in configs.values()]
    params = pipe.params["transformer"]
    states = [start(key[0], params, first) for key in keys]
    # Numbers can be sent to other processes' devices, keys cannot.
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


def learn(
    configs: Mapping[str, Config],
    pipe: Pipeline,
    banks: Mapping[str, Bank],
    workdir: Path,
    plans: Mapping[str, Plan] | None = None,
    stop: Stop | None = None,
) -> dict[str, Adapter]:
    """Trains all runs at once, from fresh adapters or the latest whole checkpoint.

    Args:
        configs: of the runs, by name.
        pipe: the frozen model.
        banks: of the runs.
        workdir: folder of the checkpoints, with the runs' folders in it.
        plans: what the banks were made of, for messages.
        stop: whether the system asks for a stop.

    Returns:
        The adapters, by name; a run whose numbers were lost has none.

    Raises:
        PreemptedError: the system asked for it.
        RunError: no run kept its numbers, or a checkpoint could not be written.
    """
    training = prepare(configs, pipe, banks, plans)

    def erased(name: str, state: State) -> bool:
        return early_stop.erased(pipe, training.adapter(name, state), configs[name])

    state, lost = train(training, workdir, erased, stop or Stop())
    if set(lost) == set(configs):
        raise RunError(guard.given_up(lost, training.config.guard))
    return {name: training.adapter(name, state) for name in configs if name not in lost}


def train(
    training: Training, workdir: Path, erased: Callable[[str, State], bool], stop: Stop
) -> tuple[State, list[str]]:
    """Alternates lower and upper updates (the paper's Algorithm 1) from the latest checkpoint on.

    Runs that have erased enough stop by themselves (`early_stop`), and so do those whose updates
    keep being left out.

    Args:
        training: what the iterations need.
        workdir: folder of the checkpoints, with the runs' folders in it.
        erased: whether the run of a name has erased enough, in a state.
        stop: whether the system asks for a stop.

    Returns:
        The last state, and the names of the runs whose numbers were lost.

    Raises:
        PreemptedError: the system asked for it.
        RunError: a checkpoint could not be written.
    """
    config, configs, context = training.config, training.configs, training.context
    title = config.concept if len(configs) == 1 else f"{len(configs)} concepts"
    done = processes.from_first(lambda: checkpoints.usable(workdir), int)
    watchdog = Watchdog(config.guard)
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoints.opened(workdir, config.checkpoints))
        state, record = training.state, _record(training, {}, [])
        if done:
            state, record = checkpoints.restore(manager, done, state)
            _same_keys(record, training, workdir)
            if told := checkpoints.moved(record, checkpoints.place()):
                print(f"after iteration {done}, {told}", file=sys.stderr)
        tallies = {name: guard.Tally(config.guard, record["skipped"][name]) for name in configs}
        lost, names = list(record["lost"]), list(configs)
        metrics = {name: _log(stack, workdir / name / METRICS, done) for name in names}
        for name in names:
            _keep(workdir / name / guard.FILE, done)
        bar = progress.bar(total=config.iterations, initial=done, desc=f"erasing {title}")
        stack.enter_context(bar)
        stack.enter_context(xla_flags.told(bar))
        stack.enter_context(watchdog.watching())
        stack.enter_context(stop.deferred())
        active, total = np.array(meshes.gather(context.mesh, state.active)), []
        step, stopped = done, False
        for step in range(done + 1, config.iterations + 1):
            if not active.any():
                break
            began, before = time.perf_counter(), active.copy()
            with watchdog.iteration(step):
                state, numbers = training.iterate(state, step)
            seconds = round(time.perf_counter() - began, 4)
            every = {name: each for found in numbers.values() for name, each in found.items()}
            for index in np.flatnonzero(active):
                name = names[index]
                values = {metric: float(each[index]) for metric, each in every.items()}
                kept = {metric: values[metric] for metric in values if np.isfinite(values[metric])}
                print(json.dumps({"step": step, **kept, "seconds": seconds}), file=metrics[name])
                if gone := guard.lost(values):
                    bar.write(f"{name and f'{name}, '}{guard.explained(step, gone)}")
                    line = {"step": step, "lost": gone, "seed": configs[name].seed}
                    line |= {"numbers": kept, "drawn": training.drawn(name, step)}
                    _add(workdir / name / guard.FILE, json.dumps(line))
                if tallies[name].count(values):
                    active[index] = False
                    lost.append(name)
                for told in tallies[name].diverging() if step % guard.RECENT == 0 else ():
                    bar.write(f"{name and f'{name}, '}iteration {step}: {told}: it may diverge")
            total.append(_weighted(config, every, active))
            _show(bar, every, active)
            last = step == config.iterations
            if config.early_stop.every and step % config.early_stop.every == 0 and not last:
                for index in np.flatnonzero(active):
                    active[index] = not erased(name := names[index], state)
                    if not active[index]:
                        bar.write(f"{name and f'{name}: '}erased after {step} iterations")
            if (active != before).any():
                state = state.replace(active=context.divided(jnp.asarray(active)))
            stopped = processes.any_of(stop.asked is not None)
            if step % config.checkpoints.every == 0 or last or stopped or not active.any():
                for log in metrics.values():
                    log.flush()
                record = _record(training, tallies, lost)
                checkpoints.save(manager, step, state, record, float(np.mean(total)))
                total = []
            if stopped:
                break
        if config.checkpoints.adapter == "best" and not stopped:
            manager.wait_until_finished()
            state, _ = checkpoints.restore(manager, checkpoints.best(manager), state)
    if stopped:
        raise PreemptedError(
            f"{stop.asked or 'another process'}: stopped and saved after iteration {step} of "
            f"{config.iterations}; the same command goes on"
        )
    return state, lost


def _record(training: Training, tallies: Mapping[str, guard.Tally], lost: Sequence[str]) -> Any:
    """What a checkpoint holds besides the state."""
    return {
        "keys": training.numbers(),
        "configs": {name: dataclasses.asdict(c) for name, c in training.configs.items()},
        "skipped": {n: tallies[n].skipped if n in tallies else 0 for n in training.configs},
        "lost": list(lost),
        "place": checkpoints.place(),
    }


def _same_keys(record: Any, training: Training, workdir: Path) -> None:
    """Makes sure that a checkpoint's iterations and the next ones are of one sequence.

    Raises:
        InputError: they are not.
    """
    if record["keys"] != training.numbers():
        raise InputError(
            f"{workdir / checkpoints.FOLDER} holds runs with other random keys: give the same "
            "seeds and runs, --overwrite to begin anew, or another folder"
        )


def _log(stack: contextlib.ExitStack, path: Path, done: int) -> Any:
    """A file of lines open for more, without those of iterations that no checkpoint holds."""
    _keep(path, done)
    return stack.enter_context((path if processes.first() else Path(os.devnull)).open("a"))


def _keep(path: Path, done: int) -> None:
    """Drops the lines of iterations that no checkpoint holds."""
    if processes.first() and path.is_file():
        write(path, "".join(_until(path.read_text().splitlines(keepends=True), done)))


def _add(path: Path, line: str) -> None:
    if processes.first():
        with path.open("a") as file:
            print(line, file=file)


def _until(lines: Sequence[str], done: int) -> Iterator[str]:
    """The lines up to an iteration; the last one may have been cut off."""
    for line in lines:
        try:
            if json.loads(line)["step"] > done:
                return
        except (ValueError, KeyError, TypeError):
            return
        yield line


def _weighted(config: Config, every: Mapping[str, np.ndarray], active: np.ndarray) -> float:
    """The weighted losses' sum, mean over the runs that go on; infinite where none is finite."""
    weights = method_of(config).weights(config)
    sums = sum(weights[name] * each for name, each in every.items() if name in weights)
    finite = np.asarray(sums)[active & np.isfinite(np.asarray(sums))]
    return float(finite.mean()) if finite.size else math.inf


def _show(bar: Any, every: Mapping[str, np.ndarray], active: np.ndarray) -> None:
    """Losses beside the progress bar, means over the runs that go on."""
    shown = {n: f"{each[active].mean():.3g}" for n, each in every.items() if active.any()}
    bar.set_postfix({n: mean for n, mean in shown.items() if "gradient" not in n}, refresh=False)
    bar.update()
