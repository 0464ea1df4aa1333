"""Attack an erased concept with disguised prompts: the prompt families of the paper's Appendix B.

    erase-anything attack --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

An attack succeeds if the judge still finds the concept. The share of successes is reported for the
adapter, for the base model, which does not understand every disguise either, and for the paper's
attention map erasure (Fig. 3), which needs no training: it mutes the concept's tokens, where the
prompt has them. Writes `attacks.json`, `attacks.csv` and the report to the workdir; for several
runs, to the folder of each run, and a summary to the workdir.
Interrupted, the same command resumes; finished, it writes only the report again.
Prompts, except those with synonyms, are sampled from a generator seeded by the evaluation's seed.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from erase.cli import evaluate
from erase.cli.ending import ends
from erase.cli.flags import begin, parse_flags
from erase.runtime.signals import listening
from flux_jax.errors import exits_cleanly, say


@exits_cleanly
@listening()
@evaluate.locks_folders
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    pictures = flags.FLAGS.pictures
    runs = evaluate.read_runs(flags.FLAGS)
    from erase.evaluation.attack import STEM, attack, attack_inputs, finished_attack
    from erase.evaluation.summary import write_summary
    from erase.report import report
    from erase.runtime import run_folder
    from erase.runtime.memory import explains_memory

    workdir = Path(flags.FLAGS.workdir)
    results = {
        name: finished_attack(
            run.folder, attack_inputs(run.files, run.adapter, run.config, pictures)
        )
        for name, run in runs.items()
    }
    if all(results.values()):
        say(f"{workdir}: attacked already; to repeat it, remove {STEM}.json")
    else:
        pipe = evaluate.open_model_of(runs)
        for name, run in runs.items():
            with explains_memory():
                results[name] = attack(
                    pipe, run.adapter, run.config, run.folder, pictures, run.files
                )
    for run in runs.values():
        if (run.folder / run_folder.CONFIG).is_file():
            report.write(run.folder)
    if len(runs) > 1:
        every = {name: result for name, result in results.items() if result is not None}
        write_summary(workdir, every, STEM)


if __name__ == "__main__":
    evaluate.define_flags()
    flags.adopt_module_key_flags(evaluate)
    flags.DEFINE_integer("pictures", 64, "Pictures per family.", lower_bound=1)
    with ends():
        app.run(main, flags_parser=parse_flags)
