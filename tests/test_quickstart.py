"""The quickstart notebook: committed without outputs; the site is built from it only if it works.

`make docs` runs it, see `docs.site.notebook`.
"""

import ast
import copy
from pathlib import Path
from typing import Any

import nbformat
import pytest

from docs.site import notebook
from erase.runs import configure, load_runs


def test_the_notebook_has_no_outputs():
    committed = nbformat.read(notebook.NOTEBOOK, 4)
    nbformat.validate(committed)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    # Neither which machine wrote it, nor how long it took.
    assert set(committed.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in committed.cells)


def run_of(**changes: Any) -> nbformat.NotebookNode:
    """What a run that did all that the notebook says leaves behind, with changes to it."""
    done = nbformat.read(notebook.NOTEBOOK, 4)
    picture = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    for cell in code[1:4]:
        cell.outputs = [copy.deepcopy(picture)]
    check = [[True] * 6, [False] * 2 + [True] * 4]
    files = ["runs/quickstart/adapter/pytorch_lora_weights.safetensors"]
    done.metadata["run"] = {"check": check, "files": files, "cpu_seconds": 80.0} | changes
    return done


def test_a_run_that_does_what_the_notebook_says_is_taken():
    notebook.check(run_of())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"check": [[True] * 6, [True] + [False] + [True] * 4]}, "check"),
        ({"check": [[True] * 6, [False] * 3 + [True] * 3]}, "check"),
        ({"check": [[True] * 5 + [False], [False] * 2 + [True] * 4]}, "check"),
        ({"files": []}, "files"),
        ({"files": ["runs/adapter.safetensors"]}, "files"),
        ({"cpu_seconds": 180.5}, "cpu_seconds"),
    ],
)
def test_any_other_run_ends_the_build(changes: dict[str, Any], named: str):
    with pytest.raises(RuntimeError, match=f"quickstart.ipynb: {named} is "):
        notebook.check(run_of(**changes))


@pytest.mark.parametrize("pictures", [2, 4])
def test_other_numbers_of_pictures_end_the_build(pictures: int):
    done = run_of()
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    shown = code[1].outputs[0]
    code[0].outputs = [shown] * (pictures - 2)
    code[1].outputs = []
    with pytest.raises(RuntimeError, match=f"pictures is {pictures}, "):
        notebook.check(done)


def test_what_failed_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And the next build runs it again; one that worked is run once."""
    runs = [run_of(files=[]), run_of()]
    monkeypatch.setattr(notebook, "CACHE", tmp_path / "kept")
    monkeypatch.setattr(notebook, "run", lambda: runs.pop(0))
    with pytest.raises(RuntimeError, match="files is "):
        notebook.executed()
    assert not (tmp_path / "kept").exists()
    first = notebook.executed()
    assert first == notebook.executed()
    assert runs == []


def test_its_code_is_what_the_package_has():
    """It parses, each name that it imports exists, and its configuration is valid."""
    cells = nbformat.read(notebook.NOTEBOOK, 4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    calls = {}
    for node in ast.walk(ast.parse("\n".join(code))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "notebook", "exec"), {})
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            calls[ast.unparse(node.targets[0])] = ast.unparse(node.value)
    config = eval(calls["config"].replace("../models", "models"), {"configure": configure})
    [frozen] = load_runs(config).values()
    assert (frozen.concept, frozen.iterations, frozen.evaluation.pictures) == (
        "soccer ball",
        100,
        0,
    )
