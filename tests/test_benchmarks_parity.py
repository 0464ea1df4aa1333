"""The comparison with diffusers, on a tiny pipeline in float32, where both must agree."""

import json
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import warm
from rich.console import Console

from benchmarks.parity import diffusers, parity
from benchmarks.parity.case import GUIDANCES, Inputs, random_inputs, relative, slope
from convert.adapters.files import write_layers, write_lora
from convert.adapters.stacked import unstack
from flux_jax import load
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.tree import flatten, nest

# Block counts, inputs and outputs as in tests/helpers/tiny.py's transformer.
TARGETS = {
    "dual_blocks/attn/add_q_proj": (2, 32, 32),
    "dual_blocks/attn/add_k_proj": (2, 32, 32),
    "single_blocks/attn/to_q": (3, 32, 32),
    "single_blocks/proj_out": (3, 160, 32),
}
RANK, ALPHA = 2, 3.0
BOUND = 1e-4
PAIRS = list(parity.PAIRS)


class Setting(NamedTuple):
    pipe: Pipeline
    folder: Path
    adapter: Adapter
    lora: Path
    inputs: Inputs


def random_lora() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    flat = {}
    for target, (depth, inputs, outputs) in TARGETS.items():
        for part, shape in (("A", (depth, inputs, RANK)), ("B", (depth, RANK, outputs))):
            flat[f"{target}/{part}"] = 0.2 * generator.normal(size=shape).astype(np.float32)
    return nest(flat)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other cost more than tiny products do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def setting(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    run = tmp_path_factory.mktemp("run")
    write_lora(run / "adapter", random_lora(), ALPHA)
    lora, adapter = parity.read_both(run)
    pipe = load(tiny_folder, jnp.float32)
    return Setting(
        pipe, tiny_folder, adapter, lora, random_inputs(pipe.transformer.config, 4, 5, 0)
    )


@pytest.fixture(scope="module")
def result(setting: Setting) -> parity.Record:
    return parity.compare(*setting)


@pytest.fixture(scope="module")
def wrong(setting: Setting) -> parity.Record:
    """As `result`, with the sign of every B of our adapter flipped."""
    flat = flatten(setting.adapter.lora)
    negated = {path: -leaf if path.endswith("/B") else leaf for path, leaf in flat.items()}
    other = Adapter(nest(negated), setting.adapter.alpha)
    return parity.compare(*setting._replace(adapter=other))


@pytest.mark.slow
def test_velocities_agree(result: parity.Record):
    keys = [(line["adapter"], line["guidance"]) for line in result["velocity"]]
    assert sorted(keys) == [(adapter, scale) for adapter in (False, True) for scale in GUIDANCES]
    for line in result["velocity"]:
        assert 0 < line["ours_float32"] < BOUND
        assert 0 < line["ours_diffusers"] < BOUND
        assert line["diffusers_float32"] < BOUND


def test_effects_agree_and_can_be_seen(result: parity.Record):
    for line in result["effect"]:
        for side in ("ours", "diffusers"):
            assert line[side]["size"] == pytest.approx(line["float32"]["size"], rel=1e-3)
            assert line[side]["size"] > 0.05
            assert line[side]["error"] < 1e-3
            assert line[side]["slope"] == pytest.approx(1, abs=1e-3)


def test_every_block_agrees(result: parity.Record):
    names = [f"dual {index}" for index in range(2)] + [f"single {index}" for index in range(3)]
    wanted = [(name, stream) for name in names for stream in ("image", "text")]
    assert [(line["block"], line["stream"]) for line in result["blocks"]] == wanted
    for line in result["blocks"]:
        assert max(line[name] for name in PAIRS) < BOUND
        assert line["ours_diffusers"] > 0
        assert line["change"] > 0.05


@pytest.mark.slow
def test_a_wrong_adapter_is_seen(result: parity.Record, wrong: parity.Record):
    for line in wrong["velocity"]:
        for name in PAIRS[:2]:
            assert line[name] > 0.05 if line["adapter"] else line[name] < BOUND
        assert line["diffusers_float32"] < BOUND
    for line in wrong["effect"]:
        assert line["ours"]["error"] > 1
        assert line["ours"]["slope"] < 0.5
        assert line["diffusers"]["slope"] == pytest.approx(1, abs=1e-3)
    for line in wrong["blocks"]:
        assert line["ours_diffusers"] > 10 * BOUND
        assert line["diffusers_float32"] < BOUND


def test_tables_show_the_worst_blocks_first(wrong: parity.Record):
    console = Console(width=parity.WIDTH, record=True, quiet=True)
    console.print(parity.velocity_table(wrong), parity.effect_table(wrong))
    console.print(blocks := parity.blocks_table(wrong))
    assert "…" not in console.export_text()
    worst = max(wrong["blocks"], key=lambda line: line["ours_diffusers"])
    first = [next(iter(column.cells)) for column in blocks.columns]
    assert first[:3] == [worst["block"], worst["stream"], f"{worst['ours_diffusers']:.2e}"]
    assert blocks.row_count == parity.WORST


@pytest.mark.slow
def test_the_models_in_pytorch_are_garbage_afterwards(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    opened, open_model = [], diffusers.open_model

    def watched(*arguments: Any) -> Any:
        model = open_model(*arguments)
        opened.append(weakref.ref(model))
        return model

    monkeypatch.setattr(diffusers, "open_model", watched)
    diffusers.measure(setting.folder, setting.lora, setting.inputs, "float32")
    diffusers.free()
    assert [reference() for reference in opened] == [None]


def test_inputs_are_seeded_and_fit_bfloat16(setting: Setting):
    config = setting.pipe.transformer.config
    again, other = (random_inputs(config, 4, 5, seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.latents, setting.inputs.latents)
    assert not np.array_equal(again.latents, other.latents)
    rounded = again.text.astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(again.text, rounded)


def test_distances_and_slopes():
    true = np.array([3.0, 4.0], np.float32)
    assert relative(np.array([3.0, 3.0]), true) == pytest.approx(0.2)
    across = np.array([4.0, -3.0], np.float32)
    assert slope(true + across, true) == pytest.approx(1)
    assert slope(-true, true) == pytest.approx(-1)


def test_adapters_that_cannot_be_compared_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"no pytorch_lora_weights.safetensors"):
        parity.read_both(tmp_path)
    flat = flatten(random_lora())
    untrained = {path: leaf * (not path.endswith("/B")) for path, leaf in flat.items()}
    write_lora(tmp_path / "untrained", nest(untrained), ALPHA)
    with pytest.raises(InputError, match="changes nothing"):
        parity.read_both(tmp_path / "untrained")
    write_layers(tmp_path / "flax.safetensors", "flax", unstack(tmp_path, random_lora(), ALPHA))
    with pytest.raises(InputError, match=r"use convert\.lora"):
        parity.read_both(tmp_path / "flax.safetensors")


@pytest.mark.slow
def test_the_command_compares_in_bfloat16(setting: Setting, tmp_path: Path):
    file = tmp_path / "parity.json"
    given = {"model": setting.folder, "adapter": setting.lora, "out": file, "pixels": 16}
    arguments = [f"--{name}={value}" for name, value in given.items()]
    done = warm.run("-m", "benchmarks.parity.parity", *arguments, "--text_tokens=5")
    assert done.returncode == 0, done.stderr
    assert "Velocity in bfloat16" in done.stdout
    found = json.loads(file.read_text())
    assert found["dtype"] == "bfloat16"
    assert found["image_tokens"] == 16
    assert found["machine"]["diffusers"] == version("diffusers")
    # At guidances that diffusers rounds, the error is large.
    unrounded = [line for line in found["velocity"] if line["guidance"] == 4.0]
    for line in [*unrounded, *found["blocks"]]:
        assert BOUND < line["ours_float32"] < 2 * line["diffusers_float32"] < 0.1
