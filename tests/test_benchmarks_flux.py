"""The benchmark at full size, run on tiny sizes: its measurements, counts, files and tables."""

import functools
import itertools
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import warm
from helpers.small import CONFIG, SIZES
from rich.console import Console

from benchmarks.speed import flux, flux_ours, flux_torch, iterations
from benchmarks.speed.cases import (
    OUT_OF_MEMORY,
    UNFINISHED,
    WORKS,
    Work,
    add,
    attempt,
    chosen,
    merged,
    read,
)
from erase.methods.parts.losses import squared_error
from erase.methods.planning.flops import Pass, iteration
from flux_jax.errors import InputError
from flux_jax.lora import init
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.weights.loading import abstract_params

TINY: dict[str, Any] = {**SIZES, "axes_dims_rope": [2, 2, 4], "patch_size": 1, "out_channels": None}
RUN = replace(CONFIG, batch_size=1, synonyms=("a",), irrelevant=("b", "c", "d"))
TIMES = {"seconds", "fastest", "slowest", "repeats", "compile_seconds", "memory_bytes", "finite"}
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than tiny products do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def work(kind: Any, **changes: Any) -> Work:
    return Work(kind, 64, 6, **changes)


def check(record: dict[str, Any], fields: set[str]) -> None:
    assert set(record) == fields
    assert record["finite"]
    assert record["repeats"] == 2
    assert 0 < record["fastest"] <= record["seconds"] <= record["slowest"]
    assert record["compile_seconds"] >= 0


def ours(works: dict[str, Work]) -> None:
    found = list(flux_ours.measure(works, TINY, RUN, 2))
    assert found[::2] == [(name, UNFINISHED) for name in works]
    for name, record in found[1::2]:
        check(record, TIMES | {"flops"})
        assert record["memory_bytes"] > 0
        assert record["flops"] > 0
        assert name in works


@pytest.mark.slow
def test_our_passes_are_measured():
    ours({"passes": work("forward", batch=2)})


@pytest.mark.slow
def test_our_other_works_are_measured():
    ours(
        {
            "picture": work("sample"),
            "checkpointed": work("step", checkpointed=True),
            "updates": work("iteration"),
        }
    )


@pytest.mark.slow
def test_iterations_are_timed(capsys: pytest.CaptureFixture):
    # Two losses in one update are enough here, and compile in a quarter of the time.
    lower, upper = replace(RUN.lower, attn=0.0), replace(RUN.upper, rsc=0.0)
    config = replace(RUN, lower=lower, upper=upper, alternation="joint")
    model = iterations.Model(FluxTransformer(FluxConfig.from_dict(TINY)), 16, 6)
    changes = iterations.VARIANTS["base: stored, 16 noises"]
    found = iterations.measure(config, model, 2, {"base: computed": changes})
    (record,) = found.values()
    check(record, TIMES | {"cpu_seconds", "bank_bytes", "flops"})
    assert record["bank_bytes"] > 0
    iterations.show(found)
    assert "base: computed" in capsys.readouterr().out


