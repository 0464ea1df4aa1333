"""Memory estimates of a run, and the advice when it does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import tiny, warm

from configs import nudity
from erase.config.schema import Config, Evaluation
from erase.data.words.irrelevant import listed
from erase.methods import erase_anything
from erase.methods.planning import flops
from erase.methods.settings.erase_anything import Upper
from erase.model.open import open_model
from erase.runs import load_config
from erase.runtime.memory import explains_memory, mends_of_drawing
from erase.training import memory_plan
from flux_jax.errors import RunError
from flux_jax.weights import loading

PROGRAMS = ["encoding prompts", "denoising", "lower update", "upper update", "drawing", "decoding"]


@pytest.fixture(scope="module")
def config(tiny_folder: Path) -> Config:
    return tiny.run_config(
        tiny_folder,
        synonyms=("kitten",),
        upper=Upper(pictures=2, negatives=2),
        evaluation=Evaluation(pictures=2, steps=2),
    )


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reading any weights fail."""
    monkeypatch.setattr(loading, "read_params", lambda *_: pytest.fail("weights were read"))


def test_the_time_that_is_estimated_was_measured():
    """An iteration at 512 x 512, against the shipped results."""
    file = Path(__file__).resolve().parents[1] / "docs" / "results" / "flux.json"
    ours = json.loads(file.read_text())["ours"]
    work = ours["works"]["iteration-512"]
    rate = work["flops"] / work["seconds"]
    assert pytest.approx(rate, rel=1e-2) == flops.MEASURED
    assert pytest.approx(rate / ours["matmul_flops_per_second"], abs=0.005) == flops.SHARE


def test_a_plan_of_a_published_model_needs_no_file_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flux_jax.weights.hub.find_model", lambda *_: pytest.fail("asked for"))
    config = load_config(nudity.get_config())
    pipe = open_model(config, unread=True)
    held = memory_plan.held({"": config}, pipe)
    # 11.9 billion parameters in bfloat16, as published by Black Forest Labs, and T5-XXL's encoder.
    per_value = jnp.dtype(pipe.transformer.dtype).itemsize
    assert held["weights of transformer"] == pytest.approx(11.9e9 * per_value, rel=1e-3)
    assert held["weights of text_encoder_2"] == pytest.approx(4.762e9 * per_value, rel=1e-3)
    # 112,622,018,494,464 operations at 4.48e14 per second; with the frozen model's velocities in
    # each update 147,994,525,040,640.
    on = "Time on one H100 in bfloat16, whatever this machine has:"
    assert flops.estimate(config, pipe, 1).startswith(f"{on} about 0.25 s an iteration, 4.2 min")
    computed = replace(config, bank=replace(config.bank, teacher="computed"))
    assert flops.estimate(computed, pipe, 1).startswith(f"{on} about 0.33 s an iteration, 5.5 min")
    other = replace(config, method="esd")
    assert flops.estimate(other, pipe, 1) == (
        "Time: estimated only for erase_anything, not for esd."
    )


@pytest.mark.usefixtures("unread")
def test_no_time_is_estimated_for_a_model_that_would_not_keep_a_gpu_busy(config: Config):
    assert flops.estimate(config, open_model(config), 1).startswith("Time: not estimated")


@pytest.mark.slow
@pytest.mark.usefixtures("unread")
def test_every_program_is_planned_and_nothing_is_read(config: Config):
    pipe = open_model(config)
    needs = dict(memory_plan.plan({"": config}, pipe))
    held = memory_plan.held({"": config}, pipe)
    assert list(needs) == PROGRAMS
    transformer = held["weights of transformer"]
    assert transformer == 4 * sum(leaf.size for leaf in jax.tree.leaves(pipe.shapes))
    everything = transformer + held["bank"] + held["adapter and optimisers"]
    for name in ("lower update", "upper update"):
        assert transformer < needs[name].arguments <= everything + 64
        assert needs[name].temporaries > 0
    assert needs["decoding"].beside == transformer
    remade = replace(config, model=replace(config.model, remat=True))
    name, less = next(memory_plan.training(remade, 1, open_model(remade)))
    assert name == "lower update"
    assert less.temporaries < needs[name].temporaries
    both = memory_plan.held({"one": config, "two": config}, pipe)
    assert both["bank"] == 2 * held["bank"]


@pytest.mark.usefixtures("unread")
def test_what_a_run_adds_is_the_largest_update_without_the_frozen_weights(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    pipe = open_model(config)
    weights = memory_plan.held({"": config}, pipe)["weights of transformer"]
    needs = [memory_plan.Need(weights + 10, 1, 0), memory_plan.Need(weights + 100, 20, 4)]
    monkeypatch.setattr(memory_plan, "training", lambda *_: zip("ab", needs, strict=True))
    assert memory_plan.of_a_run({"": config}, pipe) == 124
    assert memory_plan.of_a_run({"one": config, "two": config}, pipe) == 62
    monkeypatch.setattr(memory_plan, "training", lambda *_: iter(()))
    assert memory_plan.of_a_run({"": config}, pipe) == 0


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(("available", "fits"), [(None, True), (10**12, True), (10**3, False)])
def test_whether_it_fits_is_told(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    available: int | None,
    fits: bool,
):
    need = memory_plan.Need(10**6, 10**7, 10**5, 10**4)
    monkeypatch.setattr(memory_plan, "plan", lambda *_: iter([("lower update", need)]))
    monkeypatch.setattr(memory_plan, "memory", lambda devices: available)
    assert memory_plan.show({"": config}, open_model(config)) == fits
    said = capsys.readouterr().out
    assert ("does not fit" in said) == (not fits)
    assert ("--config.model.remat" in said) == (not fits)
    assert ("GB in XLA's programs for this CPU. A GPU needs less" in said) == (available is None)
    assert "0.01" in said


@pytest.mark.slow
def test_the_command_plans_without_a_folder(tmp_path: Path):
    command = ("-m", "erase.train", "--config", "configs/emoji_cat.py")
    done = warm.run(*command)
    assert done.returncode == 2
    assert "error: --workdir is missing: name the run's folder" in done.stderr
    done = warm.run(*command, "--plan", "--config.model.path=no/such/folder")
    assert done.returncode == 2
    assert "error: model = 'no/such/folder' does not exist" in done.stderr


def test_too_little_memory_is_told_with_what_helps():
    message = r"too little memory \(RESOURCE_EXHAUSTED.*model\.remat"
    with pytest.raises(RunError, match=message), explains_memory():
        jnp.zeros(1 << 50, jnp.int8).block_until_ready()
    # What XLA says on a CPU when a program of 100,000 pixels starts.
    said = "INTERNAL: Error dispatching computation: Out of memory allocating 480775341240 bytes."
    mends = mends_of_drawing(16, 100_000, None)
    with pytest.raises(RunError) as refused, explains_memory(mends):
        raise jax.errors.JaxRuntimeError(f"{said}\nmore")
    assert str(refused.value) == (
        f"a device has too little memory ({said}). To save memory: a smaller --batch, now 16; a "
        "smaller --height, now 100000"
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"), explains_memory():
        raise jax.errors.JaxRuntimeError("INTERNAL: another")


def test_forms_are_those_that_are_looked_at(config: Config):
    def forms(config: Config) -> int:
        return erase_anything.needs(config, listed(config), None).forms

    assert forms(config) == 1 + 1 + 3
    assert forms(replace(config, upper=Upper(rsc=0.0))) == 1
