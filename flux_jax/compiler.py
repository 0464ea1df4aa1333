"""What XLA is told before JAX starts its backend."""

import os

# XLA's Triton products are slow on the shapes of FLUX.1, and products that share an argument are
# merged at the cost of copying their weights side by side.
FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_dot_merger_threshold_mb=0"
# Share of a GPU's memory that arrays may take. JAX's own, 0.75, is too little at 1024 x 1024.
MEMORY = "0.92"


def set_flags() -> None:
    """Adds `FLAGS` and `MEMORY` to the environment; what the user sets there wins.

    To be called before anything is computed.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY)
    os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
