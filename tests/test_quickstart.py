"""The quickstart notebook: committed without outputs; it runs in time and does what it says."""

import nbformat
import pytest

from docs.site import notebook

# Of user and system time of all cores, compiling included; two cores need half of it and more.
MOST_CPU_SECONDS = 180


def test_the_notebook_has_no_outputs():
    committed = nbformat.read(notebook.NOTEBOOK, 4)
    nbformat.validate(committed)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    # Neither which machine wrote it, nor how long it took.
    assert set(committed.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in committed.cells)


@pytest.mark.slow
def test_the_notebook_erases_within_its_time():
    done = notebook.executed()
    before, after = done.metadata["run"]["check"]
    assert before == [True] * 6
    assert after == [False] * 2 + [True] * 4
    pictures = [
        output
        for cell in done.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert done.metadata["run"]["files"] == [
        "runs/quickstart/adapter/pytorch_lora_weights.safetensors"
    ]
    assert done.metadata["run"]["cpu_seconds"] < MOST_CPU_SECONDS
