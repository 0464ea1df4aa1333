"""Train variants of runs for comparisons, with result files that can be resumed."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from erase.config.schema import Config, Evaluation
from erase.runtime.results import MethodRecord
from erase.runtime.run_folder import METRICS
from erase.training import guard
from erase.training.make_adapters import make_adapters
from erase.training.prepare import prepare, resolve_runs, shared_settings
from erase.training.resume_check import differences
from flux_jax.errors import InputError, RunError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.system.json_files import read_typed

ResultT = TypeVar("ResultT")

# Settings that change the speed of a measurement, not its result.
SPEED = ("mesh", "checkpoints", "guard", "bank.batch", "evaluation.batch")


def resume_results(
    kind: type[ResultT], out: Path, head: Mapping[str, object], parts: str, what: str
) -> ResultT:
    """Return the results that a file already contains, or empty results.

    Args:
        kind: `TypedDict` of the file's content.
        out: the file.
        head: entries that identify the results.
        parts: key of the individual results.
        what: name of the content, for messages.

    Raises:
        InputError: the file contains other results, or is damaged.
    """
    result: Any = {**head, parts: {}}
    if out.is_file():
        result = read_typed(kind, out, mend="name another file")
    if {key: result.get(key) for key in head} != head:
        raise InputError(f"out = {str(out)!r} holds another {what}: name another file")
    return cast(ResultT, result)


def unmeasured(
    out: Path, measured: Mapping[str, MethodRecord], methods: Mapping[str, Mapping[str, Config]]
) -> dict[str, dict[str, Any]]:
    """Return the settings of the methods that a file does not contain yet, by method.

    The settings are those of a method's first run.

    Args:
        out: the file.
        measured: the file's record of each method, which includes its `settings`.
        methods: the runs of each method, by method and run.

    Raises:
        InputError: the file contains one of them with other settings.
    """
    fresh = {}
    for name, runs in methods.items():
        # Through JSON, to compare with the file's content.
        now = json.loads(json.dumps(asdict(shared_settings(runs))))
        if name not in measured:
            fresh[name] = now
        elif lines := list(differences(measured[name].get("settings", {}), now, SPEED)):
            raise InputError(
                f"out = {str(out)!r} holds {name} with other settings: name another file\n       "
                + "\n       ".join(lines)
            )
    return fresh


def learnt_from(config: Config) -> Config:
    """Return the settings that training depends on; all others have their defaults."""
    return config if config.early_stop.every else replace(config, evaluation=Evaluation())


def train_variant(
    configs: Mapping[str, Config], pipe: Pipeline
) -> tuple[dict[str, Adapter], dict[str, int], float]:
    """Train a variant's runs.

    Returns:
        The adapters and the number of iterations of each, by the run's name, and the seconds of
        training, including compilation.

    Raises:
        InputError: a setting does not fit the model, or a run diverged.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        runs = prepare(resolve_runs(configs), pipe, workdir)
        for run in runs.values():
            run.folder.mkdir(exist_ok=True)
        began = time.perf_counter()
        adapters = make_adapters(runs, pipe, workdir)
        if lost := [name for name in runs if name not in adapters]:
            raise RunError(guard.no_adapter(lost, shared_settings(configs).guard))
        seconds = round(time.perf_counter() - began, 1)
        logs = {name: run.folder / METRICS for name, run in runs.items()}
        counts = {n: len(log.read_text().splitlines()) for n, log in logs.items() if log.is_file()}
        return adapters, dict.fromkeys(configs, 0) | counts, seconds
