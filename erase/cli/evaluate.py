"""Evaluate an adapter: a judge counts what it erased and what it preserved.

    python -m erase evaluate --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from erase.cli.ending import ends
from erase.cli.flags import FLAG, begin, check_paths, configured, define_flag, parse_flags
from flux_jax.errors import exits_cleanly, say

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
        from erase.runtime import lock

        runs = configured()
        check_paths(runs)
        with lock.locked(lock.of_runs(Path(flags.FLAGS.workdir), runs)):
            main(argv)

    return locking


def open_runs(given: Any) -> "tuple[Pipeline, dict[str, tuple[Config, Adapter]]]":
    """Open the model, and each run's configuration and adapter, as the flags specify.

    Returns:
        The model; configuration and adapter by name of the run.

    Raises:
        InputError: a configuration, an adapter or the model cannot be used.
    """
    from convert.adapters.paths import find_adapter

    runs = configured()
    check_paths(runs)
    paths = {name: Path(given.adapter or Path(given.workdir) / name) for name in runs}
    for path in paths.values():
        find_adapter(path)
    from erase.evaluation.eval_prompts import configured_judge
    from erase.model.adapters import read_adapter
    from erase.model.open import open_model
    from erase.training.prepare import runs_with_synonyms, shared_settings

    runs = runs_with_synonyms(runs)
    for config in runs.values():
        configured_judge(config)
    opened = {name: (config, read_adapter(paths[name])) for name, config in runs.items()}
    pipe = open_model(shared_settings(runs), len(runs))
    for _, adapter in opened.values():
        pipe.check(adapter)
    return pipe, opened


@exits_cleanly
@locks_folders
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    pipe, runs = open_runs(flags.FLAGS)
    from convert.adapters.paths import find_adapter
    from erase.evaluation.evaluate import evaluate
    from erase.evaluation.summary import write_summary
    from erase.report import card, report
    from erase.runtime.memory import explains_memory

    workdir = Path(flags.FLAGS.workdir)
    given, results = flags.FLAGS.adapter, {}
    erased = card.composed_of(find_adapter(given)) if given else []
    for name, (config, adapter) in runs.items():
        with explains_memory():
            results[name] = evaluate(pipe, adapter, config, workdir / name, erased)
        if (workdir / name / "config.json").is_file():
            if not given:
                card.of_run(workdir / name)
            say(report.write(workdir / name))
    if given:
        config, _ = next(iter(runs.values()))
        card.of_evaluated(find_adapter(given), config, results, workdir)
    if len(runs) > 1:
        write_summary(workdir, results)


if __name__ == "__main__":
    define_flags()
    with ends():
        app.run(main, flags_parser=parse_flags)
