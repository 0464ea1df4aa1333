"""Erases a concept: trains an adapter at two levels, evaluates it and writes a report.

    python -m erase.train --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

With `--resume` it goes on from the run's latest checkpoint; with `--overwrite` it begins anew.
Several runs train at once where the configuration names them (`each`); each then has a folder of
its own in the workdir, and the checkpoints there are everybody's.
The run's folder holds config.json, irrelevant.json (words for other things, and their source),
sentences.json (the same of sentences that a language model was asked for), metrics.jsonl (a line an
iteration), checkpoints/, adapter/ (pytorch_lora_weights.safetensors and README.md, its model card)
and, after evaluation, evaluation.json and report.html.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import PRNGKeyArray, PyTree

from convert import progress
from convert.errors import InputError, RunError, exits_cleanly
from convert.lora import write_lora
from erase import (
    bank,
    card,
    checkpoints,
    distributed,
    evaluate,
    irrelevant,
    memory,
    report,
    sentences,
    stopping,
    summary,
    synonyms,
)
from erase import workdir as workdirs
from erase.bank import Bank
from erase.command import FLAG, begin, define_flag, explains_memory, parse_flags
from erase.config import Config
from erase.language_model import describe
from erase.model import open_model, share
from erase.pictures import write
from erase.runs import load_runs
from erase.setup import Setup
from erase.updates import State, joint_update, lower_update, start, upper_update
from flux_jax import mesh as meshes
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

PACKAGE = "erase-anything-jax"
METRICS = "metrics.jsonl"


def run(
    runs: Mapping[str, Config],
    workdir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Adapter]:
    """Whole runs: prepare, train all at once, write the adapters, evaluate, report.

    Args:
        runs: configurations by name, as `load_runs` gives them.
        workdir: folder of the checkpoints; a run's own has its name in there.
        resume: whether to go on from the latest checkpoint, if there is one.
        overwrite: whether to take the place of runs in the folder.
        command: how the runs were started, for the reports.

    Returns:
        The adapters, by name.

    Raises:
        InputError: a setting does not fit the model, or the folder holds other runs.
    """
    folders = {name: workdir / name for name in runs}
    settled = {name: synonyms.settle(config) for name, config in runs.items()}
    configs = {name: config for name, (config, _) in settled.items()}
    first = next(iter(configs.values()))
    descriptions = {
        # Through JSON, so that it compares with what an earlier start wrote.
        name: json.loads(
            json.dumps(dataclasses.asdict(config) | {"command": command, "synonyms_from": source})
        )
        for name, (config, source) in settled.items()
    }
    given = {"workdir": str(workdir), "resume": resume, "overwrite": overwrite, "runs": list(runs)}
    # Which process this is, is said by its command.
    fields = [field for field in descriptions[next(iter(runs))] if field != "command"]
    distributed.agree(given | {f: [own[f] for own in descriptions.values()] for f in fields})
    distributed.from_first(
        lambda: workdirs.check(workdir, descriptions, resume=resume, overwrite=overwrite)
    )
    pipe = open_model(first, len(runs))
    shape = " x ".join(f"{axis} {size}" for axis, size in pipe.mesh.shape.items())
    print(f"{pipe.mesh.size} of {jax.device_count()} devices work: {shape}")
    written = distributed.from_first(
        lambda: {name: sentences.settle(configs[name], folders[name]) for name in runs},
        dict[str, tuple[Config, sentences.Sentences]],
    )
    configs = {name: config for name, (config, _) in written.items()}
    words = distributed.from_first(
        lambda: {name: irrelevant.gather(configs[name], folders[name]) for name in runs},
        dict[str, irrelevant.Words],
    )
    plans = {name: bank.plan(configs[name], pipe, words[name].pools) for name in runs}
    drawn = []
    for config in configs.values():
        if config.evaluation.pictures:
            # What evaluation could not use is told before training, not after.
            drawn += evaluate.plan(config, pipe)[1]
        if config.early_stop.every:
            drawn += stopping.plan(config, pipe)[1]
    # A target that the model lacks is told before anything is written.
    jax.eval_shape(lambda: start(jax.random.key(0), pipe.shapes, first))
    if overwrite:
        distributed.from_first(lambda: workdirs.clear(workdir, runs))
    for name, folder in folders.items():
        write(folder / workdirs.CONFIG, json.dumps(descriptions[name], indent=2) + "\n")
        write(folder / irrelevant.FILE, describe(words[name]))
        _, further = written[name]
        if configs[name].more_prompts:
            write(folder / sentences.FILE, describe(further))
        print(
            f"{name and f'{name}: '}sentences come from {further.source}, "
            f"synonyms from {settled[name][1]}, irrelevant words from {words[name].source}"
        )
    prompts = [prompt for planned in plans.values() for prompt in planned.prompts]
    pipe.remember([*prompts, *(case.prompt for case in drawn)], first.bank.batch)
    # The text encoders, larger than all but the transformer, make room for it.
    pipe.release("text_encoder", "text_encoder_2")
    banks = [bank.make(configs[name], pipe, plans[name]) for name in runs]
    adapters = learn(configs, pipe, banks, workdir)
    for name, adapter in adapters.items():
        distributed.from_first(
            functools.partial(write_adapter, adapter, configs[name], folders[name])
        )
    results = {}
    for name, config in configs.items():
        if config.evaluation.pictures:
            results[name] = evaluate.evaluate(pipe, adapters[name], config, folders[name])
        if distributed.first():
            card.of_run(folders[name])
            print(report.write(folders[name]))
    if len(runs) > 1:
        summary.write_summary(workdir, results)
    return adapters


def learn(
    configs: Mapping[str, Config], pipe: Pipeline, banks: Sequence[Bank], workdir: Path
) -> dict[str, Adapter]:
    """Trains all runs at once, from fresh adapters or the latest checkpoint.

    Args:
        configs: of the runs, by name.
        pipe: the frozen model, of which the updates need the transformer alone.
        banks: of the runs.
        workdir: folder of the checkpoints, with the runs' folders in it.

    Raises:
        RunError: a run diverged.
    """
    first = next(iter(configs.values()))
    pipe = share(pipe, first, len(configs))
    setup = Setup.of(first, pipe.transformer, pipe.mesh)
    keys = [jax.random.split(jax.random.key(config.seed)) for config in configs.values()]
    params = pipe.params["transformer"]
    states = [start(key[0], params, first) for key in keys]
    prepared = setup.placed(bank.stack(banks))
    state = setup.divided(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    # Numbers can be sent to other processes' devices, keys cannot.
    numbers = setup.divided(jnp.stack([jax.random.key_data(key[1]) for key in keys]))
    train_keys = jax.random.wrap_key_data(numbers)

    def erased(name: str, state: State) -> bool:
        return stopping.erased(pipe, adapter_of(name, state), configs[name])

    def adapter_of(name: str, state: State) -> Adapter:
        row = list(configs).index(name)
        lora = meshes.gather(setup.mesh, jax.tree.map(lambda leaf: leaf[row], state.lora))
        return Adapter(lora, setup.alpha)  # pyright: ignore[reportCallIssue]

    state = train(configs, setup, workdir, state, params, prepared, train_keys, erased)
    return {name: adapter_of(name, state) for name in configs}


def train(
    configs: Mapping[str, Config],
    setup: Setup,
    workdir: Path,
    state: State,
    params: PyTree,
    prepared: Bank,
    keys: PRNGKeyArray,
    erased: Callable[[str, State], bool],
) -> State:
    """Alternates lower and upper updates (the paper's Algorithm 1) from the latest checkpoint on.

    Iteration i draws from a run's key folded with i, so a resumed run goes on as it would have
    gone, and a run among others as it would have gone alone. Runs that have erased enough stop by
    themselves (`early_stop`).
    Axis letter: R runs.

    Args:
        configs: of the runs, by name.
        setup: what is compiled into the updates.
        workdir: folder of the checkpoints, with the runs' folders in it.
        state: where fresh runs start, [R, ...].
        params: the frozen transformer's parameters.
        prepared: what updates draw from.
        keys: random keys [R].
        erased: whether the run of a name has erased enough, in a state.

    Raises:
        RunError: a run diverged.
    """
    config = next(iter(configs.values()))
    title = config.concept if len(configs) == 1 else f"{len(configs)} concepts"
    updates = [joint_update]
    if config.alternation == "bilevel":
        preserves = config.upper.lora or config.upper.rsc
        updates = [lower_update, upper_update] if preserves else [lower_update]
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoints.open_manager(workdir))
        done, state = checkpoints.restore(manager, state)
        for name in configs:
            keep_lines(workdir / name / METRICS, done)
        logs = [
            stack.enter_context(
                (workdir / name / METRICS if distributed.first() else Path(os.devnull)).open("a")
            )
            for name in configs
        ]
        bar = progress.bar(total=config.iterations, initial=done, desc=f"erasing {title}")
        stack.enter_context(bar)
        names, active = list(configs), np.array(meshes.gather(setup.mesh, state.active))
        for step in range(done + 1, config.iterations + 1):
            if not active.any():
                break
            began = time.perf_counter()
            drawn = _keys(keys, step)
            metrics: dict[str, Any] = {}
            for update, key in zip(updates, drawn, strict=False):
                state, more = update(state, params, prepared, key, setup=setup)
                metrics |= more
            metrics = jax.device_get(metrics)
            seconds = round(time.perf_counter() - began, 4)
            for index in np.flatnonzero(active):
                values = {metric: float(each[index]) for metric, each in metrics.items()}
                check_finite(step, names[index], values)
                line = json.dumps({"step": step, **values, "seconds": seconds})
                print(line, file=logs[index])
            means = {metric: f"{each[active].mean():.3g}" for metric, each in metrics.items()}
            shown = {metric: mean for metric, mean in means.items() if "gradient" not in metric}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            last = step == config.iterations
            if config.early_stop.every and step % config.early_stop.every == 0 and not last:
                for index in np.flatnonzero(active):
                    active[index] = not erased(name := names[index], state)
                    if not active[index]:
                        bar.write(f"{name and f'{name}: '}erased after {step} iterations")
                state = state.replace(active=setup.divided(jnp.asarray(active)))  # pyright: ignore
            if step % config.checkpoint_every == 0 or last or not active.any():
                for log in logs:
                    log.flush()
                checkpoints.save(manager, step, state)
        manager.wait_until_finished()
    return state


@jax.jit
def _keys(keys: PRNGKeyArray, step: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Two keys for each run's iteration."""
    both = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step)))(keys)
    return both[:, 0], both[:, 1]


