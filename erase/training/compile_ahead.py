"""Compile the updates while weights are read and banks are computed.

Compiling needs only shapes. On a GPU the compiler works on the host's cores, which otherwise wait.
"""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
from jaxtyping import PyTree

from erase.config.schema import Config
from erase.methods.base import Step
from erase.methods.parts.compiled import StepContext
from erase.model.open import place_model
from erase.training.memory_plan import updates
from erase.training.prepare import shared_settings
from flux_jax.pipeline import Pipeline


@contextlib.contextmanager
def compiling_updates(configs: Mapping[str, Config], pipe: Pipeline) -> Iterator[None]:
    """Compile the updates of runs in threads; the block ends when they are compiled.

    Training finds the programs in JAX's memory. An error is not raised here: training meets it
    again. Several processes must compile in the same order, so they compile when they train.

    Args:
        configs: configurations of the runs, by name.
        pipe: the frozen model; its weights need not be read.
    """
    if jax.process_count() > 1:
        yield
        return
    shared = shared_settings(configs)
    planned = updates(shared, len(configs), place_model(pipe, shared, len(configs)))
    with ThreadPoolExecutor(max(1, len(planned)), "compiling") as pool:
        for step, arguments, context in planned.values():
            pool.submit(_compile, step, arguments, context)
        yield


def _compile(step: Step, arguments: tuple[PyTree, ...], context: StepContext[object]) -> None:
    """Compile an update for the shapes of its arguments."""
    step.update.lower(*arguments, context=context).compile()
