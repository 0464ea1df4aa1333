"""Annotations are checked while tests run, and few are hidden from the type checker."""

import importlib
import re

import jax.numpy as jnp
import pytest
from helpers.tiny import ROOT
from jaxtyping import TypeCheckError

from erase.methods.parts.losses import squared_error
from flux_jax.sampling import Schedule


def test_axes_of_one_letter_must_agree():
    velocity, target = jnp.zeros((2, 3, 4)), jnp.zeros((2, 5, 4))
    with pytest.raises(TypeCheckError, match=r"(?s)squared_error.*'target'.*f32\[2,5,4\]"):
        squared_error(velocity, target)


def test_types_must_be_as_annotated():
    with pytest.raises(TypeCheckError, match=r"(?s)sigmas.*'steps'.*Actual value: 'four'"):
        Schedule().sigmas("four", 16)


@pytest.mark.parametrize(
    "module", ["flux_jax.lora", "convert.merge", "erase.training.loop", "recipes.emoji_flux.fit"]
)
def test_every_package_is_checked(module: str):
    loader = importlib.import_module(module).__loader__
    assert type(loader).__name__ == "_JaxtypingLoader"


def test_few_lines_are_hidden_from_the_type_checker():
    files = [
        path for name in ("flux_jax", "convert", "erase") for path in ROOT.glob(f"{name}/**/*.py")
    ]
    ignores = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        for line in path.read_text().splitlines()
        if re.search(r"#\s*(pyright|type):\s*ignore", line)
    ]
    assert len(ignores) <= 5, ignores