def keep_lines(path: Path, count: int) -> None:
    """Drops the lines of iterations that the checkpoint does not hold."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    write(path, "".join(lines[:count]))


def check_finite(step: int, name: str, values: dict[str, float]) -> None:
    """Stops where a run has diverged.

    Raises:
        RunError: a loss or a gradient is not a number.
    """
    lost = [name for name, value in values.items() if not math.isfinite(value)]
    if lost:
        raise RunError(
            f"{name and f'{name}, '}iteration {step}: {', '.join(lost)} left the range of numbers; "
            "reduce lower.learning_rate or upper.learning_rate"
        )


def write_adapter(adapter: Adapter, config: Config, workdir: Path) -> None:
    """Writes `adapter/pytorch_lora_weights.safetensors`, which diffusers loads."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    metadata = {
        "concept": config.concept,
        "base_model": config.model.path,
        "method": "EraseAnything",
        "version": version,
        "settings": json.dumps(dataclasses.asdict(config)),
    }
    lora = jax.tree.map(np.asarray, adapter.lora)
    write_lora(workdir / "adapter", lora, adapter.alpha, metadata)


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    distributed.initialise(given)
    runs = load_runs(given[FLAG].value)
    if given.plan:
        settled = {name: synonyms.settle(config)[0] for name, config in runs.items()}
        with distributed.first_speaks():
            pipe = open_model(next(iter(settled.values())), len(settled))
            fits = memory.show(settled, pipe)
        sys.exit(0 if fits else 1)
    if given.workdir is None:
        raise InputError("workdir is missing: name the run's folder, --workdir runs/NAME")
    with distributed.first_speaks(), explains_memory():
        run(
            runs,
            Path(given.workdir),
            resume=given.resume,
            overwrite=given.overwrite,
            command=shlex.join(["python", "-m", "erase.train", *sys.argv[1:]]),
        )


def define_flags() -> None:
    """Declares the command's flags; a function, so that importing this module declares none."""
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_bool("plan", False, "Only tell how much memory of each device the run needs.")
    flags.DEFINE_bool("resume", False, "Go on from the folder's latest checkpoint.")
    flags.DEFINE_bool("overwrite", False, "Take the place of the run in the folder.")
    distributed.define_flags()
    flags.adopt_module_key_flags(distributed)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
