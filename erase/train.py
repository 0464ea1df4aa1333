"""Erases a concept: trains an adapter at two levels, evaluates it and writes a report.

    python -m erase.train --config configs/emoji_soccer_ball.py --workdir RUN [--resume]

The run's folder holds config.json, irrelevant.json (words for other things, and their source),
metrics.jsonl (a line an iteration), checkpoints/, adapter/pytorch_lora_weights.safetensors and,
after evaluation, evaluation.json and report.html.
"""

import dataclasses
import importlib.metadata
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jaxtyping import PRNGKeyArray, PyTree
from tqdm import tqdm

from convert.errors import InputError, exits_cleanly
from convert.lora import write_lora
from erase import bank, checkpoints, evaluate, irrelevant, report, synonyms
from erase.bank import Bank
from erase.command import FLAG, begin, define_flag, parse_flags
from erase.config import Config, load_config
from erase.pictures import write
from erase.updates import Setup, State, lower_update, start, upper_update
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline, load

PACKAGE = "erase-anything-jax"
METRICS = "metrics.jsonl"
# What a resumed run may change: how far it goes, what follows, how it was started.
FREE = ("iterations", "checkpoint_every", "evaluation", "command", "synonyms_from")


def run(config: Config, workdir: Path, *, resume: bool = False, command: str = "") -> Adapter:
    """A whole run: prepare, train, write the adapter, evaluate, report.

    Args:
        config: the run's configuration.
        workdir: the run's folder; made once everything is known to be usable.
        resume: whether to go on from the latest checkpoint, if there is one.
        command: how the run was started, for the report.

    Raises:
        InputError: a setting does not fit the model, or the folder holds another run.
    """
    config, source = synonyms.settle(config)
    # Through JSON, so that it compares with what an earlier start wrote.
    description = json.loads(
        json.dumps(dataclasses.asdict(config) | {"command": command, "synonyms_from": source})
    )
    check_folder(workdir, description, resume)
    pipe = open_model(config)
    words = irrelevant.gather(config, workdir)
    planned = bank.plan(config, pipe, words.pools)
    if config.evaluation.pictures:
        # What evaluation could not use is told before training, not after.
        evaluate.plan(config, pipe)
    setup = Setup.of(config, pipe.transformer)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    state = start(init_key, pipe.params["transformer"], config)
    write(workdir / "config.json", json.dumps(description, indent=2) + "\n")
    write(workdir / irrelevant.FILE, irrelevant.describe(words))
    print(f"synonyms come from {source}, irrelevant words from {words.source}")

    prepared = setup.replicated(bank.make(config, pipe, planned))
    # The text encoders, larger than all but the transformer, make room on the device.
    pipe = with_encoders(pipe, jax.device_get)
    params = setup.replicated(pipe.params["transformer"])
    state = train(config, setup, workdir, setup.replicated(state), params, prepared, train_key)

    adapter = Adapter(state.lora, setup.alpha)  # pyright: ignore[reportCallIssue]
    write_adapter(adapter, config, workdir)
    if config.evaluation.pictures:
        evaluate.evaluate(with_encoders(pipe, jax.device_put), adapter, config, workdir)
    print(report.write(workdir))
    return adapter


def check_folder(workdir: Path, description: dict[str, Any], resume: bool) -> None:
    """Makes sure that no other run is lost or mixed up.

    Raises:
        InputError: the folder holds a run that is not to be resumed, or one of other settings.
    """
    if not checkpoints.has_checkpoints(workdir):
        return
    if not resume:
        raise InputError(
            f"workdir = {str(workdir)!r} holds a run already: "
            "give --resume to go on with it, or another folder"
        )
    path = workdir / "config.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    names = [n for n in description if n not in FREE and earlier.get(n) != description[n]]
    if names:
        raise InputError(
            f"workdir = {str(workdir)!r} holds a run with another "
            f"{', '.join(names)}: give the same configuration, or another folder"
        )


