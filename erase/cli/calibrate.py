"""Finds the smallest strength of an adapter that erases enough.

    python -m erase calibrate --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

Erased enough is a run where the judge finds the concept in no larger a share of the pictures than
`--share`. Without a judge, pictures are compared with the base's from the same noise: their
correlation, 1 for the same picture, must have fallen by `--drop`. Pictures are those of
`early_stop`, the sentences of training in turn from noise of their own, which evaluation does not
draw. The strength is found by bisection, which takes for granted that more of an adapter erases
more; each strength that was tried is in `calibration.json`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from erase.cli import evaluate
from erase.cli.flags import begin, parse_flags
from flux_jax.errors import exits_cleanly


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    pipe, runs = evaluate.open_runs(given)
    from erase.evaluation.calibrate import calibrate
    from erase.runtime.memory import explains_memory

    numbers: dict[str, Any] = {
        name: given[name].value for name in ("share", "drop", "most", "tolerance")
    }
    with explains_memory():
        for name, (config, adapter) in runs.items():
            calibrate(pipe, adapter, config, Path(given.workdir) / name, **numbers)


if __name__ == "__main__":
    evaluate.define_flags()
    flags.adopt_module_key_flags(evaluate)
    flags.DEFINE_float("share", 0.1, "Of the pictures, in which the concept may still be found.")
    flags.DEFINE_float("drop", 0.3, "Of the similarity to the base's pictures, without a judge.")
    flags.DEFINE_float("most", 1.5, "The largest strength that is tried.")
    flags.DEFINE_float("tolerance", 0.05, "How far the result may be above the smallest strength.")
    app.run(main, flags_parser=parse_flags)
