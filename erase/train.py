"""Erase a concept: train an adapter, evaluate it and write a report.

    python -m erase.train --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

The default method is EraseAnything's bilevel training; `--config.method=NAME` selects another one.
After a stop or a crash the same command resumes the run; `--overwrite` starts it anew.
`--plan --table 3` plans all runs and pictures of one of the paper's tables.
`--watch 8080` serves a page that shows the training while it runs.
`--replay STEP` repeats one iteration, to find out why its numbers were not finite.
A configuration may name several runs to train at once (`each`); each run then has its own folder
in the workdir, and the checkpoints are shared.
The run's folder contains config.json, irrelevant.json (words for other things, and their source),
sentences.json (sentences from a language model, and their source), metrics.jsonl (one line per
iteration), checkpoints/, adapter/ (pytorch_lora_weights.safetensors and README.md, the model card)
and, after evaluation, evaluation.json and report.html.
"""

import pkgutil
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from erase.cli import flags as shared
from erase.cli.ending import ends
from erase.cli.flags import (
    FLAG,
    begin,
    check_paths,
    configured,
    define_flag,
    define_process_flags,
    parse_flags,
)
from erase.runtime.signals import listening, saves_nothing
from flux_jax.errors import InputError, exits_cleanly

if TYPE_CHECKING:
    from erase.config.schema import Config


@exits_cleanly
@listening()
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    from erase.runtime import processes

    given = flags.FLAGS
    if given.plan:
        saves_nothing()
    if given.table is not None:
        sys.exit(0 if plan_table(given) else 1)
    runs = configured()
    if given.plan:
        check_paths(runs)
        processes.initialise(given)
        sys.exit(0 if plan(runs) else 1)
    if given.workdir is None:
        raise InputError("--workdir is missing: name the run's folder, --workdir runs/NAME")
    check_paths(runs)
    processes.initialise(given)
    from erase.runtime.memory import MENDS, explains_memory
    from erase.training.run import run
    from erase.watch.serving import listen

    sizes = {f"{each.height} x {each.width}" for each in runs.values()}
    mends = f"{MENDS}, now {' and '.join(sorted(sizes))}"
    with processes.first_speaks(), explains_memory(mends):
        listener = None if given.watch is None else listen(given.watch)
        run(
            runs,
            Path(given.workdir),
            overwrite=given.overwrite,
            replay=given.replay,
            command=shlex.join(["python", "-m", "erase.train", *sys.argv[1:]]),
            watch=listener,
        )


def plan(runs: "Mapping[str, Config]") -> bool:
    """Print the memory that the runs need on each device.

    Returns:
        Whether it fits.
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


def plan_table(given: Any) -> bool:
    """Print adapters, pictures, GPU hours and memory of one of the paper's tables.

    Returns:
        Whether its runs fit into the memory of each device.

    Raises:
        InputError: it is not planned but trained, or its configurations are not there.
    """
    if not given.plan:
        raise InputError(f"table = {given.table} is for --plan: erase-anything plan --table 3")
    if given.config is not None:
        raise InputError(f"table = {given.table} has its own configurations; leave out --config")
    try:
        show = pkgutil.resolve_name("configs.flux.plan:show")
    except ModuleNotFoundError as error:
        raise InputError(
            f"table = {given.table} needs {error.name}, which is missing; run the command in the "
            "folder of this repository"
        ) from None
    from erase.runtime import processes

    processes.initialise(given)
    with processes.first_speaks():
        return show(given.table)


def define_flags() -> None:
    """Declare the command's flags. A function, so that importing this module declares none."""
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_bool("plan", False, "Dry run: print the memory needed on each device.")
    flags.DEFINE_enum(
        "table", None, ["2", "3", "4"], "With --plan: plan this whole table of the paper instead."
    )
    flags.DEFINE_bool("overwrite", False, "Replace the run in the folder.")
    flags.DEFINE_integer("replay", None, "Repeat only this iteration, and report.", lower_bound=1)
    flags.DEFINE_integer(
        "watch",
        None,
        "Serve a page with losses and sample pictures while it trains, at this port of this "
        "computer; 0 takes a free one. Also writes event files for TensorBoard.",
        lower_bound=0,
        upper_bound=65_535,
    )
    define_process_flags()
    flags.adopt_module_key_flags(shared)


if __name__ == "__main__":
    define_flags()
    with ends():
        app.run(main, flags_parser=parse_flags)
