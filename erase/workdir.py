"""A run's folder: what may be written there, and what an overwritten run leaves."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convert.errors import InputError
from erase import checkpoints, irrelevant, sentences

CONFIG = "config.json"
# What a resumed run may change: how far it goes, what follows, how it was started.
FREE = ("iterations", "checkpoint_every", "evaluation", "command", "synonyms_from")
# All that the commands write into a run's folder.
WRITTEN = (
    CONFIG,
    irrelevant.FILE,
    sentences.FILE,
    "metrics.jsonl",
    checkpoints.FOLDER,
    "adapter",
    "evaluation.json",
    "attention.npz",
    "pictures",
    "before_after.png",
    "report.html",
    *(f"{stem}.{kind}" for stem in ("attacks", "summary") for kind in ("json", "csv")),
)


def check(workdir: Path, descriptions: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Makes sure that no other run is lost or mixed up.

    Args:
        workdir: the folder.
        descriptions: of the runs, by name, as their `config.json` has them.
        resume: whether to go on with the runs there.
        overwrite: whether to take their place.

    Raises:
        InputError: a run has the name of what every run writes; or the folder holds runs that are
            to be neither resumed nor overwritten, or that have other settings and are to be
            resumed.
    """
    for name in descriptions:
        if name in WRITTEN:
            raise InputError(f"each.{name}: {name} holds something else in a workdir; rename it")
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one of them")
    found = [name for name in descriptions if (workdir / name / CONFIG).is_file()]
    # What a checkpoint holds is all of them.
    held = descriptions if checkpoints.has_checkpoints(workdir) else found
    if overwrite or not held:
        return
    if not resume:
        raise InputError(
            f"workdir = {str(workdir)!r} holds a run already: give --resume to go on with it, "
            "--overwrite to lose it, or another folder"
        )
    for name in held:
        earlier = json.loads((workdir / name / CONFIG).read_text()) if name in found else {}
        now = descriptions[name]
        fields = [field for field in now if field not in FREE and earlier.get(field) != now[field]]
        if fields:
            raise InputError(
                f"workdir = {str(workdir / name)!r} holds a run with another "
                f"{', '.join(fields)}: give the same configuration, or another folder"
            )


def clear(workdir: Path, names: Iterable[str]) -> None:
    """Removes what runs of these names have left, and nothing else."""
    for folder in (workdir, *(workdir / name for name in names)):
        for name in WRITTEN:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
