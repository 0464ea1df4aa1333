"""Checks of a run's folder before it is written."""

import functools
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic
from ml_collections import FieldReference

from erase.config.fields import fill_defaults, shown
from erase.config.schema import Config
from erase.data.plan import stores_velocities
from erase.data.words.irrelevant import listed
from erase.methods import method_of
from erase.model import digest
from erase.model.adapters import read_adapter
from erase.model.digest import FileRecords
from erase.runs import RunConfig
from erase.runtime import finished, processes
from erase.runtime import overwrite as overwriting
from erase.runtime.cache import digest_of
from erase.runtime.files import read_json
from erase.runtime.results import RunRecord
from erase.runtime.run_folder import CHECKPOINTS, CONFIG, WRITTEN
from erase.training import checkpoints
from flux_jax.errors import InputError, note, shortened
from flux_jax.lora import Adapter

# Where names of the model's files begin.
MODEL = "model/"
# Fields that may change when a run resumes: its length, what follows training, how and where it is
# started, and fields that only set the defaults of others.
FREE = (
    "kind",
    "sense",
    "iterations",
    "mesh",
    "checkpoints",
    "guard",
    "samples",
    "evaluation",
    "command",
    "synonyms_from",
    "inputs",
)
# Name of the adapter's part in `finished.json`.
RESULT = "adapter"


def check(workdir: Path, descriptions: Mapping[str, RunRecord], *, overwrite: bool) -> None:
    """Refuse to start in a folder that contains a run with other settings; the same run resumes.

    Args:
        workdir: the folder.
        descriptions: contents of the runs' `config.json`, by name.
        overwrite: whether to replace runs in the folder.

    Raises:
        InputError: a run has the name of a file or folder that every run writes, the folder
            contains runs with other settings (the message lists the fields), runs that have made
            more iterations, or files of others.
    """
    free = (*FREE, "model.path", "upper.folder")
    for name in descriptions:
        if name in WRITTEN:
            raise InputError(f"each.{name}: {name} is a reserved name in a workdir; rename it")
    overwriting.check(workdir, list(descriptions), overwrite=overwrite)
    described = [name for name in descriptions if (workdir / name / CONFIG).is_file()]
    # A checkpoint contains all runs.
    earlier_runs = descriptions if checkpoints.has_checkpoints(workdir) else described
    if overwrite:
        return
    for name in earlier_runs:
        path = workdir / name / CONFIG
        mend = "repair it, or name another folder"
        earlier = read_json(path, mend=mend) if name in described else {}
        # A folder may move; `check_files` compares the files in it.
        allowed = free if earlier.get("inputs") else FREE
        if differing := list(differences(earlier, descriptions[name], allowed)):
            raise InputError(
                f"workdir = {str(workdir / name)!r} holds a run with other settings: give the "
                "same, --overwrite to replace it, or another folder\n       "
                + "\n       ".join(differing)
            )
        _check_length(workdir, descriptions[name])


def _check_length(workdir: Path, now: Mapping[str, Any]) -> None:
    """Refuse to resume a run with fewer iterations than it has made.

    Raises:
        InputError: its newest checkpoint is of a later iteration.
    """
    made = max(checkpoints.steps_in(workdir / CHECKPOINTS), default=0)
    if now.get("iterations", made) < made:
        raise InputError(
            f"iterations = {now['iterations']} is fewer than the {made} that the run in "
            f"{str(workdir)!r} has made: give at least {made}, --overwrite to start again, or "
            "another folder"
        )


def keep_teacher(
    workdir: Path, descriptions: Mapping[str, RunRecord], configs: Mapping[str, Config]
) -> None:
    """Write `bank.teacher` as the earlier start did, where both starts choose the same.

    It may be given by one and left to the automatic choice by the other, and the adapter is the
    same. If the number of iterations changed the automatic choice, a note says so.

    Args:
        workdir: the folder.
        descriptions: contents of the runs' `config.json`, by name; changed in place.
        configs: the runs' configurations, by name.
    """
    for name, now in descriptions.items():
        path = workdir / name / CONFIG
        earlier: dict[str, Any] = read_json(path) if path.is_file() else {}
        bank, iterations = earlier.get("bank"), earlier.get("iterations")
        if not isinstance(bank, dict) or not isinstance(iterations, int):
            continue
        teacher, config = bank.get("teacher"), configs[name]
        if teacher not in (None, "stored", "computed"):
            continue
        before = replace(config, iterations=iterations, bank=replace(config.bank, teacher=teacher))
        needs = method_of(config).needs(config, listed(config), None)
        if stores_velocities(before, needs) == stores_velocities(config, needs):
            fields: dict[str, Any] = dict(now)
            fields["bank"]["teacher"] = teacher
        elif teacher == config.bank.teacher and checkpoints.has_checkpoints(workdir):
            chosen = ("computed", "stored")[stores_velocities(before, needs)]
            note(
                f"iterations = {config.iterations}, {iterations} before: the default of "
                f"bank.teacher is no longer {chosen}, so the adapter equals that of "
                f"{config.iterations} iterations at once only up to rounding; for equal bytes "
                f"give --config.bank.teacher={chosen} at every start"
            )


