"""Workloads at FLUX.1 [dev]'s size, and the file of their measurements.

A result is a dictionary of sides ("ours", and diffusers "eager" and "compiled"); each has its
`machine` and a record for each of its `works`, the workloads.
"""

import json
import re
import statistics
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from absl import flags
from jaxtyping import Float

from benchmarks.make_checkpoint import configs
from erase.runtime.files import read_json, write
from flux_jax.errors import InputError, nearest
from flux_jax.sampling import Schedule
from flux_jax.weights.original import schedule_config

Kind = Literal["forward", "sample", "step", "iteration"]
Record = dict[str, Any]
Result = dict[str, Any]

SIDES = ("ours", "eager", "compiled")
SIZES = configs("dev")["transformer"]
# Warm-up passes, and Euler steps of a picture.
WARM_UPS, STEPS = 2, 28
GUIDANCE = 3.5
PIXELS_PER_TOKEN = 16
# Rank, learning rate and weight decay of the trained adapter.
RANK, RATE, DECAY = 8, 1e-3, 0.01

OUT_OF_MEMORY = "out of memory"
# Record of a started workload; it remains if the process dies.
UNFINISHED = {"error": "not finished"}


@dataclass(frozen=True)
class Work:
    """A workload to time.

    Attributes:
        kind: "forward" is one velocity; "sample" the Euler steps of a picture, without text
            encoders and autoencoder; "step" the gradient of the velocity's mean squared error to a
            random target with respect to an adapter, and AdamW's update; "iteration" both updates
            of a run.
        pixels: side of the picture.
        text_tokens: T5's.
        batch: pictures.
        checkpointed: whether backward passes recompute blocks (gradient checkpointing).
    """

    kind: Kind
    pixels: int
    text_tokens: int
    batch: int = 1
    checkpointed: bool = False

    @property
    def image_tokens(self) -> int:
        """Tokens of the picture."""
        return (self.pixels // PIXELS_PER_TOKEN) ** 2

    @property
    def sigmas(self) -> Float[np.ndarray, "steps+1"]:
        """Noise levels of a picture."""
        return Schedule.from_dict(schedule_config(True)).sigmas(STEPS, self.image_tokens)


# In the order in which they are measured: diffusers' model gets its adapter with the first step.
WORKS = {
    "forward-512": Work("forward", 512, 256),
    "forward-512-batch-4": Work("forward", 512, 256, batch=4),
    "forward-1024": Work("forward", 1024, 512),
    "sample-1024": Work("sample", 1024, 512),
    "step-512": Work("step", 512, 256),
    "step-512-checkpointed": Work("step", 512, 256, checkpointed=True),
    "step-1024": Work("step", 1024, 512),
    "step-1024-checkpointed": Work("step", 1024, 512, checkpointed=True),
    "iteration-512": Work("iteration", 512, 256),
}


def define_flags() -> None:
    """Declare the flags of all commands; a function, so that importing this declares none."""
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_list("works", list(WORKS), "Names of workloads, separated by commas.")
    flags.DEFINE_integer("repeats", 10, "Repeats of each, after warm-up.", lower_bound=10)


def chosen(names: Sequence[str], side: str) -> dict[str, Work]:
    """The named workloads that a side has, in the order of `WORKS`.

    Raises:
        InputError: a name is unknown.
    """
    if unknown := sorted(set(names) - set(WORKS)):
        raise InputError(f"works = {unknown[0]!r} is unknown; {nearest(unknown[0], WORKS)}")
    return {
        name: work
        for name, work in WORKS.items()
        if name in names and (side == "ours" or work.kind != "iteration")
    }


def times(samples: Sequence[float]) -> Record:
    """Median, fastest and slowest of the repeats."""
    return {
        "seconds": statistics.median(samples),
        "fastest": min(samples),
        "slowest": max(samples),
        "repeats": len(samples),
    }


def attempt(measure: Callable[[], Record]) -> Record:
    """A workload's record, or the error that ended it, so that the others still run."""
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        return {"error": reason(error)}


def reason(error: Exception) -> str:
    """The error in one line; `OUT_OF_MEMORY` for all errors of that kind."""
    said = f"{type(error).__name__}: {error}"
    if re.search(r"out ?of ?memory|RESOURCE_EXHAUSTED|ALLOC_FAILED", said, re.IGNORECASE):
        return OUT_OF_MEMORY
    return said.strip().splitlines()[0][:200]


def merged(result: Mapping[str, Any], side: str, entry: Mapping[str, Any]) -> Result:
    """Add a side's records; its older records are kept only if they are from the same machine."""
    older = result.get(side, {})
    if older.get("machine") != entry["machine"]:
        older = {"works": {}}
    return {**result, side: {**older, **entry, "works": {**older["works"], **entry["works"]}}}


def read(file: Path) -> Result:
    """Read the result file; empty if there is none."""
    return read_json(file) if file.is_file() else {}


def add(file: Path, side: str, entry: Mapping[str, Any]) -> None:
    """Add records to the result file, which is complete at any time."""
    write(file, json.dumps(merged(read(file), side, entry), indent=1) + "\n")
