"""Fetch pinned packages from npm."""

import shutil
import subprocess  # nosec B404
from pathlib import Path

from flux_jax.errors import InputError


def archive_name(package: str) -> str:
    """Return the file name that `npm pack` writes for "NAME@VERSION"."""
    name, version = package.rsplit("@", 1)
    return f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def fetch(package: str, cache: Path) -> Path:
    """Download a package, unless it is cached, and return its archive.

    Args:
        package: "NAME@VERSION".
        cache: folder of the archives.

    Raises:
        InputError: npm is missing or cannot fetch the package.
    """
    archive = cache / archive_name(package)
    if archive.exists():
        return archive
    if shutil.which("npm") is None:
        raise InputError(
            f"npm: not found, so {package} cannot be fetched; install Node.js, or put "
            f"{archive.name} into {cache}"
        )
    cache.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", package]
    # No shell; the package's name and version are constants of the recipes.
    result = subprocess.run(  # nosec B603
        command, cwd=cache, capture_output=True, text=True, check=False
    )
    if result.returncode or not archive.exists():
        raise InputError(f"{package}: `{' '.join(command)}` failed: {result.stderr.strip()}")
    return archive
