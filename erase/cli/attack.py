"""Asks for an erased concept in disguise: the paper's Appendix B, families of changed prompts.

    python -m erase attack --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

An attack succeeds where the judge still finds the concept. Beside the adapter's share stand the
base's, since not every disguise is understood by it either, and that of the paper's attention map
erasure (Fig. 3), which needs no training: the concept's tokens, where the prompt has them, give
nothing to the picture. Writes `attacks.json`, `attacks.csv` and the report to the workdir; where
the configuration names several runs, to each one's folder, and a summary to the workdir.
Prompts, all but the synonyms', are drawn from a generator that starts at the evaluation's seed.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from erase.cli import evaluate
from erase.cli.flags import begin, parse_flags
from flux_jax.errors import exits_cleanly


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
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
    flags.DEFINE_integer("pictures", 64, "Pictures of each family.", lower_bound=1)
    app.run(main, flags_parser=parse_flags)
