"""Draw the persons with DiceBear, and keep the drawings as sprites.

Axis letters: M drawings, N persons.
"""

import json
import shutil
import subprocess  # nosec B404
import tarfile
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from flux_jax import progress
from flux_jax.errors import InputError
from recipes import npm
from recipes.emoji_flux.sprites import draw_svg, fit
from recipes.people.persons import PERSONS, STYLES, drawings

# The code is under MIT; the styles in `persons.STYLES` are under CC0 1.0, which is checked.
PACKAGES = {"core": "@dicebear/core@10.7.0", "styles": "@dicebear/styles@10.6.0"}
LICENCE = "CC0 1.0"
# Pictures of each person, as in the paper.
COUNT = 50


def unpack(cache: Path) -> Path:
    """Fetch DiceBear and unpack it into a `node_modules` folder, which is returned.

    Raises:
        InputError: a package cannot be fetched, or a style has another licence.
    """
    modules = cache / "node_modules"
    for name, package in PACKAGES.items():
        with tarfile.open(npm.fetch(package, cache)) as archive:
            archive.extractall(modules / "@dicebear", filter="data")
        target = modules / "@dicebear" / name
        shutil.rmtree(target, ignore_errors=True)
        (modules / "@dicebear" / "package").rename(target)
    for style in STYLES:
        definition = json.loads((modules / f"@dicebear/styles/src/{style}.json").read_text())
        licence = definition["meta"]["license"]["name"]
        if licence != LICENCE:
            raise InputError(f"{style}: licence is {licence!r}, expected {LICENCE!r}; review it")
    return modules


def draw_svgs(requests: list[dict[str, object]], cache: Path) -> list[str]:
    """Draw avatars with DiceBear.

    Args:
        requests: style and options of each drawing.
        cache: folder for the packages.

    Raises:
        InputError: Node.js is missing or fails.
    """
    node = shutil.which("node")
    if node is None:
        raise InputError("node: not found, so persons cannot be drawn; install Node.js 20 or later")
    command = [node, str(Path(__file__).with_name("avatars.mjs")), str(unpack(cache).absolute())]
    # No shell; the script is in this folder.
    result = subprocess.run(  # nosec B603
        command, input=json.dumps(requests), capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise InputError(f"node avatars.mjs failed: {result.stderr.strip()[-300:]}")
    return json.loads(result.stdout)


def build(
    cache: Path, out: Path, count: int = COUNT
) -> tuple[UInt8[np.ndarray, "M 64 64 4"], Int[np.ndarray, "M"]]:
    """Draw every person and write the sprites.

    Args:
        cache: folder for the npm packages.
        out: `.npz` file to write, with `pixels` and `person`.
        count: drawings of each person.

    Returns:
        Pixels, premultiplied RGBA, and the index of each drawing's person.
    """
    person = np.repeat(np.arange(len(PERSONS), dtype=np.int32), count)
    requests: list[dict[str, object]] = [
        {"style": each.style, "options": options}
        for each in PERSONS
        for options in drawings(each, count, seed=0)
    ]
    svgs = progress.bar(draw_svgs(requests, cache), desc="drawing", unit="drawing")
    pixels = np.stack([fit(draw_svg(svg)) for svg in svgs])
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial.npz")
    np.savez_compressed(partial, pixels=pixels, person=person)
    partial.rename(out)
    return pixels, person


def load(workdir: Path) -> tuple[UInt8[np.ndarray, "M 64 64 4"], Int[np.ndarray, "M"]]:
    """Return what `build` wrote into `drawings.npz` of a folder; it is drawn if missing."""
    path = workdir / "drawings.npz"
    if not path.exists():
        return build(workdir / "npm", path)
    with np.load(path) as file:
        return file["pixels"], file["person"]
