"""Compare training several concepts at once in one program with training them one after another.

    python -m benchmarks.experiments.concepts_at_once --out docs/results/at_once.json

The runs are those of configs/emoji_all.py. The time of an iteration is the median; the time of
compiling is the excess of the first iteration.
"""

import itertools
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
from absl import app, flags

from benchmarks.results.schemas import ConcurrencyResult, ConcurrentRuns
from configs import emoji_all
from erase.cli.flags import begin, parse_flags
from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.make_bank import make_bank
from erase.data.words.irrelevant import listed
from erase.methods.planning.configured import plan_of
from erase.model.open import open_model
from erase.runs import load_runs
from erase.runtime.files import write
from erase.runtime.run_folder import METRICS, parse_record
from erase.training.make_adapters import learn
from flux_jax.errors import exits_cleanly, say
from flux_jax.pipeline import Pipeline

COUNTS = (1, 5, 30)
# Prompts and trajectories precomputed at once.
BATCH = 64


def measure(counts: Sequence[int], iterations: int) -> ConcurrencyResult:
    """Train each number of concepts at once, each time from scratch.

    Args:
        counts: numbers of concepts.
        iterations: per concept.
    """
    every = itertools.islice(load_runs(emoji_all.get_config()).items(), max(counts))
    runs = {
        name: replace(run, iterations=iterations, bank=replace(run.bank, batch=BATCH))
        for name, run in every
    }
    pipe = open_model(next(iter(runs.values())))
    banks = {}
    for name, config in runs.items():
        planned = plan_of(config, pipe, listed(config))
        banks[name] = make_bank(config, pipe, planned)
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "iterations": iterations,
        "runs": [
            timed(dict(itertools.islice(runs.items(), count)), pipe, banks) for count in counts
        ],
    }


def timed(runs: Mapping[str, Config], pipe: Pipeline, banks: Mapping[str, Bank]) -> ConcurrentRuns:
    """Seconds of compiling, and milliseconds per iteration of all runs at once."""
    with tempfile.TemporaryDirectory() as folder:
        for name in runs:
            (Path(folder) / name).mkdir()
        learn(runs, pipe, {name: banks[name] for name in runs}, Path(folder))
        lines = (Path(folder) / next(iter(runs)) / METRICS).read_text().splitlines()
    first, *others = (parse_record(line)["seconds"] or 0.0 for line in lines)
    median = statistics.median(others)
    return {
        "concepts": len(runs),
        "compile_s": round(first - median, 1),
        "iteration_ms": round(1000 * median, 2),
    }


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    result = measure(COUNTS, flags.FLAGS.iterations)
    write(Path(flags.FLAGS.out), json.dumps(result, indent=1) + "\n")
    say(json.dumps(result, indent=1))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_integer("iterations", 100, "Iterations of each.", lower_bound=2)
    app.run(main, flags_parser=parse_flags)
