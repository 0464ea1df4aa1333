"""Complete runs: prepare, train all at once, write the adapters, evaluate and report."""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from erase.config.schema import Config
from erase.data.words.language_model import describe
from erase.evaluation import early_stop, evaluate, summary
from erase.evaluation.eval_prompts import check_judge
from erase.methods import method_of
from erase.methods.planning.configured import start
from erase.model import digest
from erase.model.adapters import read_adapter
from erase.model.open import open_model
from erase.report import card, report, words
from erase.runtime import finished, lock, processes, run_folder, signals
from erase.runtime import overwrite as overwriting
from erase.runtime.files import write
from erase.runtime.results import RunRecord
from erase.training import guard, loop, replay, resume_check
from erase.training.export import write_adapter
from erase.training.make_adapters import banks_of, make_adapters
from erase.training.prepare import (
    PreparedRun,
    ResolvedRun,
    configs_of,
    plans_of,
    prepare,
    resolve_runs,
    sample_set,
    shared_settings,
)
from erase.watch import serving
from erase.watch.samples import with_samples
from erase.watch.serving import Listener
from flux_jax.errors import InputError, RunError, say
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

# Files that are written last.
LAST = (f"{run_folder.ADAPTER}/README.md", run_folder.REPORT)


def run(
    runs: Mapping[str, Config],
    workdir: Path,
    *,
    overwrite: bool = False,
    replay: int | None = None,
    command: str = "",
    watch: Listener | None = None,
) -> dict[str, Adapter]:
    """Prepare and train runs, write their adapters, evaluate them and write reports.

    If the folder contains the same runs, they resume from the latest checkpoint.

    Args:
        runs: configurations by name, as returned by `load_runs`.
        workdir: folder of the checkpoints; each run has a subfolder of its name.
        overwrite: whether to replace runs in the folder.
        replay: an iteration of the folder's runs to replay and print, instead of training.
        command: the command that started the runs, for the reports.
        watch: where to serve a page that shows the training.

    Returns:
        The adapters, by name; empty with `replay`.

    Raises:
        InputError: a setting does not fit the model, or the folder contains other runs.
        PreemptedError: the system requested a stop.
        RunError: a run ended with non-finite updates, or a checkpoint could not be written.
    """
    watched = watch is not None and replay is None
    sampled = with_samples(runs, watched)
    with (
        signals.listening() as stop,
        lock.locked(lock.of_runs(workdir, runs)),
        serving.served(watch if watched else None, workdir, list(runs)),
    ):
        return _run(sampled, workdir, overwrite, replay, command, stop, watched)


def _run(
    runs: Mapping[str, Config],
    workdir: Path,
    overwrite: bool,
    replay_step: int | None,
    command: str,
    stop: signals.Stop,
    watched: bool,
) -> dict[str, Adapter]:
    """Implement `run`. All checks are done before anything is written."""
    resolved = resolve_runs(runs)
    descriptions = {name: each.description(command) for name, each in resolved.items()}
    shared = shared_settings({name: each.config for name, each in resolved.items()})
    _check_method(shared, replay_step)
    _agree(descriptions, workdir, overwrite, replay_step)
    if not overwrite:
        configs = {name: each.config for name, each in resolved.items()}
        resume_check.keep_teacher(workdir, descriptions, configs)
    processes.from_first(lambda: resume_check.check(workdir, descriptions, overwrite=overwrite))
    for each in resolved.values():
        check_judge(each.config)
    _add_inputs(descriptions, resolved, workdir, overwrite)
    adapters = None
    if not overwrite and replay_step is None:
        adapters = resume_check.finished_adapters(workdir, descriptions)
        if adapters and _is_finished(resolved, adapters, workdir):
            say(f"{workdir}: all is done already; --overwrite starts again")
            return adapters
    pipe = open_model(shared, len(runs))
    shape = " x ".join(f"{axis} {size}" for axis, size in pipe.mesh.shape.items())
    say(f"Using {pipe.mesh.size} of {jax.device_count()} devices: {shape}")
    prepared = prepare(resolved, pipe, workdir)
    # Errors in the evaluation's settings are reported before training, not after.
    prompts = [prompt for each in prepared.values() for prompt in each.plan.prompts]
    prompts += evaluation_prompts(prepared, pipe)
    # A target that the model lacks is reported before anything is written.
    jax.eval_shape(lambda: start(jax.random.key(0), pipe.shapes, shared))
    if overwrite:
        processes.from_first(lambda: overwriting.clear(workdir, list(runs)))
    if replay_step is None:
        write_descriptions(prepared, descriptions)
    show_words(prepared)
    pipe.remember(prompts, shared.bank.batch)
    # Free the text encoders' memory; only the transformer is larger.
    pipe.release("text_encoder", "text_encoder_2")
    if replay_step is not None:
        configs, plans = configs_of(prepared), plans_of(prepared)
        banks = banks_of(configs, pipe, plans)
        training = loop.place_on_devices(configs, pipe, banks, plans)
        replay.show(training, workdir, replay_step)
        return {}
    if adapters is None:
        adapters = make_adapters(prepared, pipe, workdir, stop, watched)
        write_adapters(prepared, adapters, descriptions)
        # Some of the model is read only now.
        _add_inputs(descriptions, resolved, workdir, overwrite=False)
    finish(prepared, adapters, pipe, workdir)
    if lost := [name for name in runs if name not in adapters]:
        raise RunError(guard.no_adapter(lost, shared.guard))
    return adapters


