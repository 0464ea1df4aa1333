"""What is measured at FLUX.1 [dev]'s size, and how what was measured is kept.

A result is a dictionary of sides ("ours", and diffusers "eager" and "compiled"); each has the
`machine` that it was measured on and a record for each of its `works`.
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
# Passes before those that count, and Euler steps of a picture.
WARM_UPS, STEPS = 2, 28
GUIDANCE = 3.5
PIXELS_PER_TOKEN = 16
# Of the adapter that steps train.
RANK, RATE, DECAY = 8, 1e-3, 0.01

OUT_OF_MEMORY = "out of memory"
# The record of a work that has begun: if its process ends, it stays.
UNFINISHED = {"error": "not finished"}


@dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        kind: "forward" is one velocity; "sample" the Euler steps of a picture, without text
            encoders and autoencoder; "step" the gradient of the velocity's mean squared error to a
            random target with respect to an adapter, and AdamW's update; "iteration" both updates
            of a run.
        pixels: side of the picture.
        text_tokens: T5's.
        batch: pictures.
        checkpointed: whether backward passes compute blocks anew.
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
    """Declares the flags of all commands; a function, so that importing declares nothing."""
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_list("works", list(WORKS), "What is measured, joined by commas.")
    flags.DEFINE_integer("repeats", 10, "Repeats of each, after warming up.", lower_bound=10)


def chosen(names: Sequence[str], side: str) -> dict[str, Work]:
    """The works of some names that a side has, in the order of `WORKS`.

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
    """The times of repeats: their median, and how far they spread."""
    return {
        "seconds": statistics.median(samples),
        "fastest": min(samples),
        "slowest": max(samples),
        "repeats": len(samples),
    }


def attempt(measure: Callable[[], Record]) -> Record:
    """A work's record, or why there is none: what one work lacks must not cost the others."""
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        return {"error": reason(error)}


def reason(error: Exception) -> str:
    """An error in one line; `OUT_OF_MEMORY` for all of that kind."""
    said = f"{type(error).__name__}: {error}"
    if re.search(r"out ?of ?memory|RESOURCE_EXHAUSTED|ALLOC_FAILED", said, re.IGNORECASE):
        return OUT_OF_MEMORY
    return said.strip().splitlines()[0][:200]


def merged(result: Mapping[str, Any], side: str, entry: Mapping[str, Any]) -> Result:
    """A result with more of a side, whose older records stay if they are from the same machine."""
    older = result.get(side, {})
    if older.get("machine") != entry["machine"]:
        older = {"works": {}}
    return {**result, side: {**older, **entry, "works": {**older["works"], **entry["works"]}}}


def read(file: Path) -> Result:
    """The result in a file; an empty one if there is none."""
    return read_json(file) if file.is_file() else {}


def add(file: Path, side: str, entry: Mapping[str, Any]) -> None:
    """Adds to the result in a file, which is complete at any time."""
    write(file, json.dumps(merged(read(file), side, entry), indent=1) + "\n")
