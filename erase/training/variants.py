"""Trains runs side by side and keeps results that are resumed."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from erase.config.schema import Config, Evaluation
from erase.data.words import sentences
from erase.methods.configured import irrelevant_words, plan_of, with_synonyms
from erase.training import guard
from erase.training.loop import METRICS
from erase.training.make_adapters import make_adapters
from erase.training.resume_check import differences
from flux_jax.errors import InputError, RunError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

# What changes how fast something is measured, not what.
SPEED = ("mesh", "checkpoints", "guard", "bank.batch", "evaluation.batch")


def resumed(out: Path, head: Mapping[str, Any], parts: str, what: str) -> dict[str, Any]:
    """The results that a file holds already, or none of them.

    Args:
        out: the file.
        head: what says which results they are.
        parts: where they stand.
        what: the file holds, for messages.

    Raises:
        InputError: it holds others.
    """
    result = json.loads(out.read_text()) if out.is_file() else {**head, parts: {}}
    if {key: result.get(key) for key in head} != head:
        raise InputError(f"out = {str(out)!r} holds another {what}: name another file")
    return result


def left(
    out: Path, result: Mapping[str, Any], methods: Mapping[str, Mapping[str, Config]]
) -> dict[str, dict[str, Any]]:
    """The settings, those of the first run, by method, of methods that a file does not hold yet.

    Args:
        out: the file.
        result: what it holds; under `methods` each one's `settings` among others.
        methods: by name, each one's runs by name.

    Raises:
        InputError: it holds one of them with other settings.
    """
    fresh = {}
    for name, runs in methods.items():
        # Through JSON, so that it compares with what the file holds.
        now = json.loads(json.dumps(asdict(next(iter(runs.values())))))
        if name not in result["methods"]:
            fresh[name] = now
        elif told := list(differences(result["methods"][name]["settings"], now, SPEED)):
            raise InputError(
                f"out = {str(out)!r} holds {name} with other settings: name another file\n       "
                + "\n       ".join(told)
            )
    return fresh


def learnt_from(config: Config) -> Config:
    """What training depends on, anything else at its default."""
    return config if config.early_stop.every else replace(config, evaluation=Evaluation())


def train_variant(
    configs: Mapping[str, Config], pipe: Pipeline
) -> tuple[dict[str, Adapter], dict[str, int], float]:
    """Trains a variant's runs.

    Returns:
        The adapters and the iterations that each took, by the run's name, and the seconds of
        training, compiling included.

    Raises:
        InputError: a setting does not fit the model, or a run diverged.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        plans, settled = {}, {}
        for name, given in configs.items():
            settled[name], _ = with_synonyms(given)
            settled[name], _ = sentences.settle(settled[name], workdir / name)
            words = irrelevant_words(settled[name], workdir / name)
            plans[name] = plan_of(settled[name], pipe, words)
            (workdir / name).mkdir(exist_ok=True)
        began = time.perf_counter()
        found = make_adapters(settled, pipe, plans, workdir)
        if lost := [name for name in settled if name not in found]:
            raise RunError(guard.given_up(lost, next(iter(settled.values())).guard))
        seconds = round(time.perf_counter() - began, 1)
        logs = {name: workdir / name / METRICS for name in configs}
        counts = {n: len(log.read_text().splitlines()) for n, log in logs.items() if log.is_file()}
        return found, dict.fromkeys(configs, 0) | counts, seconds
