"""Erases a concept: makes an adapter, evaluates it and writes a report.

    python -m erase.train --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

EraseAnything trains it at two levels; `--config.method=NAME` has another method make it.
The same command goes on where it was stopped or killed; with `--overwrite` it begins anew.
`--replay STEP` does one iteration again, to see why its numbers left their range.
Several runs train at once where the configuration names them (`each`); each then has a folder of
its own in the workdir, and the checkpoints there are everybody's.
The run's folder holds config.json, irrelevant.json (words for other things, and their source),
sentences.json (the same of sentences that a language model was asked for), metrics.jsonl (a line an
iteration), checkpoints/, adapter/ (pytorch_lora_weights.safetensors and README.md, its model card)
and, after evaluation, evaluation.json and report.html.
"""

import dataclasses
import functools
import importlib.metadata
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from convert.errors import InputError, RunError, exits_cleanly
from convert.lora import write_lora
from erase import (
    card,
    distributed,
    evaluate,
    guard,
    irrelevant,
    loop,
    memory,
    methods,
    report,
    sentences,
    signals,
    stopping,
    summary,
    synonyms,
)
from erase import replay as replays
from erase import words as shown
from erase import workdir as workdirs
from erase.adapters import banks_of, make_adapters
from erase.cases import check_judge
from erase.command import FLAG, begin, configured, define_flag, explains_memory, parse_flags
from erase.config import Config
from erase.language_model import describe
from erase.methods import method_of, start
from erase.model import open_model
from erase.pictures import write
from flux_jax.lora import Adapter

PACKAGE = "erase-anything-jax"


def run(
    runs: Mapping[str, Config],
    workdir: Path,
    *,
    overwrite: bool = False,
    replay: int | None = None,
    command: str = "",
) -> dict[str, Adapter]:
    """Whole runs: prepare, train all at once, write the adapters, evaluate, report.

    Where the folder holds the same runs, they go on from the latest checkpoint.

    Args:
        runs: configurations by name, as `load_runs` gives them.
        workdir: folder of the checkpoints; a run's own has its name in there.
        overwrite: whether to take the place of runs in the folder.
        replay: an iteration of those in the folder that is done again and told of, instead.
        command: how the runs were started, for the reports.

    Returns:
        The adapters, by name; of runs that kept their numbers.

    Raises:
        InputError: a setting does not fit the model, or the folder holds other runs.
        PreemptedError: the system asked for a stop.
        RunError: numbers of a run were lost, or a checkpoint could not be written.
    """
    with signals.listening() as stop:
        return _run(runs, workdir, overwrite, replay, command, stop)


def _run(
    runs: Mapping[str, Config],
    workdir: Path,
    overwrite: bool,
    replay: int | None,
    command: str,
    stop: signals.Stop,
) -> dict[str, Adapter]:
    folders = {name: workdir / name for name in runs}
    settled = {name: synonyms.settle(config) for name, config in runs.items()}
    configs = {name: config for name, (config, _) in settled.items()}
    first = next(iter(configs.values()))
    method = method_of(first)
    if method.exports is None:
        raise InputError(
            f"method = {first.method!r} has no weights to train or to export; `python -m "
            "erase.compare` and `python -m erase.attack` measure it"
        )
    if replay is not None and not method.steps(first):
        raise InputError(f"replay = {replay}: method = {first.method!r} has no iterations")
    descriptions = {
        # Through JSON, so that it compares with what an earlier start wrote.
        name: json.loads(
            json.dumps(dataclasses.asdict(config) | {"command": command, "synonyms_from": source})
        )
        for name, (config, source) in settled.items()
    }
    given = {"workdir": str(workdir), "overwrite": overwrite, "replay": replay, "runs": list(runs)}
    # Which process this is, is said by its command.
    fields = [field for field in descriptions[next(iter(runs))] if field != "command"]
    distributed.agree(given | {f: [own[f] for own in descriptions.values()] for f in fields})
    distributed.from_first(lambda: workdirs.check(workdir, descriptions, overwrite=overwrite))
    for config in configs.values():
        check_judge(config)
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
    plans = {name: methods.plan(configs[name], pipe, words[name]) for name in runs}
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
    for name, folder in folders.items() if replay is None else ():
        write(folder / workdirs.CONFIG, json.dumps(descriptions[name], indent=2) + "\n")
        write(folder / irrelevant.FILE, describe(words[name]))
        _, further = written[name]
        if configs[name].more_prompts:
            write(folder / sentences.FILE, describe(further))
    shown.show(
        {
            name: shown.lines(
                config.concept,
                config.prompts,
                written[name][1].source,
                config.synonyms,
                settled[name][1],
                [word for pool in words[name].pools for word in pool],
                words[name].source,
            )
            for name, config in configs.items()
        }
    )
    prompts = [prompt for planned in plans.values() for prompt in planned.prompts]
    pipe.remember([*prompts, *(case.prompt for case in drawn)], first.bank.batch)
    # The text encoders, larger than all but the transformer, make room for it.
    pipe.release("text_encoder", "text_encoder_2")
    if replay is not None:
        banks = banks_of(configs, pipe, plans)
        replays.show(loop.prepare(configs, pipe, banks, plans), workdir, replay)
        return {}
    adapters = make_adapters(configs, pipe, plans, workdir, stop)
    for name, adapter in adapters.items():
        distributed.from_first(
            functools.partial(write_adapter, adapter, configs[name], folders[name])
        )
    results = {}
    for name in adapters:
        config = configs[name]
        if config.evaluation.pictures:
            results[name] = evaluate.evaluate(pipe, adapters[name], config, folders[name])
        if distributed.first():
            card.of_run(folders[name])
            print(report.write(folders[name]))
    if len(runs) > 1:
        summary.write_summary(workdir, results)
    if lost := [name for name in runs if name not in adapters]:
        raise RunError(guard.given_up(lost, first.guard))
    return adapters


def write_adapter(adapter: Adapter, config: Config, workdir: Path) -> None:
    """Writes `adapter/pytorch_lora_weights.safetensors`, which diffusers loads."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    metadata = {
        "concept": config.concept,
        "base_model": config.model.path,
        "method": method_of(config).title,
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
    runs = configured()
    if given.plan:
        settled = {name: synonyms.settle(config)[0] for name, config in runs.items()}
        for config in settled.values():
            check_judge(config)
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
            overwrite=given.overwrite,
            replay=given.replay,
            command=shlex.join(["python", "-m", "erase.train", *sys.argv[1:]]),
        )


def define_flags() -> None:
    """Declares the command's flags; a function, so that importing this module declares none."""
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_bool("plan", False, "Only tell how much memory of each device the run needs.")
    flags.DEFINE_bool("overwrite", False, "Take the place of the run in the folder.")
    flags.DEFINE_integer("replay", None, "Only do this iteration again, and tell.", lower_bound=1)
    distributed.define_flags()
    flags.adopt_module_key_flags(distributed)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
