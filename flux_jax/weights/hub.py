"""Downloads models from the Hugging Face hub by the name of their repository."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flux_jax import progress
from flux_jax.errors import InputError
from flux_jax.system.files import read_bytes
from flux_jax.weights.tables import COMPONENTS

NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Files of a pipeline to download, without the single files of the same model.
WANTED = (
    "model_index.json",
    "scheduler/*.json",
    *(f"tokenizer{number}/*" for number in ("", "_2")),
    *(f"{name}/*.{kind}" for name in COMPONENTS for kind in ("json", "safetensors")),
)


def check_shipped(given: str) -> None:
    """Checks that a model in this repository's folder `models` exists; needs no network.

    Raises:
        InputError: it does not.
    """
    # "models/x" has the form of a name, but the hub has no owner "models".
    if os.path.normpath(given).startswith(f"models{os.sep}") and not os.path.exists(given):
        raise InputError(
            f"model = {given!r} does not exist: the small model, models/emoji-flux, comes with a "
            "clone of this repository; run the command in the clone's folder, or give another model"
        )


def check_model(given: str) -> None:
    """Checks that a model is an existing path or has the form of a hub name; needs no network.

    Raises:
        InputError: it is neither.
    """
    check_shipped(given)
    # Unlike `Path.exists`, this does not raise for names that no file can have.
    if not os.path.exists(given) and not NAME.fullmatch(given):
        raise InputError(f"model = {given!r} does not exist; check the path")


def find_model(given: str, wanted: Sequence[str] = WANTED) -> Path:
    """The path of a model; a model on the hub is downloaded, or read from the local cache.

    Args:
        given: a path, or "owner/name". An existing path takes precedence.
        wanted: patterns of the files to download.

    Raises:
        InputError: there is no such path or repository, its licence was not accepted, or the hub
            cannot be reached.
    """
    check_model(given)
    return _snapshot(Path(given)) if os.path.exists(given) else _fetch(given, wanted)


def _fetch(name: str, wanted: Sequence[str]) -> Path:
    """Downloads a repository's files, or finds them in the cache.

    Raises:
        InputError: see `find_model`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = f"{ENDPOINT}/{name}"
    try:
        # The hub expects tqdm.auto's class and accepts any compatible one.
        bars: Any = progress.kind()
        # The latest revision of the user's choice; only weights and settings, no code to run.
        folder = snapshot_download(name, allow_patterns=list(wanted), tqdm_class=bars)  # nosec B615
        return Path(folder)
    except GatedRepoError as error:
        raise InputError(
            f"model = {name!r}: its licence must be accepted on {page} first; then log in with "
            "`hf auth login`, or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"model = {name!r} is neither a local path nor a repository that this account can "
            f"see on {page}: check the name; for a private one log in with `hf auth login`, or set "
            "HF_TOKEN"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"model = {name!r} is not a local path and could not be downloaded from {page} "
            f"({type(error).__name__}: {str(error).splitlines()[0]}): check the network, or give "
            "a folder"
        ) from error


def _snapshot(path: Path) -> Path:
    """The path; for a repository's folder in the hub's cache, the path of its version.

    Raises:
        InputError: there are several versions.
    """
    if not path.absolute().name.startswith("models--") or not (path / "snapshots").is_dir():
        return path
    main, found = path / "refs" / "main", sorted((path / "snapshots").iterdir())
    if main.is_file():
        # A name that is no text is none of these.
        version = path / "snapshots" / read_bytes(main).decode(errors="replace").strip()
        if version in found:
            return version
    if len(found) != 1:
        raise InputError(
            f"model = {str(path)!r} is the hub's cache with {len(found)} versions; give the folder "
            f"of one in {path / 'snapshots'}"
        )
    return found[0]
