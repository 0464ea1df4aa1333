"""The quickstart notebook: committed without outputs; it runs in time and does what it says."""

import json
import os
import resource
from pathlib import Path

import nbclient
import nbformat
import pytest
from helpers.tiny import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
# Of user and system time of all cores, compiling included; two cores need half of it and more.
MOST_CPU_SECONDS = 180
# Run after the notebook's last cell, in its kernel.
COUNT = """
import json

from erase.evaluation.judge import open_judge

judge = open_judge("../models/emoji-flux/judge")
labels = ["soccer ball", "soccer ball", "volleyball", "car", "apple", "dog"]
print(json.dumps([judge.finds(p, labels, prompts).tolist() for p in (before, after)]))
"""


def test_the_notebook_has_no_outputs():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    # Neither which machine wrote it, nor how long it took.
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)


@pytest.mark.slow
def test_the_notebook_erases_within_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(COUNT))
    (tmp_path / "examples").mkdir()
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # A user has neither the tests' cache of compiled functions nor one thread. Their flags stay, as
    # compiling takes a fifth less time, but no optimization at all would train slowly.
    for name in ("JAX_COMPILATION_CACHE_DIR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    flags = os.environ["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
    monkeypatch.setenv("XLA_FLAGS", flags)
    used = cpu_seconds()
    place = {"metadata": {"path": str(tmp_path / "examples")}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
    used = cpu_seconds() - used
    before, after = json.loads(notebook.cells[-1].outputs[-1]["text"])
    assert before == [True] * 6
    assert after == [False] * 2 + [True] * 4
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert (tmp_path / "runs/quickstart/adapter/pytorch_lora_weights.safetensors").is_file()
    assert used < MOST_CPU_SECONDS


def cpu_seconds() -> float:
    """Of processes that this one has started and that have ended: the kernel, after a run."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
