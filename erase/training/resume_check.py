"""A run's folder: what may be written there, and what an overwritten run leaves."""

import itertools
import json
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import FieldReference

from erase.config.fields import fill_defaults, shown
from erase.runs import RunConfig
from erase.runtime.files import read_json
from erase.runtime.results import RunRecord
from erase.runtime.run_folder import CONFIG, WRITTEN
from erase.training import checkpoints
from flux_jax.errors import InputError

# What may change when a run goes on: how far it goes, what follows, how and where it is started,
# and what nothing but other fields' defaults follow from.
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
    """Refuses to start in a folder that holds a run with other settings; the same run resumes.

    Args:
        workdir: the folder.
        descriptions: of the runs, by name, as their `config.json` has them.
        overwrite: whether to take the place of runs there.

    Raises:
        InputError: a run has the name of what every run writes; or the folder holds runs with
            other settings, whose fields it lists.
    """
    for name in descriptions:
        if name in WRITTEN:
            raise InputError(f"each.{name}: {name} holds something else in a workdir; rename it")
    described = [name for name in descriptions if (workdir / name / CONFIG).is_file()]
    # What a checkpoint holds is all of them.
    earlier_runs = descriptions if checkpoints.has_checkpoints(workdir) else described
    if overwrite:
        return
    for name in earlier_runs:
        path = workdir / name / CONFIG
        mend = "mend it, give --overwrite to lose the run there, or another folder"
        earlier = read_json(path, mend=mend) if name in described else {}
        if differing := list(differences(earlier, descriptions[name])):
            raise InputError(
                f"workdir = {str(workdir / name)!r} holds a run with other settings: give the "
                "same, --overwrite to lose it, or another folder\n       "
                + "\n       ".join(differing)
            )


def differences(
    earlier: Mapping[str, Any], now: Mapping[str, Any], free: Container[str] = FREE
) -> Iterator[str]:
    """A line for each field that may not change and does.

    Fields that the earlier run's program did not have yet had their defaults.

    Args:
        earlier: as a `config.json` has it.
        now: the same of the run that is to go on.
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
    """Nested fields by their paths."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value.get() if isinstance(value, FieldReference) else value
    return flat


def clear(workdir: Path, names: Iterable[str]) -> None:
    """Removes what runs of these names have left, and nothing else."""
    for folder in (workdir, *(workdir / name for name in names)):
        for path in itertools.chain.from_iterable(map(folder.glob, WRITTEN)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
