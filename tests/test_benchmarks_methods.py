"""Benchmarks of methods on a tiny model: cost at one size, and relearning after erasing."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import tiny

from benchmarks.experiments import methods_full_size, relearning
from erase.attacks import relearn
from erase.config.schema import Config
from erase.methods import METHODS
from erase.model.open import open_model
from erase.runs import configure, load_runs
from erase.training.make_adapters import make_adapters
from erase.training.prepare import prepare, resolve_runs
from flux_jax.errors import InputError

# Learning rate of erasing, of Meta-Unlearning's inner steps and of retraining.
RATE = 3e-3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """Configuration of one run for each of some methods that export an adapter.

    All tests train with these settings, so that each method's step is compiled once, on a model of
    one block of each kind and few tokens, since Meta-Unlearning takes 1,500 steps on it.
    """
    folder = tiny.build(tmp_path_factory.mktemp("shallow") / "pipeline", dual=1, single=1)
    judge = tiny.judge(tmp_path_factory.mktemp("judge") / "judge")
    own = {"learning_rate": RATE, "trajectories": "teacher"}
    meta = {"keep": 0.5, "meta": 12.0, "inner_steps": 10, "inner_rate": RATE}
    common = tiny.counted(folder, judge) | {"concept": "cat", "iterations": 3}
    common |= {"batch_size": 4, "text_tokens": 12, "esd": own, "meta_unlearning": own | meta}
    return {
        name: load_runs(configure(**common, method=name))[""]
        for name in ("uce", "esd", "meta_unlearning")
    }


@pytest.fixture(scope="module")
def errors(
    runs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[float]]:
    """Errors on the concept's pictures while ESD's and Meta-Unlearning's adapters are retrained."""
    return {
        name: taught(replace(runs[name], iterations=150), tmp_path_factory.mktemp(name))
        for name in ("esd", "meta_unlearning")
    }


@pytest.mark.slow
def test_each_method_is_measured_in_a_process_of_its_own(
    runs: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    silent = {name: replace(c, evaluation=tiny.Evaluation(pictures=0)) for name, c in runs.items()}
    lost = replace(silent["esd"], model=tiny.Model("nowhere"))
    out = tmp_path / "cost.json"
    made = methods_full_size.measure_all({"uce": {"": silent["uce"]}, "eap": {"": lost}}, out)
    assert json.loads(out.read_text()) == made
    assert made["iterations"] == 3
    solved, failed = made["methods"].values()
    assert solved["title"] == METHODS["uce"].title
    assert (solved["updates"], solved["update_s"]) == (0, None)
    assert solved["whole_s"] > 0
    assert failed["error"].startswith("InputError: model = 'nowhere' does not exist")
    # Failed methods are measured again, finished ones are not.
    with monkeypatch.context() as patched:
        patched.setattr(methods_full_size, "measure", lambda runs: {"tried": "again"})
        patched.setattr(methods_full_size, "ProcessPoolExecutor", ThreadPoolExecutor)
        given = {"uce": {"": silent["uce"]}, "eap": {"": lost}}
        again = methods_full_size.measure_all(given, out)["methods"]
    assert again["uce"] == solved
    assert again["eap"] == {"title": METHODS["eap"].title, "tried": "again"}
    # Trained methods are timed by update; in this process, since another one would compile again.
    found = methods_full_size.measure({"": silent["esd"]})
    assert found["updates"] == 3
    update, whole = found["update_s"], found["whole_s"]
    assert isinstance(update, float)
    assert isinstance(whole, float)
    assert 0 < update < whole
    assert found["parameters"] == tiny.adapter_values(dual=1)
    with pytest.raises(InputError, match="holds another measurement"):
        methods_full_size.measure_all({"uce": {"": replace(silent["uce"], iterations=4)}}, out)


@pytest.mark.slow
def test_relearning_is_counted_after_each_number_of_steps(
    runs: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "relearning.json"
    # A configuration of a single concept has an unnamed run.
    given = {name: {"": runs[name]} for name in ("esd", "meta_unlearning")}
    seen: dict[str, list[Any]] = {}

    def count(pipe: Any, adapter: Any, config: Config, before: Any) -> dict[str, Any]:
        seen.setdefault(config.method, []).append(jax.tree.leaves(adapter.lora))
        return {"concept": config.concept, "kind": "entity", "seed": 0, "cells": {}}

    monkeypatch.setattr(relearning, "count", count)
    made = relearning.measure(given, out, [0, 1, 3], RATE)
    assert json.loads(out.read_text()) == made
    assert list(made["methods"]["esd"]["steps"]) == ["0", "1", "3"]
    for erased, *taught in seen.values():
        # AdamW's first step changes every value with a gradient by the learning rate.
        moved = [np.abs(a - b).max() for a, b in zip(erased, taught[0], strict=True)]
        assert max(moved) == pytest.approx(RATE, rel=1e-2)
        assert any((a != b).any() for a, b in zip(*taught, strict=True))
    # Everything is done; and without a judge nothing can be counted.
    monkeypatch.setattr(relearning, "train_variant", lambda *_: pytest.fail("trained again"))
    assert relearning.measure(given, out, [0, 1, 3], RATE) == made
    uncounted = replace(runs["esd"], evaluation=tiny.Evaluation())
    with pytest.raises(InputError, match="judge = None: relearning is counted"):
        relearning.measure({"esd": {"run": uncounted}}, tmp_path / "no.json", [1], RATE)


@pytest.mark.slow
def test_teaching_lowers_the_error_on_the_concepts_pictures(errors: dict[str, list[float]]):
    assert np.mean(errors["esd"][-8:]) < 0.97 * np.mean(errors["esd"][:8])


@pytest.mark.slow
def test_meta_unlearning_makes_teaching_slower(errors: dict[str, list[float]]):
    """After half of the steps ESD's adapter has learnt less than after all of them."""
    esd, slower = (np.reshape(each, (4, 10)).mean(axis=1) for each in errors.values())
    assert (slower > 1.02 * esd).all()
    # The last and the second of four quarters of training.
    assert slower[3] > esd[1]


def taught(config: Config, folder: Path) -> list[float]:
    """Erase and retrain: the error on the concept's pictures at each of 40 steps."""
    configs = {"": config}
    pipe = open_model(config)
    runs = prepare(resolve_runs(configs), pipe, folder)
    errors: list[float] = []
    teach = relearn.TEACH

    class Noted:
        """The step of an update, of which each error is kept."""

        lower, trace = staticmethod(teach.lower), staticmethod(teach.trace)

        def __call__(self, *given: Any, **settings: Any) -> Any:
            state, metrics = teach(*given, **settings)
            errors.append(float(metrics["teach"][0]))
            return state, metrics

    erased = make_adapters(runs, pipe, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(relearn, "TEACH", Noted())
        assert [steps for steps, _ in relearn.teach(erased, configs, pipe, [40], RATE)] == [40]
    return errors
