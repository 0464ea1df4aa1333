r"""Retrain erased concepts: how fast they return, and the effect on other concepts.

    python -m benchmarks.experiments.relearning --config configs/emoji_compare.py \
        --out docs/results/relearning.json

Each method trains its adapters. They are then trained further by flow matching on pictures of the
concept, which the frozen model generates from noise that erasing did not use, and evaluated after
given numbers of steps. Meta-Unlearning (Gao et al., 2024) is designed to make relearning harder.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from benchmarks.experiments.study import count
from benchmarks.results.schemas import RelearningResult
from benchmarks.results.tables import relearning
from erase.attacks.relearn import teach
from erase.cli.flags import FLAG, begin, configured_for, define_flag, parse_flags
from erase.config.schema import Config
from erase.methods import METHODS
from erase.methods.base import Method
from erase.model.open import open_model
from erase.runtime.files import write
from erase.runtime.memory import explains_memory
from erase.training.prepare import runs_with_synonyms
from erase.training.variants import resume_results, train_variant, unmeasured
from flux_jax.errors import InputError, exits_cleanly, say

# Methods that export the trained adapter as it is (layers, rank, scale), so it can be trained on.
AS_TRAINED = tuple(name for name, method in METHODS.items() if method.exports is Method.exports)


def measure(
    methods: Mapping[str, Mapping[str, Config]], out: Path, stops: Sequence[int], rate: float
) -> RelearningResult:
    """Erase by the methods that the file lacks, retrain and evaluate.

    Args:
        methods: runs by name, for each method's name; the adapters share layers and rank.
        out: JSON file of the results.
        stops: numbers of steps after which pictures are counted.
        rate: learning rate of AdamW.

    Returns:
        The file's contents: by method and number of steps, a row for each run.

    Raises:
        InputError: there is no judge, or the file holds other measurements.
    """
    runs = next(iter(methods.values()))
    first = next(iter(runs.values()))
    if first.evaluation.judge is None:
        raise InputError("evaluation.judge = None: relearning is counted; name the judge's folder")
    head = {"runs": {name: config.concept for name, config in runs.items()}, "rate": rate}
    head |= {"stops": list(stops), "pictures": first.evaluation.pictures}
    result = resume_results(RelearningResult, out, head, "methods", "measurement")
    fresh = unmeasured(out, result["methods"], methods)
    pipe = open_model(first)
    before: dict[str, np.ndarray] = {}
    for name, settings in fresh.items():
        adapters, _, _ = train_variant(methods[name], pipe)
        counted = {
            str(steps): [
                count(pipe, taught[run], config, before)
                for run, config in runs_with_synonyms(methods[name]).items()
            ]
            for steps, taught in teach(adapters, methods[name], pipe, stops, rate)
        }
        result["methods"][name] = {
            "title": METHODS[name].title,
            "steps": counted,
            "settings": settings,
        }
        result["device"] = jax.devices()[0].device_kind or platform.machine()
        write(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    if wrong := [stop for stop in given.stops if not stop.isdecimal()]:
        raise InputError(f"stops: {wrong[0]!r} must be a whole number, 0 or more")
    stops = sorted(set(map(int, given.stops)))
    methods = configured_for(given.methods, AS_TRAINED)
    with explains_memory():
        say(relearning(measure(methods, Path(given.out), stops, given.rate)))


if __name__ == "__main__":
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_list(
        "methods", ["esd", "meta_unlearning", "erase_anything"], "Names, separated by commas."
    )
    flags.DEFINE_list("stops", ["0", "10", "20", "40", "80"], "Numbers of steps.")
    flags.DEFINE_float("rate", 1e-3, "Learning rate of the retraining.", lower_bound=0)
    app.run(main, flags_parser=parse_flags)