def check_files(folder: Path, now: FileRecords) -> None:
    """Refuse to continue a run whose model or pictures have changed since it was started.

    Args:
        folder: the run's folder.
        now: records of the files as they are now.

    Raises:
        InputError: a file has changed, is missing or is new; the message names it.
    """
    if not (there := recorded_files(folder)):
        return
    if changed := digest.differing(there, now):
        raise InputError(
            f"workdir = {str(folder)!r} was computed with other files: {_listed(changed)} changed "
            f"since; restore {_them(changed)}, give --overwrite to start again, or another folder"
        )
    if copied := digest.copied(there, now):
        note(
            f"{_listed(copied)}: another time, but the same size and samples as at the run's "
            "start; taken for a copy"
        )


def check_model(folder: Path, config: Config, now: FileRecords) -> None:
    """Refuse to evaluate a run on a model that was changed in place since its training.

    Another model, by its path, may be evaluated.

    Args:
        folder: the run's folder.
        config: configuration of the evaluation.
        now: records of the files as they are now.

    Raises:
        InputError: a file of the model has changed, is missing or is new; the message names it.
    """
    there = {k: v for k, v in recorded_files(folder).items() if k.startswith(MODEL)}
    now = {k: v for k, v in now.items() if k.startswith(MODEL)}
    if not there or _recorded(folder).get("model", {}).get("path") != config.model.path:
        return
    if changed := digest.differing(there, now):
        raise InputError(
            f"workdir = {str(folder)!r} was trained on another model: {_listed(changed)} changed "
            f"since; restore {_them(changed)}, or train again with --overwrite"
        )


def recorded_files(folder: Path) -> FileRecords:
    """Return the records of files in a run's `config.json`; empty in an earlier version's.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return digest.RECORDS.validate_python(_recorded(folder).get("inputs") or {})
    except pydantic.ValidationError as error:
        raise InputError(
            f"{folder / CONFIG}: inputs are no records of files; remove the field, or give "
            "another folder"
        ) from error


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return read_json(path) if path.is_file() else {}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{shortened(names[0])}{more}"


def _them(names: Sequence[str]) -> str:
    return "them" if len(names) > 1 else "it"


def adapter_inputs(description: RunRecord) -> str:
    """Return a digest of everything that a run's adapter depends on.

    Args:
        description: content of the run's `config.json`, with `inputs`.
    """
    records = digest.RECORDS.validate_python(description.get("inputs", {}))
    values = {k: v for k, v in description.items() if k not in FREE}
    values |= {"iterations": description["iterations"]}
    values |= {"model": {**description["model"], "path": None}}
    if isinstance(upper := values.get("upper"), dict):
        values["upper"] = upper | {"folder": bool(upper.get("folder"))}
    chosen = dict(description).get("checkpoints")
    return digest_of([values, chosen, digest.summary(records)])


def finished_adapters(
    workdir: Path, descriptions: Mapping[str, RunRecord]
) -> dict[str, Adapter] | None:
    """Read the adapters of runs that were trained to the end; None if one was not.

    Args:
        workdir: folder of the runs.
        descriptions: contents of the runs' `config.json`, by name, with `inputs`.
    """
    for name, each in descriptions.items():
        inputs = adapter_inputs(each)
        if not processes.from_first(
            functools.partial(finished.is_finished, workdir / name, RESULT, inputs), bool
        ):
            return None
    return {name: read_adapter(workdir / name) for name in descriptions}


def differences(
    earlier: Mapping[str, Any], now: Mapping[str, Any], free: Container[str] = FREE
) -> Iterator[str]:
    """Yield a line for each field that must not change but differs.

    Fields that are missing from the earlier run, of an older version, count as their defaults.

    Args:
        earlier: content of the earlier run's `config.json`.
        now: content of that of the run to resume.
        free: fields, and parts with all their fields, that may change.
    """
    defaults = _flat(fill_defaults(RunConfig, {}))
    before, after = ({**defaults, **_flat(values)} for values in (earlier, now))
    for path in sorted(before | after):
        if path in free or path.split(".")[0] in free:
            continue
        old, new = (json.loads(json.dumps(side.get(path))) for side in (before, after))
        if old != new:
            yield f"{path}: {shown(old)} there, {shown(new)} now"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields, with their paths as keys."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value.get() if isinstance(value, FieldReference) else value
    return flat
