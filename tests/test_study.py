"""Studies: variants trained on the same concepts and seeds, and evaluated by a judge."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny

from benchmarks.experiments import study
from benchmarks.experiments.study import Study, read_study, run_study
from benchmarks.results.tables import sums
from erase.runs import configure, merge_fields
from erase.training import variants as variants_module
from flux_jax.errors import InputError


@pytest.fixture
def small(tiny_folder: Path, tmp_path: Path) -> Study:
    smallest = tiny.counted(tiny_folder, tiny.judge(tmp_path / "judge"))
    # Two losses are enough here, and compile in half the time.
    common = configure(**smallest, lower={"attn": 0.0}).to_dict()
    return Study(
        question="Does it?",
        concepts={name: common | {"concept": name} for name in ("cat", "dog")},
        variants={"plain": {}, "in order": {"bank": {"shuffled": 0.0}}},
        seeds=(0, 7),
    )


@pytest.mark.slow
def test_every_variant_is_counted_once(small: Study, tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "results" / "small.json"
    made = run_study(small, out)
    assert json.loads(out.read_text()) == made
    assert made["concepts"] == ["cat", "dog"]
    assert list(made["variants"]) == ["plain", "in order"]
    base = sums(made["variants"]["plain"])["Acc_e"]["before"]
    for variant in made["variants"].values():
        rows = variant["rows"]
        assert [(r["name"], r["seed"]) for r in rows] == [
            ("cat", 0), ("cat", 7), ("dog", 0), ("dog", 7)
        ]  # fmt: skip
        assert sums(variant)["Acc_e"]["after"]["of"] == 8
        assert sums(variant)["Acc_e"]["before"] == base
    assert "Does it?" in capsys.readouterr().out

    # Finished variants are not repeated; a changed one is.
    trained = []
    monkeypatch.setattr(study, "train_variant", lambda *a: trained.append(a) or 1 / 0)
    assert run_study(small, out) == made
    assert not trained
    with pytest.raises(ZeroDivisionError):
        run_study(replace(small, variants={"plain": {"lower": {"eta": 2.0}}}), out)
    assert json.loads(out.read_text()) == made
    with pytest.raises(InputError, match=r"small\.json' holds another study"):
        run_study(replace(small, seeds=(1,)), out)


@pytest.mark.slow
def test_variants_of_the_evaluation_share_their_training(small: Study, tmp_path: Path, monkeypatch):
    trained, train = [], variants_module.train_variant
    monkeypatch.setattr(study, "train_variant", lambda *a: trained.append(a) or train(*a))
    variants = {
        "full": {},
        "none": {"evaluation": {"strength": 0.0}},
        "longer": {"iterations": 2},
        "none of it": {"iterations": 2, "evaluation": {"strength": 0.0}},
    }
    made = run_study(replace(small, variants=variants), tmp_path / "small.json")["variants"]
    assert len(trained) == 2
    assert [made[name]["rows"][0]["iterations"] for name in variants] == [1, 1, 2, 2]
    for name in ("none", "none of it"):
        for cell in sums(made[name]).values():
            assert cell["after"] == cell["before"]

    # With early stopping, training depends on the evaluation's settings.
    stops = {
        name: merge_fields(changes, {"early_stop": {"every": 1}})
        for name, changes in variants.items()
    }
    trained.clear()
    run_study(replace(small, variants=stops), tmp_path / "stops.json")
    assert len(trained) == 4


def test_unusable_studies_are_named(small: Study, tmp_path: Path):
    with pytest.raises(InputError, match=r"'no\.py' is not a file"):
        read_study("no.py:losses")
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "experiments" / "studies.py"
    assert set(read_study(f"{path}:losses").variants) >= {"esd + attn", "all four"}
    with pytest.raises(InputError, match=r"is unknown; did you mean losses"):
        read_study(f"{path}:loses")
    with pytest.raises(InputError, match=r"is unknown; choose from seeds, settings, entities, "):
        read_study(str(path))
    with pytest.raises(InputError, match=r"lower\.attn = -1\.0 must be at least 0"):
        run_study(replace(small, variants={"bad": {"lower": {"attn": -1.0}}}), tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
