"""Attack an erased concept with disguised prompts: the prompt families of the paper's Appendix B.

    python -m erase attack --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

An attack succeeds if the judge still finds the concept. The share of successes is reported for the
adapter, for the base model, which does not understand every disguise either, and for the paper's
attention map erasure (Fig. 3), which needs no training: it mutes the concept's tokens, where the
prompt has them. Writes `attacks.json`, `attacks.csv` and the report to the workdir; for several
runs, to the folder of each run, and a summary to the workdir.
Prompts, except those with synonyms, are sampled from a generator seeded by the evaluation's seed.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from erase.cli import evaluate
from erase.cli.ending import ends
from erase.cli.flags import begin, parse_flags
from flux_jax.errors import exits_cleanly


@exits_cleanly
@evaluate.locks_folders
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    pipe, runs = evaluate.open_runs(flags.FLAGS)
    from erase.evaluation.attack import STEM, attack
    from erase.evaluation.summary import write_summary
    from erase.report import report
    from erase.runtime.memory import explains_memory

    workdir, pictures = Path(flags.FLAGS.workdir), flags.FLAGS.pictures
    with explains_memory():
        results = {}
        for name, (config, adapter) in runs.items():
            results[name] = attack(pipe, adapter, config, workdir / name, pictures)
            if (workdir / name / "config.json").is_file():
                report.write(workdir / name)
    if len(runs) > 1:
        write_summary(workdir, results, STEM)


if __name__ == "__main__":
    evaluate.define_flags()
    flags.adopt_module_key_flags(evaluate)
    flags.DEFINE_integer("pictures", 64, "Pictures per family.", lower_bound=1)
    with ends():
        app.run(main, flags_parser=parse_flags)
