"""Without PyTorch, no advice to install it is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny import ROOT

# transformers finds packages by their spec.
HIDDEN = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "torch" else found(name, *more)
"""
ADVICE = "PyTorch was not found"
NO_ADVICE, VERBOSITY = "TRANSFORMERS_NO_ADVISORY_WARNINGS", "TRANSFORMERS_VERBOSITY"


def imported(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process without PyTorch."""
    kept = {name: os.environ[name] for name in os.environ if name not in (NO_ADVICE, VERBOSITY)}
    return subprocess.run(
        [sys.executable, "-c", HIDDEN + code],
        env=kept | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.slow
def test_nothing_is_said_on_import():
    # Import order matters: importing `erase` alone reaches the tokenizers by another path.
    asked = (
        "import erase.data.words.word_tokens, flux_jax, os; "
        "from flux_jax.models.tokenizers import T5Tokenizer; print(os.environ.get('"
        + NO_ADVICE
        + "'))"
    )
    done = imported(asked)
    assert done.stderr == ""
    # Later advice is not suppressed.
    assert done.stdout == "None\n"


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{VERBOSITY: "warning"}, {NO_ADVICE: ""}])
def test_who_asks_for_it_is_told(setting: dict[str, str]):
    assert (
        ADVICE in imported("from flux_jax.models.tokenizers import T5Tokenizer", **setting).stderr
    )


def test_transformers_is_imported_in_one_place():
    direct = re.compile(r"^\s*(from|import) transformers\b", re.MULTILINE)
    folders = ("convert", "erase", "flux_jax", "recipes", "configs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [path.relative_to(ROOT) for path in files if direct.search(path.read_text())]
    assert found == [Path("flux_jax/models/tokenizers.py")]
