"""Whole runs: prepare, train all at once, write the adapters, evaluate, report."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import jax

from erase.config.schema import Config
from erase.data.words import irrelevant, sentences
from erase.data.words.language_model import describe
from erase.evaluation import early_stop, evaluate, summary
from erase.evaluation.eval_prompts import check_judge
from erase.methods import method_of
from erase.methods.configured import irrelevant_words, plan_of, start, with_synonyms
from erase.model.open import open_model
from erase.report import card, report
from erase.report import words as shown
from erase.runs import RunConfig
from erase.runtime import processes, signals
from erase.runtime.files import write
from erase.training import guard, loop
from erase.training import replay as replays
from erase.training import resume_check as workdirs
from erase.training.export import write_adapter
from erase.training.make_adapters import banks_of, make_adapters
from flux_jax.errors import InputError, RunError
from flux_jax.lora import Adapter


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
    settled = {name: with_synonyms(config) for name, config in runs.items()}
    configs = {name: config for name, (config, _) in settled.items()}
    first = next(iter(configs.values()))
    method = method_of(first)
    if method.exports is None:
        raise InputError(
            f"method = {first.method!r} has no weights to train or to export; `python -m "
            "erase compare` and `python -m erase attack` measure it"
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
    processes.agree(given | {f: [own[f] for own in descriptions.values()] for f in fields})
    processes.from_first(lambda: workdirs.check(workdir, descriptions, overwrite=overwrite))
    for config in configs.values():
        check_judge(config)
    pipe = open_model(first, len(runs))
    shape = " x ".join(f"{axis} {size}" for axis, size in pipe.mesh.shape.items())
    print(f"{pipe.mesh.size} of {jax.device_count()} devices work: {shape}")
    written = processes.from_first(
        lambda: {name: sentences.settle(configs[name], folders[name]) for name in runs},
        dict[str, tuple[RunConfig, sentences.Sentences]],
    )
    configs = {name: config for name, (config, _) in written.items()}
    words = processes.from_first(
        lambda: {name: irrelevant_words(configs[name], folders[name]) for name in runs},
        dict[str, irrelevant.Words],
    )
    plans = {name: plan_of(configs[name], pipe, words[name]) for name in runs}
    drawn = []
    for config in configs.values():
        if config.evaluation.pictures:
            # What evaluation could not use is told before training, not after.
            drawn += evaluate.plan(config, pipe)[1]
        if config.early_stop.every:
            drawn += early_stop.plan(config, pipe)[1]
    # A target that the model lacks is told before anything is written.
    jax.eval_shape(lambda: start(jax.random.key(0), pipe.shapes, first))
    if overwrite:
        processes.from_first(lambda: workdirs.clear(workdir, runs))
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
        processes.from_first(
            functools.partial(write_adapter, adapter, configs[name], folders[name])
        )
    results = {}
    for name in adapters:
        config = configs[name]
        if config.evaluation.pictures:
            results[name] = evaluate.evaluate(pipe, adapters[name], config, folders[name])
        if processes.first():
            card.of_run(folders[name])
            print(report.write(folders[name]))
    if len(runs) > 1:
        summary.write_summary(workdir, results)
    if lost := [name for name in runs if name not in adapters]:
        raise RunError(guard.given_up(lost, first.guard))
    return adapters
