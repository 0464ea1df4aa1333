"""Models from the Hugging Face hub, under the name of their repository."""

import os
import re
from pathlib import Path
from typing import Any

from flux_jax import progress
from flux_jax.errors import InputError
from flux_jax.weights.tables import COMPONENTS

NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What a pipeline is read from; the single files of the same model are left out.
WANTED = (
    "model_index.json",
    "scheduler/*.json",
    *(f"tokenizer{number}/*" for number in ("", "_2")),
    *(f"{name}/*.{kind}" for name in COMPONENTS for kind in ("json", "safetensors")),
)


def check_model(given: str) -> None:
    """Makes sure that a model is a path that there is, or is named as on the hub; asks nobody.

    Raises:
        InputError: it is neither.
    """
    # Unlike the path's own method this does not raise where no such name can be.
    if not os.path.exists(given) and not NAME.fullmatch(given):
        raise InputError(f"model = {given!r} does not exist; check the path")


def find_model(given: str) -> Path:
    """The path of a model; one that is named as on the hub is fetched, or found in its cache.

    Args:
        given: a path, or "owner/name". What exists as a path is one.

    Raises:
        InputError: there is no such path or repository, its licence was not accepted, or the hub
            cannot be reached.
    """
    check_model(given)
    return _snapshot(Path(given)) if os.path.exists(given) else _fetch(given)


def _fetch(name: str) -> Path:
    """A repository's files, from the hub or from its cache.

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
        # The hub asks for tqdm.auto's class and takes what behaves alike.
        bars: Any = progress.kind()
        # The newest of what the user names; weights and settings alone, of which none is run.
        folder = snapshot_download(name, allow_patterns=list(WANTED), tqdm_class=bars)  # nosec B615
        return Path(folder)
    except GatedRepoError as error:
        raise InputError(
            f"model = {name!r}: its licence must be accepted on {page} first; then log in with "
            "`hf auth login`, or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"model = {name!r} is neither a path here nor a repository that this account may see "
            f"on {page}: check the name; for a private one log in with `hf auth login`, or set "
            "HF_TOKEN"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"model = {name!r} is no path here and could not be fetched from {page} "
            f"({type(error).__name__}: {str(error).splitlines()[0]}): check the network, or give "
            "a folder"
        ) from error


def _snapshot(path: Path) -> Path:
    """A path, or for a repository's folder in the hub's cache the version in it.

    Raises:
        InputError: there is more than one version.
    """
    if not path.absolute().name.startswith("models--") or not (path / "snapshots").is_dir():
        return path
    main, found = path / "refs" / "main", sorted((path / "snapshots").iterdir())
    if main.is_file() and (path / "snapshots" / main.read_text().strip()) in found:
        return path / "snapshots" / main.read_text().strip()
    if len(found) != 1:
        raise InputError(
            f"model = {str(path)!r} is the hub's cache with {len(found)} versions; give the folder "
            f"of one in {path / 'snapshots'}"
        )
    return found[0]
