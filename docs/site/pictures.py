"""Make the pictures of the tutorials: `python -m docs.site.pictures OUT`.

On a CPU, with the shipped small model: a short training run on two concepts, its report, and
pictures at several strengths. The run is far shorter than the measured ones, so that a build takes
about a minute; RESULTS.md has the figures.
Axis letters: K columns, h w picture sides.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "pictures"
BROWSER = "chromium"
# Sides of a screenshot in pixels, by its name.
REPORT_SIZE = (1180, 1500)
# What decides how the pictures look.
CONTENT = ("flux_jax", "convert", "erase", "models/emoji-flux", "docs/site/pictures.py")
MODEL = "models/emoji-flux"
CONCEPTS = ("cat", "car")
PROMPTS = ("a photo of a cat", "a photo of a car", "a photo of a dog", "a picture of a house")
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
# Compiling better than this takes longer than it saves in so short a run.
XLA_FLAGS = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"


def missing() -> str | None:
    """What the build needs and does not find, in a line; None if it has all."""
    if shutil.which(BROWSER):
        return None
    return (
        f"{BROWSER} is missing, which takes the report's screenshots: install it with the system's "
        "packages (apt-get install chromium)"
    )


def key(content: Sequence[str]) -> str:
    """A digest of the code, templates, notebooks and models in files and folders."""
    digest = hashlib.sha256()
    for name in content:
        path = ROOT / name
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*.*"))
        for file in files:
            if file.is_file() and file.suffix in (".py", ".j2", ".json", ".safetensors", ".ipynb"):
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def pictures() -> dict[str, Path]:
    """Files of the pictures by name, made in a process of its own where none are kept.

    Raises:
        RuntimeError: they cannot be made.
    """
    folder = CACHE / key(CONTENT)
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
            flags = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
            done = subprocess.run(
                [sys.executable, "-m", "docs.site.pictures", unfinished],
                cwd=ROOT,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"the tutorials' pictures: {done.stderr.strip()[-600:]}")
            screenshot(
                Path(unfinished, "run", "cat", "report.html"), Path(unfinished, "report.png")
            )
            ready = Path(unfinished, "ready")
            ready.mkdir()
            for file in Path(unfinished).glob("*.png"):
                file.rename(ready / file.name)
            ready.rename(folder)
    return {file.name: file for file in sorted(folder.glob("*.png"))}


def screenshot(page: Path, out: Path) -> None:
    """Take a picture of the top of a local page.

    Raises:
        RuntimeError: the browser fails.
    """
    width, height = REPORT_SIZE
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                BROWSER,
                "--headless=new",
                # Containers run as root, where Chromium has no sandbox; the page is our own file.
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                f"--screenshot={out}",
                page.resolve().as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    if done.returncode or not out.is_file():
        raise RuntimeError(
            f"{BROWSER} took no picture of {page.name}: {done.stderr.strip()[-400:]}"
        )


def make(out: Path) -> None:
    """Train, evaluate and draw; what is written is `run/` and the pictures."""
    from erase.runs import configure, load_runs
    from erase.training.run import run

    small = configure(
        model={"path": MODEL},
        iterations=20,
        steps=4,
        bank={"trajectories": 8, "sentences": 8},
        lower={"learning_rate": 5e-3},
        upper={"pictures": 8, "negatives": 1},
        evaluation={
            "pictures": 4,
            "examples": 4,
            "attention_examples": 1,
            "batch": 12,
            "steps": 4,
        },
        each={name: {"concept": name} for name in CONCEPTS},
    )
    run(load_runs(small), out / "run", command="make docs")
    shutil.copy(out / "run" / "cat" / "before_after.png", out / "before_after.png")
    draw_rows(out)


def draw_rows(out: Path) -> None:
    """Draw sheets whose rows differ in the adapters' strengths, or in the method."""
    from erase.evaluation.sheets import Group, captioned
    from erase.model.adapters import read_adapter
    from erase.model.draw import draw, png
    from flux_jax.pipeline import load
    from flux_jax.settings import SamplingOptions

    pipe = load(MODEL)
    options = SamplingOptions(steps=4, batch=len(PROMPTS))
    cat, car = (read_adapter(out / "run" / name) for name in CONCEPTS)

    def row(strengths: Sequence[float], silenced: str | None = None):
        adapters = list(zip((cat, car), strengths, strict=True))
        return draw(pipe, PROMPTS, range(len(PROMPTS)), options, adapters, silenced)

    base = row((0.0, 0.0))
    sheets = {
        "strengths": {f"strength {s:g}": row((s, 0.0)) if s else base for s in STRENGTHS},
        "together": {
            "base": base,
            "cat alone": row((1.0, 0.0)),
            "sum of both": row((1.0, 1.0)),
            "normalized": row((0.5, 0.5)),
        },
        "methods": {
            "base": base,
            "attention erasure": row((0.0, 0.0), "cat"),
            "EraseAnything": row((1.0, 0.0)),
        },
    }
    for name, rows in sheets.items():
        (out / f"{name}.png").write_bytes(png(captioned([Group("", PROMPTS, rows)])))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
