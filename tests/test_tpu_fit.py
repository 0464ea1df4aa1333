"""Programs compiled for TPU slices, on a tiny model and CPUs: libtpu is not needed."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers.devices import run_on
from helpers.small import CONFIG, SIZES
from rich.console import Console

from benchmarks.speed import tpu_fit
from benchmarks.speed.tpu_fit import (
    PROGRAMS,
    Memory,
    Row,
    Slice,
    fit,
    measure,
    smallest,
    squares,
    table,
)
from erase.config.schema import MeshConfig
from erase.runtime.mesh import make_mesh

MEMORY = Memory(arguments=4.0, temporaries=1.0, total=5.25, squares=0, seconds=9.0)


def row(name: str, program: str, side: int = 512, fits: bool = True) -> Row:
    return Row(name, side, program, False, MEMORY if fits else None, None, fits)


def test_the_smallest_slice_holds_every_program():
    rows = [row("v5e-8", program) for program in PROGRAMS]
    rows += [row("v5p-8", program) for program in PROGRAMS]
    rows += [row("v5e-4", program, fits=program != "upper") for program in PROGRAMS]
    assert smallest(rows, 512) == "v5e-8"
    assert smallest(rows, 1024) is None


def test_a_file_keeps_other_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tpu_fit, "fit", lambda name, side: [row(name, "lower", side)])
    monkeypatch.setattr(tpu_fit, "version", lambda _: "0")
    out = tmp_path / "fit.json"
    for name in ("v5e-4", "v5e-8", "v5e-4"):
        tpu_fit.main(["--slices", name, "--out", str(out)])
    rows = tpu_fit.read(out, [])
    assert [(line.slice, line.side) for line in rows] == [
        (name, side) for name in ("v5e-8", "v5e-4") for side in (512, 1024)
    ]
    assert rows[0].memory == MEMORY
    assert tpu_fit.read(tmp_path / "none.json", []) == []


def test_slices_come_from_the_smallest():
    memory = [place.chips * place.hbm_gb for place in tpu_fit.SLICES.values()]
    assert memory == sorted(memory)


def test_squares_of_tokens_are_found():
    text = "bf16[1,24,1280,1280]{3,2,1,0} f32[1280,1280] f32[1280,3072] f32[11280,1280]"
    assert squares(text, 1280) == 2


def test_remat_is_tried_where_an_update_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    tried = []

    def found(program: str, config: Any, sizes: Any, mesh: Any) -> Memory:
        assert config.text_tokens == 512
        assert config.batch_size == 1
        tried.append((program, config.model.remat))
        if program == "lower" and not config.model.remat:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of HBM.\nMore")
        return replace(MEMORY, total=17.0) if program == "sampler" else MEMORY

    monkeypatch.setattr(tpu_fit, "measure", found)
    monkeypatch.setattr(Slice, "devices", lambda self: jax.devices())
    monkeypatch.setitem(tpu_fit.SLICES, "one", Slice("v5e:1x1", 1, 16))
    rows = list(fit("one", 1024))
    assert tried == [("lower", False), ("lower", True), ("upper", False), ("sampler", False)]
    assert [line.fits for line in rows] == [False, True, True, False]
    assert rows[0].refusal == "RESOURCE_EXHAUSTED: Out of HBM."

    shown = io.StringIO()
    Console(file=shown, width=120).print(table(rows))
    for word in ("refused", "5.25", "17.00"):
        assert word in shown.getvalue()


def test_other_errors_of_the_compiler_are_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> Memory:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of vector memory.")

    monkeypatch.setattr(tpu_fit, "measure", broken)
    monkeypatch.setattr(Slice, "devices", lambda self: jax.devices())
    monkeypatch.setitem(tpu_fit.SLICES, "one", Slice("v5e:1x1", 1, 16))
    with pytest.raises(jax.errors.JaxRuntimeError, match="vector"):
        list(fit("one", 512))


@pytest.mark.slow
def test_programs_compile_for_four_devices_from_shapes_alone():
    done = run_on(4, "import test_tpu_fit; test_tpu_fit.compile_tiny()")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [*PROGRAMS, "compiled"]


def compile_tiny() -> None:
    """Every program of the tiny model, one weight of which is large enough to be split."""
    sizes = SIZES | {"joint_attention_dim": 1 << 17}
    config = replace(CONFIG, height=64, width=64, text_tokens=6, steps=3, mesh=MeshConfig(fsdp=4))
    mesh = make_mesh(config.mesh, 1, config.batch_size)
    assert dict(mesh.shape) == {"concept": 1, "data": 1, "fsdp": 4}
    for program in PROGRAMS:
        memory = measure(program, config, sizes, mesh)
        # XLA's own attention materialises the matrix, which shows that it would be detected.
        assert memory.squares > 0
        assert memory.temporaries > 0
        # Each is rounded to megabytes.
        assert memory.total > memory.arguments + memory.temporaries - 0.0021
        # That weight alone in float32, if it were not split.
        assert program != "sampler" or memory.arguments < 4 * (1 << 17) * 16 / 1e9
        print(program)
    print("compiled")
