"""Run-time checks of annotations by beartype, with four adaptations to this code."""

import inspect
import typing
from typing import Any

import flax.struct
import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException
from jaxtyping import _decorator

# An int is accepted as a float (PEP 484), as by pyright.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
# The same for functions without arrays, with jaxtyping's error.
plain = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))

# JAX rebuilds trees from arbitrary leaves, such as shapes or axes, so constructors of trees accept
# anything; the functions that use the trees are checked.
flax.struct.PyTreeNode.__no_type_check__ = True

# Functions of JAX arrays accept NumPy's as well: tests and programs pass both.
jaxtyping.Array = jax.Array | np.ndarray

# jaxtyping checks parameters twice and binds them at each call, so that axes can be compared: half
# of the time of functions that have none. These are checked by beartype alone.
jaxtyped = _decorator.jaxtyped


def needs_jaxtyping(annotation: Any) -> bool:
    """Whether an annotation may name axes or a tree; text may."""
    if isinstance(annotation, str | typing.ForwardRef | typing.TypeVar):
        return True
    if inspect.isclass(annotation) and any(
        each.__module__.startswith("jaxtyping") for each in (type(annotation), *annotation.__mro__)
    ):
        return True
    if typing.get_origin(annotation) is typing.Literal:
        return False
    if isinstance(annotation, list | tuple):
        return any(map(needs_jaxtyping, annotation))
    return any(map(needs_jaxtyping, typing.get_args(annotation)))


def only_beartype(function: Any) -> bool:
    """Whether a function's annotations are none of jaxtyping's; generators are left to it."""
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
        return False
    if inspect.iscoroutinefunction(function) or function.__name__ == "__init__":
        return False
    return not any(map(needs_jaxtyping, function.__annotations__.values()))


def decorated(function: Any = None, *, typechecker: Any) -> Any:
    """jaxtyping's decorator, except for functions that do not need it."""
    if function is None:
        return lambda given: decorated(given, typechecker=typechecker)
    if only_beartype(function):
        try:
            return plain(function)
        except BeartypeDecorHintException:
            pass
    return jaxtyped(function, typechecker=typechecker)


_decorator.jaxtyped = jaxtyping.jaxtyped = decorated