def _add_inputs(
    descriptions: Mapping[str, RunRecord],
    resolved: Mapping[str, ResolvedRun],
    workdir: Path,
    overwrite: bool,
) -> None:
    """Add digests of the files that the runs read, and compare those in the folder with them.

    Raises:
        InputError: a file has changed since the runs in the folder were started.
    """
    configs = {name: each.config for name, each in resolved.items()}

    def inputs() -> dict[str, digest.FileRecords]:
        now = digest.of_runs(configs)
        if not overwrite:
            for name, files in now.items():
                resume_check.check_files(workdir / name, files)
        return now

    for name, files in processes.from_first(inputs, dict[str, digest.FileRecords]).items():
        descriptions[name]["inputs"] = {file: asdict(each) for file, each in files.items()}


def _evaluation_files(configs: Mapping[str, Config]) -> dict[str, str]:
    """Return a digest of the files that each run's evaluation reads, by the run's name."""

    def files() -> dict[str, str]:
        evaluated = {name: each for name, each in configs.items() if each.evaluation.pictures}
        records = digest.of_runs(evaluated, evaluation=True)
        return {name: digest.summary(each) for name, each in records.items()}

    return processes.from_first(files, dict[str, str])


def _is_finished(
    resolved: Mapping[str, ResolvedRun], adapters: Mapping[str, Adapter], workdir: Path
) -> bool:
    """Whether all runs are evaluated, and have a card and a report."""
    configs = {name: each.config for name, each in resolved.items()}
    files = _evaluation_files(configs)
    for name, config in configs.items():
        if config.evaluation.pictures:
            inputs = evaluate.evaluation_inputs(files[name], adapters[name], config)
            if evaluate.finished_evaluation(workdir / name, inputs) is None:
                return False

    def written() -> bool:
        paths = [workdir / name / each for name in configs for each in LAST]
        settings = [config.evaluation for config in configs.values()]
        if len(configs) > 1 and any(each.judge and each.pictures for each in settings):
            paths.append(workdir / f"{run_folder.SUMMARY_STEM}.csv")
        return all(path.is_file() for path in paths)

    return processes.from_first(written, bool)


def _check_method(shared: Config, replay_step: int | None) -> None:
    """Check that the method can be trained or replayed.

    Raises:
        InputError: the method has no weights, or no iterations to replay.
    """
    method = method_of(shared)
    if method.exports is None:
        raise InputError(
            f"method = {shared.method!r} has no weights to train or to export; "
            "`erase-anything compare` and `erase-anything attack` measure it"
        )
    if replay_step is not None and not method.steps(shared):
        raise InputError(f"replay = {replay_step}: method = {shared.method!r} has no iterations")


