"""Evaluate an adapter: a judge counts what it erased and what it preserved.

    erase-anything evaluate --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

Interrupted, the same command resumes; finished, it writes only the report again.
If the configuration names several runs, each is evaluated and a summary follows. With `--adapter`,
one adapter from `erase-anything compose` is evaluated for all of them, and the results are added to
its model card.

Acc_e is the share of pictures of prompts with the concept in which the judge finds it, Acc_g the
same for prompts with its synonyms, Acc_ir the share of pictures of other concepts in which the
judge finds those. H is the harmonic mean of 1 - Acc_e, 1 - Acc_g and Acc_ir. Each is measured on
the base model and with the adapter, from the same noise. A synonym is excluded from Acc_g if the
judge finds the concept in less than a fifth of the base model's pictures of it: the base cannot
draw it, so it does not measure erasing. If all are excluded, H is the mean of the other two.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from convert.adapters.paths import find_adapter
from erase.cli.ending import ends
from erase.cli.flags import FLAG, begin, check_paths, configured, define_flag, parse_flags
from erase.runtime.signals import listening
from flux_jax.errors import InputError, exits_cleanly, say

if TYPE_CHECKING:
    from erase.config.schema import Config
    from flux_jax.lora import Adapter
    from flux_jax.pipeline import Pipeline


def define_flags() -> None:
    """Declare the command's flags. A function, so that importing this module declares none."""
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    flags.DEFINE_string("adapter", None, "Adapter; by default that of the run.")


def locks_folders(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """Wrap a command that writes to the folders of the configured runs: they are locked."""

    @functools.wraps(main)
    def locking(argv: Sequence[str]) -> None:
        begin(argv)
        runs = configured()
        check_paths(runs)
        # Checked first, since locking creates folders that are missing.
        for path in adapter_paths(flags.FLAGS, runs).values():
            if flags.FLAGS.adapter is None and not os.path.exists(path):
                raise InputError(
                    f"workdir = {str(path)!r} does not exist; check the path, or train the run "
                    "first"
                )
            find_adapter(path)
        from erase.runtime import lock

        with lock.locked(lock.of_runs(Path(flags.FLAGS.workdir), runs)):
            main(argv)

    return locking


def adapter_paths(given: Any, runs: Iterable[str]) -> dict[str, Path]:
    """Return where the adapter of each run is, as the flags specify."""
    return {name: Path(given.adapter or Path(given.workdir) / name) for name in runs}


@dataclass(frozen=True)
class AdaptedRun:
    """A run to evaluate.

    Attributes:
        config: its configuration, with its synonyms.
        adapter: its adapter.
        folder: its folder.
        files: digest of the files that its evaluation reads.
    """

    config: "Config"
    adapter: "Adapter"
    folder: Path
    files: str


def read_runs(given: Any) -> dict[str, AdaptedRun]:
    """Read each run's configuration and adapter, as the flags specify; opens no model.

    Returns:
        The runs, by name.

    Raises:
        InputError: a configuration, an adapter or the model cannot be used, or the model has
            changed since a run was trained.
    """
    runs = configured()
    paths = adapter_paths(given, runs)
    from erase.evaluation.eval_prompts import configured_judge
    from erase.model import digest
    from erase.model.adapters import read_adapter
    from erase.training import resume_check
    from erase.training.prepare import runs_with_synonyms

    runs = runs_with_synonyms(runs)
    for config in runs.values():
        configured_judge(config)
    adapters = {name: read_adapter(path) for name, path in paths.items()}
    files = digest.of_runs(runs, evaluation=True)
    folders = {name: Path(given.workdir) / name for name in runs}
    for name, config in runs.items():
        resume_check.check_model(folders[name], config, files[name])
    return {
        name: AdaptedRun(config, adapters[name], folders[name], digest.summary(files[name]))
        for name, config in runs.items()
    }


def open_model_of(runs: Mapping[str, AdaptedRun]) -> "Pipeline":
    """Open the runs' model, and check that their adapters fit it.

    Raises:
        InputError: the model cannot be used, or an adapter does not fit it.
    """
    from erase.model.open import open_model
    from erase.training.prepare import shared_settings

    pipe = open_model(shared_settings({n: run.config for n, run in runs.items()}), len(runs))
    for run in runs.values():
        pipe.check(run.adapter)
    return pipe


@exits_cleanly
@listening()
@locks_folders
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS.adapter
    runs = read_runs(flags.FLAGS)
    from erase.evaluation.evaluate import evaluate, evaluation_inputs, finished_evaluation
    from erase.evaluation.summary import write_summary
    from erase.report import card, report
    from erase.runtime import run_folder
    from erase.runtime.memory import explains_memory

    workdir = Path(flags.FLAGS.workdir)
    erased = card.composed_of(find_adapter(given)) if given else []
    results = {
        name: finished_evaluation(
            run.folder, evaluation_inputs(run.files, run.adapter, run.config, erased)
        )
        for name, run in runs.items()
    }
    if all(results.values()):
        say(f"{workdir}: evaluated already; to repeat it, remove evaluation.json")
    else:
        pipe = open_model_of(runs)
        for name, run in runs.items():
            with explains_memory():
                results[name] = evaluate(
                    pipe, run.adapter, run.config, run.folder, erased, run.files
                )
    for run in runs.values():
        if (run.folder / run_folder.CONFIG).is_file():
            if not given:
                card.of_run(run.folder)
            say(report.write(run.folder))
    every = {name: result for name, result in results.items() if result is not None}
    if given:
        first = next(iter(runs.values()))
        card.of_evaluated(find_adapter(given), first.config, every, workdir)
    if len(runs) > 1:
        write_summary(workdir, every)


if __name__ == "__main__":
    define_flags()
    with ends():
        app.run(main, flags_parser=parse_flags)