@pytest.mark.slow
def test_our_weights_keep_the_scale():
    params = flux_ours.random_params(TINY)
    kernel = params["dual_blocks"]["ff"]["linear_2"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(kernel.astype(float).std(), kernel.shape[-2] ** -0.5, rtol=0.1)
    scale = params["single_blocks"]["attn"]["norm_q"]["scale"].astype(float)
    np.testing.assert_allclose(scale, 1, atol=0.1)
    assert all((leaf != 0).all() for leaf in jax.tree.leaves(params))


def test_the_matmul_rate_is_operations_by_seconds(monkeypatch: pytest.MonkeyPatch):
    # The clock is read before and after each call, and advances by half a second each time.
    clock = itertools.count(0, 0.5)
    monkeypatch.setattr(flux_ours.time, "perf_counter", lambda: next(clock))
    assert flux_ours.matmul_rate(16, 2) == 2 * 16**3 / 0.5


def theirs(works: dict[str, Work], side: str) -> None:
    found = list(flux_torch.measure(works, TINY, side, CPU, 2))
    assert found[::2] == [(name, UNFINISHED) for name in works]
    for _, record in found[1::2]:
        check(record, TIMES)


@pytest.mark.slow
def test_works_of_diffusers_are_measured():
    works = {
        "passes": work("forward", batch=2),
        "picture": work("sample"),
        "step": work("step"),
        "checkpointed": work("step", checkpointed=True),
    }
    theirs(works, "eager")


@pytest.mark.slow
# PyTorch's compiler warns about itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_of_diffusers_is_measured(monkeypatch: pytest.MonkeyPatch):
    """Traced and differentiated as on a GPU; compiling the C++ code would take another minute."""
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    theirs({"step": work("step")}, "compiled")


def test_a_step_of_diffusers_trains_the_adapter_alone():
    model = flux_torch.random_model(TINY, CPU)
    assert all((parameter != 0).all() for parameter in model.parameters())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    wanted = work("step")
    inputs = flux_torch.random_inputs(model.config, wanted, CPU)
    update = flux_torch.step(model, model, inputs, wanted)
    first, *_, last = (float(update()) for _ in range(20))
    assert last < first
    after = {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
    adapter = {name: p for name, p in after.items() if "lora" in name}
    # A and B for queries and keys of both blocks.
    assert len(adapter) == 2 * 2 * 2
    assert all(parameter.dtype == torch.float32 for parameter in adapter.values())


COUNTED = FluxConfig.from_dict(
    {
        **TINY,
        "num_layers": 2,
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
    }
)
IMAGE, TEXT = 128, 32


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "with the gradient"])
def test_operations_are_those_that_the_compiler_counts(gradient: bool):
    # Operations in a loop's body would be counted once.
    model = FluxTransformer(COUNTED, jnp.float32, unroll=True)
    of = jax.ShapeDtypeStruct
    params = abstract_params("transformer", vars(COUNTED) | {"patch_size": 1})
    lora = jax.eval_shape(lambda: init(jax.random.key(0), params))
    conditioning = Conditioning(of((1, TEXT, 64), jnp.float32), of((1, 32), jnp.float32))
    latents = of((1, IMAGE, 8), jnp.float32)

    def velocity(lora: Any, params: Any, latents: Any, conditioning: Any) -> Any:
        adapted = Denoiser(model, params, jnp.ones((IMAGE, 3)), 3.5, lora)
        return adapted.velocity(latents, conditioning, jnp.full(1, 0.5))

    def loss(*arguments: Any) -> Any:
        return squared_error(velocity(*arguments), jnp.ones((1, IMAGE, 8)))

    wanted = jax.value_and_grad(loss) if gradient else velocity
    compiled = jax.jit(wanted).lower(lora, params, latents, conditioning).compile()
    counted = Pass(COUNTED, IMAGE, TEXT)
    expected = counted.forward + gradient * counted.backward
    np.testing.assert_allclose(compiled.cost_analysis()["flops"], expected, rtol=0.05)


def test_operations_of_an_iteration():
    one = Pass(COUNTED, IMAGE, TEXT)
    # From the sizes: the dual blocks are two of three, and compute attention twice.
    dual = Pass(COUNTED, IMAGE, TEXT, mass=True, single=False)
    assert dual.forward < Pass(COUNTED, IMAGE, TEXT, mass=True).forward
    assert one.forward < one.forward + one.backward < 3 * one.forward
    computing = replace(RUN, bank=replace(RUN.bank, teacher="computed"))
    counted = iteration(computing, COUNTED, IMAGE, TEXT)
    assert 10 * dual.forward < counted < 15 * one.forward
    towards = replace(computing, lower=replace(RUN.lower, erase_to="dog"))
    assert iteration(towards, COUNTED, IMAGE, TEXT) == counted + one.forward
    # A look-up saves a pass for the concept and one for the anchor.
    assert iteration(RUN, COUNTED, IMAGE, TEXT) == counted - 2 * one.forward


def test_the_full_size_is_flux_devs():
    sizes = FluxConfig.from_dict(flux_ours.SIZES)
    assert WORKS["forward-512"].image_tokens == 1024
    # Nearly all are two operations for each token and each of the 6.5e9 weights applied to tokens.
    once = Pass(sizes, 1024, 256).forward
    assert 0.9 < 2 * 6.46e9 * 1280 / once < 1.0
    assert chosen(["iteration-512"], "eager") == {}
    with pytest.raises(InputError, match="works = 'forward-9' is unknown; did you mean forward-"):
        chosen(["forward-9"], "ours")


def test_a_work_that_fails_says_why():
    def fails(error: Exception) -> Any:
        raise error

    assert attempt(lambda: {"seconds": 1.0}) == {"seconds": 1.0}
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying"),
    ):
        assert attempt(lambda error=error: fails(error)) == {"error": OUT_OF_MEMORY}
    failed = attempt(lambda: fails(TypeError("no\nsecond line")))
    assert failed == {"error": "TypeError: no"}


