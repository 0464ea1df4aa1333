r"""Run every method for some iterations at FLUX.1 [dev]'s size: seconds per update, peak memory.

    python -m benchmarks.make_checkpoint models/random-flux --variant dev --layout diffusers
    python -m benchmarks.experiments.methods_full_size --config configs/nudity.py \
        --config.model.path=models/random-flux --out docs/results/full_size.json

Each method trains its adapter as `erase.train` does, without pictures at the end, in a separate
process, so that the peak is its own. Methods already in the file are skipped, unless they failed.
The exit code is 1 if a method could not be run.
"""

import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import jax
from absl import app, flags

from benchmarks.results.schemas import FullSizeRecord, FullSizeResult
from benchmarks.results.tables import full_size
from benchmarks.speed.cases import attempt
from erase.cli.flags import FLAG, begin, configured_for, define_flag, parse_flags
from erase.config.schema import Config
from erase.methods import METHODS, method_of
from erase.runtime.files import write
from erase.runtime.run_folder import METRICS, parse_record
from erase.training import run as run_module
from erase.training.variants import resume_results
from flux_jax import progress
from flux_jax.errors import exits_cleanly, say

# Attention map erasure writes no adapter.
MAKING = tuple(name for name, method in METHODS.items() if method.exports is not None)


def measure_all(methods: Mapping[str, Mapping[str, Config]], out: Path) -> FullSizeResult:
    """Measure the methods that the file lacks or that failed, one after another.

    Args:
        methods: runs by name, for each method's name.
        out: JSON file of the results.

    Returns:
        The file's contents: the size, and by method its record or the `error` that ended it.

    Raises:
        InputError: the file holds measurements of another size.
    """
    first = next(iter(next(iter(methods.values())).values()))
    head = {"height": first.height, "width": first.width, "batch": first.batch_size}
    head |= {"model": Path(first.model.path).name, "iterations": first.iterations}
    result = resume_results(FullSizeResult, out, head, "methods", "measurement")
    spawn = multiprocessing.get_context("spawn")
    done = [name for name, each in result["methods"].items() if "error" not in each]
    for name in progress.bar([name for name in methods if name not in done], desc="methods"):
        with ProcessPoolExecutor(1, spawn) as process:
            record = attempt(process.submit(measure, methods[name]).result)
        result["methods"][name] = cast(FullSizeRecord, {"title": METHODS[name].title} | record)
        write(out, json.dumps(result, indent=1) + "\n")
    return result


def measure(runs: Mapping[str, Config]) -> dict[str, str | float | None]:
    """Train a method's adapters in this process.

    Returns:
        Seconds of the whole command; seconds per update and the number of updates, if there are;
        and the peak number of bytes in use on a device, if known.
    """
    first = next(iter(runs.values()))
    updates = len(method_of(first).steps(first))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        adapters = run_module.run(runs, Path(folder))
        whole = time.perf_counter() - began
        log = Path(folder) / next(iter(runs)) / METRICS
        lines = log.read_text().splitlines() if updates else []
    # The first iteration compiles.
    seconds = [parse_record(line)["seconds"] or 0.0 for line in lines[1:]]
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    lora = next(iter(adapters.values())).lora
    return {
        "device": jax.devices()[0].device_kind or platform.machine(),
        "jax": jax.__version__,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(lora)),
        "whole_s": round(whole, 1),
        "updates": updates * len(lines),
        "update_s": statistics.median(seconds) / updates if seconds else None,
        "memory": max(each.get("peak_bytes_in_use", 0) for each in stats),
    }


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS

    def short(config: Config) -> Config:
        silent = replace(config.evaluation, pictures=0)
        return replace(config, iterations=given.iterations, evaluation=silent)

    methods = {
        name: {run: short(config) for run, config in runs.items()}
        for name, runs in configured_for(given.methods, MAKING).items()
    }
    result = measure_all(methods, Path(given.out))
    say(full_size(result))
    sys.exit(1 if any("error" in each for each in result["methods"].values()) else 0)


if __name__ == "__main__":
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_list("methods", list(MAKING), "Names of methods, separated by commas.")
    flags.DEFINE_integer("iterations", 10, "Iterations per method.", lower_bound=2)
    app.run(main, flags_parser=parse_flags)
