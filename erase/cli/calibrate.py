"""Find the smallest strength of an adapter that erases enough.

    erase-anything calibrate --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball

A strength erases enough if the judge finds the concept in at most a share `--share` of the
pictures. Without a judge, pictures are compared with the base model's from the same noise: their
correlation, 1 for equal pictures, must have fallen by `--drop`. The pictures are those of
`early_stop`: training sentences in turn, from noise that the evaluation does not use. The strength
is found by bisection, which assumes that a larger strength erases more; all strengths tried are in
`calibration.json`.
"""

from collections.abc import Sequence
from typing import Any

from absl import app, flags

from erase.cli import evaluate
from erase.cli.ending import ends
from erase.cli.flags import begin, parse_flags
from erase.runtime.signals import listening
from flux_jax.errors import exits_cleanly


@exits_cleanly
@listening()
@evaluate.locks_folders
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    runs = evaluate.read_runs(given)
    pipe = evaluate.open_model_of(runs)
    from erase.evaluation.calibrate import calibrate
    from erase.runtime.memory import explains_memory

    numbers: dict[str, Any] = {
        name: given[name].value for name in ("share", "drop", "most", "tolerance")
    }
    with explains_memory():
        for run in runs.values():
            calibrate(pipe, run.adapter, run.config, run.folder, **numbers)


if __name__ == "__main__":
    evaluate.define_flags()
    flags.adopt_module_key_flags(evaluate)
    flags.DEFINE_float("share", 0.1, "Largest share of pictures with the concept.")
    flags.DEFINE_float("drop", 0.3, "Without a judge: required drop in similarity.")
    flags.DEFINE_float("most", 1.5, "Largest strength to try.")
    flags.DEFINE_float("tolerance", 0.05, "Tolerance of the result, above the smallest strength.")
    with ends():
        app.run(main, flags_parser=parse_flags)