def open_model(config: Config) -> Pipeline:
    """Loads the frozen model as the configuration wants it.

    Raises:
        InputError: the folder cannot be used, or text_tokens is over the tokenizer's limit.
    """
    pipe = load(config.model, config.dtype)
    if config.text_tokens is not None:
        limit = pipe.tokenizer_2.model_max_length
        if config.text_tokens > limit:
            raise InputError(f"text_tokens = {config.text_tokens} is over the limit of {limit}")
        pipe.tokenizer_2.model_max_length = config.text_tokens
    return pipe


def with_encoders(pipe: Pipeline, move: Callable[[PyTree], PyTree]) -> Pipeline:
    """The pipeline with its text encoders' parameters moved to the host or to the device."""
    moved = {name: move(pipe.params[name]) for name in ("text_encoder", "text_encoder_2")}
    return dataclasses.replace(pipe, params={**pipe.params, **moved})


def train(
    config: Config,
    setup: Setup,
    workdir: Path,
    state: State,
    params: PyTree,
    prepared: Bank,
    key: PRNGKeyArray,
) -> State:
    """Alternates lower and upper updates (the paper's Algorithm 1) from the latest checkpoint on.

    Iteration i draws from `key` folded with i, so a resumed run goes on as it would have gone.

    Args:
        config: the run's configuration.
        setup: what is compiled into the updates.
        workdir: the run's folder.
        state: where a fresh run starts.
        params: the frozen transformer's parameters.
        prepared: what updates draw from.
        key: random key.

    Raises:
        InputError: training diverged.
    """
    preserves = config.upper.lora or config.upper.rsc
    with checkpoints.open_manager(workdir) as manager:
        done, state = checkpoints.restore(manager, state)
        keep_lines(workdir / METRICS, done)
        bar = tqdm(
            total=config.iterations, initial=done, desc=f"erasing {config.concept}", unit="it"
        )
        with bar, (workdir / METRICS).open("a") as log:
            for step in range(done + 1, config.iterations + 1):
                began = time.perf_counter()
                lower_key, upper_key = jax.random.split(jax.random.fold_in(key, step))
                state, metrics = lower_update(state, params, prepared, lower_key, setup=setup)
                if preserves:
                    state, more = upper_update(state, params, prepared, upper_key, setup=setup)
                    metrics |= more
                values = {name: float(value) for name, value in metrics.items()}
                seconds = round(time.perf_counter() - began, 4)
                check_finite(step, values)
                print(json.dumps({"step": step, **values, "seconds": seconds}), file=log)
                shown = {n: f"{v:.3g}" for n, v in values.items() if not n.endswith("gradient")}
                bar.set_postfix(shown, refresh=False)
                bar.update()
                if step % config.checkpoint_every == 0 or step == config.iterations:
                    log.flush()
                    checkpoints.save(manager, step, state)
        manager.wait_until_finished()
    return state


def keep_lines(path: Path, count: int) -> None:
    """Drops the lines of iterations that the checkpoint does not hold."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    write(path, "".join(lines[:count]))


def check_finite(step: int, values: dict[str, float]) -> None:
    """Stops a run that has diverged.

    Raises:
        InputError: a loss or a gradient is not a number.
    """
    lost = [name for name, value in values.items() if not math.isfinite(value)]
    if lost:
        raise InputError(
            f"iteration {step}: {', '.join(lost)} left the range of numbers; "
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
        "base_model": config.model,
        "method": "EraseAnything",
        "version": version,
    }
    lora = jax.tree.map(np.asarray, adapter.lora)
    write_lora(workdir / "adapter", lora, adapter.alpha, metadata)


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    run(
        load_config(given[FLAG].value),
        Path(given.workdir),
        resume=given.resume,
        command=shlex.join(["python", "-m", "erase.train", *sys.argv[1:]]),
    )


def define_flags() -> None:
    """Declares the command's flags; a function, so that importing this module declares none."""
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    flags.DEFINE_bool("resume", False, "Go on from the folder's latest checkpoint.")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
