"""What a run wrote in its folder, as opposed to files of others, and its removal.

A folder belongs to a run if its `config.json` is a run's record. In there, a file belongs to the
run if it has the name of a file that runs write, and in folders that people fill as well
(`checkpoints/`, `adapter/`, `pictures/`, `samples/`, `events/`, `cache/`) also its form.
"""

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from erase.runtime.run_folder import (
    ADAPTER,
    ATTACKS_STEM,
    CACHE,
    CHECKPOINTS,
    CONFIG,
    DAMAGED_CHECKPOINTS,
    EVENT_FILE,
    EVENTS,
    PICTURES,
    SAMPLE,
    SAMPLES,
    SUMMARY_STEM,
    WRITTEN,
)
from flux_jax.errors import InputError

# Fields of every run's `config.json`, of all versions.
RECORDED = ("concept", "model", "command")
# Most bytes of a `config.json`, and of a model card.
MOST = 1 << 24
# Folders whose content is examined entry by entry.
SHARED = (CHECKPOINTS, DAMAGED_CHECKPOINTS, ADAPTER, PICTURES, SAMPLES, EVENTS, CACHE)
# Files of several runs, in the folder above theirs.
OF_SEVERAL = (
    CHECKPOINTS,
    DAMAGED_CHECKPOINTS,
    *(f"{stem}.{kind}" for stem in (ATTACKS_STEM, SUMMARY_STEM) for kind in ("json", "csv")),
)
STEP = re.compile(r"\d+(-\d+)?(\.orbax-checkpoint-tmp.*)?")
# Entries of a checkpoint.
ITEMS = {"state", "record", "metrics", "manifest.json", "_CHECKPOINT_METADATA"}
ITEMS |= {"commit_success.txt", "_sharding", "descriptor"}
PICTURE = re.compile(r"\.?Acc_(e|g|ir)-\d+-[a-z]+\.png(\.partial)?")
# Parts of the cache, by their digest.
CACHED = re.compile(r"\.?[0-9a-f]{32,64}(\.partial)?")
WEIGHTS = ("pytorch_lora_weights.safetensors", "flax_lora.safetensors")
CARD = "README.md"
# A line of every model card.
CARD_TAG = "concept-erasure"


def is_record(path: Path) -> bool:
    """Whether a file is a run's `config.json`."""
    try:
        if not path.is_file() or path.stat().st_size > MOST:
            return False
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(record, dict)
        and all(field in record for field in RECORDED)
        and isinstance(record["concept"], str)
        and isinstance(record["model"], dict)
    )


def check(workdir: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse folders with files of others that a run would replace, remove or misread.

    Args:
        workdir: the folder.
        names: names of the runs, which have a folder each in it; "" for a single run.
        overwrite: whether runs in the folder are to be removed.

    Raises:
        InputError: there is such a file, or a folder to overwrite has no record of a run.
    """
    for folder in _folders(workdir, names):
        if path := next(_foreign(folder, folder == workdir and "" not in names), None):
            raise InputError(
                f"workdir = {str(workdir)!r}: no run wrote {path.relative_to(workdir)}, and a run "
                "there would replace it: move it, or name another folder"
            )
        if overwrite and not _belongs_to_run(folder, workdir):
            patterns = OF_SEVERAL if folder == workdir and "" not in names else WRITTEN
            if path := next(_matching(folder, patterns), None):
                raise InputError(
                    f"workdir = {str(workdir)!r} has {path.relative_to(workdir)}, but no {CONFIG} "
                    "of a run: --overwrite removes only what a run wrote; name another folder"
                )


def clear(workdir: Path, names: Sequence[str]) -> None:
    """Remove the files that runs of these names have written, and nothing else.

    The record of a run goes last, so that a process that is killed here can do the rest later.
    """
    folders = [f for f in _folders(workdir, names) if _belongs_to_run(f, workdir)]
    for folder in reversed(folders):
        patterns = WRITTEN if is_record(folder / CONFIG) else OF_SEVERAL
        for path in _matching(folder, (p for p in patterns if p != CONFIG)):
            if path.name in SHARED:
                for entry in list(path.iterdir()) if path.is_dir() else []:
                    if _is_runs(entry, path.name):
                        _remove(entry)
            elif not path.is_dir() or path.is_symlink():
                path.unlink()
            if path.is_dir() and not path.is_symlink():
                # Others' files in it stay.
                with contextlib.suppress(OSError):
                    path.rmdir()
    for folder in folders:
        if is_record(folder / CONFIG):
            (folder / CONFIG).unlink()


def _folders(workdir: Path, names: Sequence[str]) -> list[Path]:
    return list(dict.fromkeys([workdir, *(workdir / name for name in names)]))


def _belongs_to_run(folder: Path, workdir: Path) -> bool:
    """Whether a run's record is in a folder; that of several runs has it in their folders."""
    records = [folder / CONFIG]
    if folder == workdir and folder.is_dir():
        records += folder.glob(f"*/{CONFIG}")
    return any(map(is_record, records))


def _matching(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    return itertools.chain.from_iterable(sorted(folder.glob(pattern)) for pattern in patterns)


def _foreign(folder: Path, of_several: bool) -> Iterator[Path]:
    """Yield what no run wrote in places that a run writes to."""
    record = folder / CONFIG
    if not of_several:
        if record.exists() and not is_record(record):
            yield record
        card = folder / ADAPTER / CARD
        if card.exists() and not _is_runs(card, ADAPTER):
            yield card
        for name in WEIGHTS:
            if (weights := folder / ADAPTER / name).exists() and not record.exists():
                yield weights
    for name in (CHECKPOINTS, DAMAGED_CHECKPOINTS):
        place = folder / name
        if not place.exists():
            continue
        if not place.is_dir():
            yield place
            continue
        for entry in sorted(place.iterdir()):
            if STEP.fullmatch(entry.name) and not _is_runs(entry, name):
                yield entry


def _is_runs(entry: Path, place: str) -> bool:
    """Whether a run wrote an entry of one of the folders in `SHARED`."""
    if entry.is_symlink():
        return False
    if place in (CHECKPOINTS, DAMAGED_CHECKPOINTS):
        if not STEP.fullmatch(entry.name) or not entry.is_dir():
            return False
        within = {child.name.partition(".orbax-checkpoint-tmp")[0] for child in entry.iterdir()}
        return within <= ITEMS
    if place == CACHE:
        return CACHED.fullmatch(entry.name) is not None
    if not entry.is_file():
        return False
    if place == PICTURES:
        return PICTURE.fullmatch(entry.name) is not None
    if place == SAMPLES:
        name = entry.name.removeprefix(".").removesuffix(".partial")
        return SAMPLE.fullmatch(name) is not None
    if place == EVENTS:
        return EVENT_FILE.fullmatch(entry.name) is not None
    if entry.name == CARD:
        with entry.open("rb") as file:
            return CARD_TAG.encode() in file.read(MOST)
    name = entry.name.removeprefix(".").removesuffix(".partial")
    return name in WEIGHTS or entry.name == f".{CARD}.partial"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
