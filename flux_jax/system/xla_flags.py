"""XLA flags set before JAX starts its backend, and reports of compilation."""

import contextlib
import os
from collections.abc import Iterator

from flux_jax import progress
from flux_jax.errors import InputError

# XLA's Triton matrix products are slow on the shapes of FLUX.1. Merging products that share an
# argument copies their weights side by side.
FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_dot_merger_threshold_mb=0"
# Share of a GPU's memory that arrays may take. JAX's default, 0.75, is too little at 1024 x 1024.
MEMORY = "0.92"
# JAX's monitoring events, in the order in which they are sent for each program.
TRACED = "/jax/core/compile/jaxpr_trace_duration"
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILED = "/jax/core/compile/backend_compile_duration"
# Seconds of tracing and lowering from which a program is large; only compiling these is shown.
LARGE = 0.1


def set_flags() -> None:
    """Adds `FLAGS` and `MEMORY` to the environment; values that the user has set take precedence.

    Call it before anything is computed.

    Raises:
        InputError: XLA_FLAGS has control characters, which XLA would print.
    """
    if not os.environ.get("XLA_FLAGS", "").isprintable():
        raise InputError("XLA_FLAGS has control characters; set it again or unset it")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY)
    os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()


@contextlib.contextmanager
def told(bar: progress.Bar) -> Iterator[None]:
    """Lets a progress bar show when a large program is compiled, and leave this out of its rate."""
    from jax import monitoring

    seconds = 0.0

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        nonlocal seconds
        if event in (TRACED, LOWERED):
            seconds += duration_secs
        if event == LOWERED and seconds >= LARGE:
            bar.compiles()
        if event == COMPILED:
            seconds = 0.0
            bar.compiled()

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        monitoring.unregister_event_duration_listener(listen)
