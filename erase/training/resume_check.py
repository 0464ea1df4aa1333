"""Checks of a run's folder before it is written."""

import json
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import FieldReference

from erase.config.fields import fill_defaults, shown
from erase.runs import RunConfig
from erase.runtime import overwrite as overwriting
from erase.runtime.files import read_json
from erase.runtime.results import RunRecord
from erase.runtime.run_folder import CONFIG, WRITTEN
from erase.training import checkpoints
from flux_jax.errors import InputError

# Fields that may change when a run resumes: its length, what follows training, how and where it is
# started, and fields that only set the defaults of others.
FREE = (
    "kind",
    "sense",
    "iterations",
    "mesh",
    "checkpoints",
    "guard",
    "evaluation",
    "command",
    "synonyms_from",
)


def check(workdir: Path, descriptions: Mapping[str, RunRecord], *, overwrite: bool) -> None:
    """Refuse to start in a folder that contains a run with other settings; the same run resumes.

    Args:
        workdir: the folder.
        descriptions: contents of the runs' `config.json`, by name.
        overwrite: whether to replace runs in the folder.

    Raises:
        InputError: a run has the name of a file or folder that every run writes, the folder
            contains runs with other settings (the message lists the fields), or files of others.
    """
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
        if differing := list(differences(earlier, descriptions[name])):
            raise InputError(
                f"workdir = {str(workdir / name)!r} holds a run with other settings: give the "
                "same, --overwrite to replace it, or another folder\n       "
                + "\n       ".join(differing)
            )


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
