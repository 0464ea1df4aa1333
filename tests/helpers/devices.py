"""Run code with another number of devices in a subprocess, since the number is fixed at start."""

import os
from pathlib import Path
from subprocess import CompletedProcess

from helpers import warm

TESTS = Path(__file__).resolve().parents[1]
# More devices than cores wait for each other, for long if the machine is busy.
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
# Several collectives wait at once. With XLA's one thread per device, devices that begin with
# different ones block all threads for ever.
THREADS_A_DEVICE = 8


def run_on(devices: int, code: str) -> CompletedProcess[str]:
    """Run Python code, in which tests can be imported, with this many CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {PATIENT}"
    flags += f" --xla_force_host_platform_device_count={devices}"
    return warm.run(
        *("-c", code),
        env={
            "XLA_FLAGS": flags,
            "PJRT_NPROC": str(THREADS_A_DEVICE * devices),
            # Nothing else compiles for so many devices.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },
        timeout=900,
    )