def _agree(
    descriptions: Mapping[str, RunRecord],
    workdir: Path,
    overwrite: bool,
    replay_step: int | None,
) -> None:
    """Check that all processes were started for the same runs.

    Raises:
        InputError: the processes have different runs or settings.
    """
    settings: dict[str, Any] = {
        "workdir": str(workdir),
        "overwrite": overwrite,
        "replay": replay_step,
        "runs": list(descriptions),
    }
    for field in next(iter(descriptions.values())):
        # The command contains the index of the process.
        if field != "command":
            settings[field] = [description[field] for description in descriptions.values()]
    processes.agree(settings)


def evaluation_prompts(runs: Mapping[str, PreparedRun], pipe: Pipeline) -> list[str]:
    """Return the prompts of the pictures for evaluation, early stopping and samples.

    Raises:
        InputError: a setting does not fit the judge or the model.
    """
    cases = []
    for run in runs.values():
        if run.config.evaluation.pictures:
            cases += evaluate.plan_evaluation(run.config, pipe)[1]
        if run.config.early_stop.every:
            cases += early_stop.plan_early_stop(run.config, pipe)[1]
    sampled = [sample_set(run) for run in runs.values() if run.config.samples.every]
    samples = [prompt for each in sampled for prompt in each.prompts]
    if samples:
        pipe.tokenize(samples)
    return [*(case.prompt for case in cases), *samples]


def write_descriptions(
    runs: Mapping[str, PreparedRun], descriptions: Mapping[str, RunRecord]
) -> None:
    """Write each run's configuration, and its words with their sources, into its folder."""
    for name, run in runs.items():
        content = json.dumps(descriptions[name], indent=2) + "\n"
        write(run.folder / run_folder.CONFIG, content)
        write(run.folder / run_folder.IRRELEVANT, describe(run.irrelevant))
        if run.config.more_prompts:
            write(run.folder / run_folder.SENTENCES, describe(run.sentences))


def show_words(runs: Mapping[str, PreparedRun]) -> None:
    """Print the concept that each run erases, and its words."""
    words.show(
        {
            name: words.lines(
                run.config.concept,
                run.config.prompts,
                run.sentences.source,
                run.config.synonyms,
                run.synonyms_source,
                [word for pool in run.irrelevant.pools for word in pool],
                run.irrelevant.source,
            )
            for name, run in runs.items()
        }
    )


def write_adapters(
    runs: Mapping[str, PreparedRun],
    adapters: Mapping[str, Adapter],
    descriptions: Mapping[str, RunRecord],
) -> None:
    """Write the adapters, and record that they are finished.

    Args:
        runs: all runs, also those without an adapter.
        adapters: adapters by the run's name.
        descriptions: contents of the runs' `config.json`, by name.
    """

    def written(name: str, adapter: Adapter) -> None:
        folder = runs[name].folder
        path = write_adapter(adapter, runs[name].config, folder)
        # A restart reads the file instead of the checkpoint, so both must be the same.
        if digest.of_adapter(read_adapter(folder)) == digest.of_adapter(adapter):
            inputs = resume_check.adapter_inputs(descriptions[name])
            file = path.relative_to(folder).as_posix()
            finished.finish(folder, resume_check.RESULT, inputs, [file])

    for name, adapter in adapters.items():
        processes.from_first(functools.partial(written, name, adapter))


def finish(
    runs: Mapping[str, PreparedRun], adapters: Mapping[str, Adapter], pipe: Pipeline, workdir: Path
) -> None:
    """Evaluate adapters, and write cards, reports and a summary.

    Args:
        runs: all runs, also those without an adapter.
        adapters: adapters by the run's name.
        pipe: the frozen model.
        workdir: folder of the summary, which is written for several runs.
    """
    results, files = {}, _evaluation_files(configs_of(runs))
    for name, adapter in adapters.items():
        config, folder = runs[name].config, runs[name].folder
        if config.evaluation.pictures:
            results[name] = evaluate.evaluate(pipe, adapter, config, folder, files=files[name])
        if processes.first():
            card.of_run(folder)
            say(report.write(folder))
    if len(runs) > 1:
        summary.write_summary(workdir, results)
