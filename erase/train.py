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

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from erase.cli import flags as shared
from erase.cli.flags import (
    FLAG,
    begin,
    check_paths,
    configured,
    define_flag,
    define_process_flags,
    parse_flags,
)
from flux_jax.errors import InputError, exits_cleanly

if TYPE_CHECKING:
    from erase.config.schema import Config


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    from erase.runtime import processes

    given, runs = flags.FLAGS, configured()
    if given.plan:
        check_paths(runs)
        processes.initialise(given)
        sys.exit(0 if plan(runs) else 1)
    if given.workdir is None:
        raise InputError("workdir is missing: name the run's folder, --workdir runs/NAME")
    check_paths(runs)
    processes.initialise(given)
    from erase.runtime.memory import explains_memory
    from erase.training.run import run

    with processes.first_speaks(), explains_memory():
        run(
            runs,
            Path(given.workdir),
            overwrite=given.overwrite,
            replay=given.replay,
            command=shlex.join(["python", "-m", "erase.train", *sys.argv[1:]]),
        )


def plan(runs: "Mapping[str, Config]") -> bool:
    """Prints how much memory of each device the runs need.

    Returns:
        Whether the devices have it.
    """
    from erase.evaluation.eval_prompts import check_judge
    from erase.model.open import open_model
    from erase.runtime import processes
    from erase.training import memory_plan
    from erase.training.prepare import runs_with_synonyms, shared_settings

    configs = runs_with_synonyms(runs)
    for config in configs.values():
        check_judge(config)
    with processes.first_speaks():
        pipe = open_model(shared_settings(configs), len(configs), unread=True)
        return memory_plan.show(configs, pipe)


def define_flags() -> None:
    """Declares the command's flags; a function, so that importing this module declares none."""
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_bool("plan", False, "Only tell how much memory of each device the run needs.")
    flags.DEFINE_bool("overwrite", False, "Take the place of the run in the folder.")
    flags.DEFINE_integer("replay", None, "Only do this iteration again, and tell.", lower_bound=1)
    define_process_flags()
    flags.adopt_module_key_flags(shared)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
