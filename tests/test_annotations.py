"""Annotations are checked while tests run, and few are hidden from the type checker."""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import jax.numpy as jnp
import pytest
from helpers import annotations
from helpers.tiny import ROOT
from jaxtyping import Array, Float, PyTree, TypeCheckError

from erase.methods.parts.losses import squared_error
from flux_jax.sampling import Schedule


def test_axes_of_one_letter_must_agree():
    velocity, target = jnp.zeros((2, 3, 4)), jnp.zeros((2, 5, 4))
    with pytest.raises(TypeCheckError, match=r"(?s)squared_error.*'target'.*f32\[2,5,4\]"):
        squared_error(velocity, target)


def test_types_must_be_as_annotated():
    with pytest.raises(TypeCheckError, match=r"(?s)sigmas.*'steps'.*Actual value: 'four'"):
        Schedule().sigmas("four", 16)


AXES = Float[Array, "a b"]


@pytest.mark.parametrize(
    "annotation",
    [
        *(AXES, PyTree, PyTree[int], PyTree[AXES], "int", AXES | None),
        *(list[AXES], dict[str, tuple[AXES, ...]], Callable[[AXES], int], Callable[[int], AXES]),
        *(type[AXES], Annotated[AXES, "x"], Sequence[Mapping[str, AXES]], TypeVar("T")),
    ],
    ids=str,
)
def test_axes_are_compared_wherever_they_are_named(annotation: Any):
    def function(x, y): ...

    function.__annotations__ = {"x": int, "y": annotation}
    assert not annotations.only_beartype(function)
    function.__annotations__ = {"x": annotation, "return": None}
    assert not annotations.only_beartype(function)


@pytest.mark.parametrize(
    "annotation", [int, None, Array, list[int], Callable[..., Any], Schedule | None, Literal["a"]]
)
def test_functions_without_axes_are_checked_by_beartype_alone(annotation: Any):
    def function(x): ...

    function.__annotations__ = {"x": annotation}
    assert annotations.only_beartype(function)


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