def test_results_are_merged_by_machine(tmp_path: Path):
    file = tmp_path / "made" / "flux.json"
    entry = {"machine": {"device": "one"}, "works": {"a": {"seconds": 1.0}}}
    add(file, "ours", entry | {"matmul_flops_per_second": 5.0})
    add(file, "ours", {"machine": {"device": "one"}, "works": {"b": UNFINISHED}})
    add(file, "eager", entry)
    kept = read(file)
    assert kept["ours"]["works"] == {"a": {"seconds": 1.0}, "b": UNFINISHED}
    assert kept["ours"]["matmul_flops_per_second"] == 5.0
    other = merged(kept, "ours", {"machine": {"device": "two"}, "works": {}})
    assert other == {"ours": {"machine": {"device": "two"}, "works": {}}, "eager": entry}


def measured(**seconds: float) -> dict[str, Any]:
    return {
        "machine": {"device": "a card"},
        "works": {
            name.replace("_", "-"): {
                "seconds": value,
                "memory_bytes": 30e9,
                "compile_seconds": 2.0,
                "flops": 4e12,
                "finite": True,
            }
            for name, value in seconds.items()
        },
    }


def shown(table: Any) -> list[str]:
    out = StringIO()
    Console(file=out, width=flux.WIDTH).print(table)
    return [" ".join(line.replace("│", " ").split()) for line in out.getvalue().splitlines()]


def test_tables_show_what_there_is():
    result = {
        "ours": measured(forward_512=0.06, step_512=0.12, iteration_512=0.4, step_1024=0.9),
        "eager": measured(forward_512=0.1, step_512=0.4, step_1024_checkpointed=1.0),
    }
    result["ours"]["matmul_flops_per_second"] = 1e14
    result["ours"]["works"]["step-512"]["finite"] = False
    result["eager"]["works"]["step-1024"] = {"error": OUT_OF_MEMORY}
    lines = shown(flux.times_table(result))
    assert "forward-512 60.0 100.0 – 0.60 – 67%" in lines
    assert "step-512 120.0 (not finite) 400.0 – 0.30 – 33%" in lines
    assert "step-1024 900.0 out of memory – – – 4%" in lines
    assert "iteration-512 400.0 14500.0 – 0.03 – 10%" in lines
    assert "step-1024-checkpointed – 1000.0 – – – –" in lines
    assert "step-1024 30.0 – – 2.0 – –" in shown(flux.memory_table(result))
    lines = shown(flux.targets_table(result))
    assert "step, 512 0.30 x eager <= 0.41 x eager yes" in lines
    assert "step, 512 – <= 0.72 x compiled –" in lines
    assert "step, 1024, the faster way 0.90 x eager <= 0.80 x eager no" in lines
    assert "memory of an iteration, 512 30.0 GB <= 45.0 GB yes" in lines
    assert shown(flux.times_table({}))


def test_what_is_missing_or_failed_is_measured_again():
    result = {"ours": measured(forward_512=1.0)}
    result["ours"]["works"]["step-1024"] = {"error": OUT_OF_MEMORY}
    result["ours"]["works"]["step-512"] = UNFINISHED
    names = ["step-512", "forward-512", "step-1024", "sample-1024"]
    assert flux.missing(result, "ours", names) == ["sample-1024", "step-512"]
    assert len(flux.missing(result, "compiled", list(WORKS))) == len(WORKS) - 1


def test_a_process_that_a_work_ends_has_a_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, started = tmp_path / "flux.json", []

    def child(command: list[str], check: bool) -> subprocess.CompletedProcess:
        names = command[command.index("--works") + 1].split(",")
        started.append(names)
        for name in names:
            add(file, "eager", {"machine": {}, "works": {name: UNFINISHED}})
            if name == "step-512":
                return subprocess.CompletedProcess(command, -6)
            add(file, "eager", {"machine": {}, "works": {name: {"seconds": 1.0}}})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", child)
    flux.run(file, "eager", ["forward-512", "step-512", "step-1024"], 10)
    assert started == [["forward-512", "step-512", "step-1024"], ["step-1024"]]
    assert list(read(file)["eager"]["works"].values()) == [
        {"seconds": 1.0},
        UNFINISHED,
        {"seconds": 1.0},
    ]


@pytest.mark.slow
def test_the_command_keeps_a_file(tmp_path: Path):
    file = tmp_path / "flux.json"
    file.write_text(json.dumps({"ours": measured(forward_512=0.06)}))
    command = ("-m", "benchmarks.speed.flux", "--out", file)

    def ended(*more: str) -> subprocess.CompletedProcess:
        return warm.run(*command, *more)

    done = ended()
    assert done.returncode == 2
    assert "exists; give --resume" in done.stderr
    done = ended("--resume", "--works", "forward-512")
    assert done.returncode == 0, done.stderr
    assert "60.0" in done.stdout
    assert json.loads(file.read_text()) == {"ours": measured(forward_512=0.06)}
