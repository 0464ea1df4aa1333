"""What XLA is told before JAX starts its backend."""

import os

# XLA's Triton products are slow on the shapes of FLUX.1.
FLAGS = "--xla_gpu_enable_triton_gemm=false"


def set_flags() -> None:
    """Adds `FLAGS` to the environment's XLA_FLAGS; what the user sets comes last and wins.

    To be called before anything is computed.
    """
    os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
