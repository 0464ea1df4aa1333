"""The benchmark on two devices, on tiny sizes: gradients agree, and profiles are read correctly."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.devices import run_on
from helpers.small import CONFIG, SIZES
from jax.profiler import ProfileData
from rich.console import Console

from benchmarks.speed import two_devices
from benchmarks.speed.cases import Work
from benchmarks.speed.two_devices import CASES, apart, collectives, covered, measure, table
from erase.config.schema import Model
from flux_jax import sharding

TINY: dict[str, Any] = {**SIZES, "axes_dims_rope": [2, 2, 4], "patch_size": 1, "out_channels": None}
RUN = replace(
    CONFIG,
    batch_size=1,
    synonyms=("a",),
    irrelevant=("b", "c", "d"),
    model=Model(dtype="float32"),
)
WORK = Work("iteration", 64, 6)
SOME = {name: CASES[name] for name in ("fsdp 2", "one, 2 samples")}


@pytest.mark.slow
def test_two_devices_give_the_gradients_of_one(tmp_path: Path):
    done = run_on(2, f"import test_two_devices; test_two_devices.on_two({str(tmp_path)!r})")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["gradients_apart"].keys() == {"fsdp 2"}
    assert 0 < result["gradients_apart"]["fsdp 2"]["lower"] < 2e-5
    for name, found in result["cases"].items():
        assert found["lower"]["samples_per_second"] == 2 / found["lower"]["seconds"]
        assert found["lower"]["memory_bytes"] > 0
        assert SOME[name].samples == 2
    console = Console(width=300, file=StringIO(), record=True)
    console.print(table({"machine": {}} | result, SOME))
    said = console.export_text()
    for name in SOME:
        assert name in said


def on_two(folder: str) -> None:
    sharding.WHOLE = 1
    # The other level would take as long again to compile.
    del two_devices.UPDATES["upper"]
    *_, result = measure(SOME, TINY, RUN, WORK, 2)
    (Path(folder) / "result.json").write_text(json.dumps(result))


def test_spans_are_counted_once():
    assert covered([]) == 0
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.6)]) == 4


def test_distance_is_relative():
    assert apart([np.array([3.0, 4.0])], [np.array([0.0, 4.0])]) == 0.75


def test_collectives_that_products_hide_are_told_apart():
    """A product of 4 us with 2 us of NCCL beside it, then 3 us of NCCL; on the other card 1 us."""
    profile = ProfileData.from_text_proto(
        """
        planes { name: "/host:CPU" lines { name: "Stream #1" events { duration_ps: 9 } } }
        planes {
          name: "/device:GPU:0"
          event_metadata { key: 1 value { id: 1 name: "gemm" } }
          event_metadata { key: 2 value { id: 2 name: "ncclDevKernel_AllReduce" } }
          lines { name: "XLA Ops" events { metadata_id: 2 offset_ps: 0 duration_ps: 90000000 } }
          lines { name: "Stream #7" events { metadata_id: 1 offset_ps: 0 duration_ps: 4000000 } }
          lines {
            name: "Stream #8"
            events { metadata_id: 2 offset_ps: 1000000 duration_ps: 2000000 }
            events { metadata_id: 2 offset_ps: 5000000 duration_ps: 3000000 }
          }
        }
        planes {
          name: "/device:GPU:1"
          event_metadata { key: 2 value { id: 2 name: "ncclDevKernel_AllReduce" } }
          lines { name: "Stream #8" events { metadata_id: 2 offset_ps: 0 duration_ps: 1000000 } }
        }
        """
    )
    found = collectives(profile, 2)
    assert found is not None
    assert found["collective_seconds"] == pytest.approx((5e-6 + 1e-6) / 2 / 2)
    assert found["exposed_seconds"] == pytest.approx((3e-6 + 1e-6) / 2 / 2)


def test_without_a_gpu_there_are_none():
    assert collectives(ProfileData.from_text_proto(""), 1) is None
