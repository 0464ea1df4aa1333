"""Run examples/quickstart.ipynb and make a page of the site from it.

The build fails where the notebook does not do what it says. A run that does is kept in
build/notebook, and is taken again while the code stays as it is.
"""

import json
import os
import resource
import tempfile
from pathlib import Path

import nbclient
import nbformat

from docs.site import links
from docs.site.pictures import CONTENT, XLA_FLAGS, key

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
CACHE = ROOT / "build" / "notebook"
PAGE = "quickstart.md"
# Of user and system time of all cores, compiling included; two cores need half of it and more.
MOST_CPU_SECONDS = 180
# In which pictures the concept or thing is found: all before, and not the concept after.
FOUND = [[True] * 6, [False] * 2 + [True] * 4]
FILES = ["runs/quickstart/adapter/pytorch_lora_weights.safetensors"]
PICTURES = 3
# Runs after the last cell, in the same kernel, and is not shown: in which pictures the judge finds
# what was asked for, before and after.
CHECK = """
import json

from erase.evaluation.judge import open_judge

judge = open_judge("../models/emoji-flux/judge")
labels = ["soccer ball", "soccer ball", "volleyball", "car", "apple", "dog"]
print(json.dumps([judge.finds(p, labels, prompts).tolist() for p in (before, after)]))
"""


def executed() -> nbformat.NotebookNode:
    """The notebook with its outputs, run on the CPU where no run of this code is kept.

    Its metadata hold `check`, what `CHECK` prints; `files`, those of the run's folder; and
    `cpu_seconds`, user and system time of the kernel on all cores.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell ended with an error.
        RuntimeError: it does not do what it says, see `check`.
    """
    kept = CACHE / f"{key((*CONTENT, 'examples', 'docs/site/notebook.py'))}.ipynb"
    if not kept.is_file():
        notebook = run()
        check(notebook)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=CACHE, encoding="utf-8", delete=False) as file:
            nbformat.write(notebook, file)
        Path(file.name).replace(kept)
    return nbformat.read(kept, 4)


def run() -> nbformat.NotebookNode:
    """Run the notebook in a temporary folder with the shipped model, see `executed`."""
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK))
    # Compiling as users do would take a fifth more time.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = XLA_FLAGS
    for name in ("JAX_COMPILATION_CACHE_DIR", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "examples")
        home.mkdir()
        Path(folder, "models").symlink_to(ROOT / "models")
        place = {"metadata": {"path": str(home)}}
        client = nbclient.NotebookClient(
            notebook, timeout=900, kernel_name="python3", resources=place
        )
        client.execute(env=environment)
        files = sorted(
            str(path.relative_to(folder)) for path in Path(folder, "runs").rglob("*.safetensors")
        )
    check = json.loads(notebook.cells.pop().outputs[-1]["text"])
    for cell in notebook.cells:
        # Progress bars are for those who wait.
        if "outputs" in cell:
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata["run"] = {
        "check": check,
        "files": files,
        "cpu_seconds": cpu_seconds() - before,
    }
    return notebook


def check(done: nbformat.NotebookNode) -> None:
    """Check what a run left: the concept alone is gone, all files are there, and in time.

    Raises:
        RuntimeError: it is not so.
    """
    ran = done.metadata["run"]
    pictures = sum(
        "image/png" in output.get("data", {})
        for cell in done.cells
        for output in cell.get("outputs", [])
    )
    for name, found, wanted in (
        ("check", ran["check"], FOUND),
        ("files", ran["files"], FILES),
        ("pictures", pictures, PICTURES),
    ):
        if found != wanted:
            raise RuntimeError(f"quickstart.ipynb: {name} is {found}, not {wanted}")
    if (seconds := ran["cpu_seconds"]) >= MOST_CPU_SECONDS:
        raise RuntimeError(
            f"quickstart.ipynb: cpu_seconds is {seconds:.0f}, not below {MOST_CPU_SECONDS}"
        )


def cpu_seconds() -> float:
    """Of processes that this one has started and that have ended: the kernel, after a run."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def page() -> tuple[str, dict[str, bytes]]:
    """The page in Markdown, text, code and outputs, and its pictures by their place."""
    # Linters need not have the packages of the extra `docs`.
    from nbconvert import MarkdownExporter  # pyright: ignore[reportMissingImports]

    notebook = executed()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = links.relocated(cell.source, "examples", PAGE)
    resources = {"unique_key": "quickstart", "output_files_dir": "pictures"}
    text, made = MarkdownExporter().from_notebook_node(notebook, resources=resources)
    return text.replace("![png]", "![Pictures that the cell above drew]"), made["outputs"]
