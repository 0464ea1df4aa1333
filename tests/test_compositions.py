"""Measurements of composed adapters, on a tiny model with its own judge."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny

from benchmarks.experiments import compositions
from benchmarks.experiments.compositions import Method, asked, groups, measure, whole
from configs import emoji_hundred
from convert.adapters.files import write_lora
from erase.config.schema import Evaluation
from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, init
from erase.runs import load_runs
from flux_jax.tree import flatten, nest
from recipes.emoji_flux.world import RELATIONS, STYLES

LABELS = JudgeConfig(
    ("cat", "dog", "apple", "sun"), ("plain", "dark"), ("on",), (8, 8), blocks=(1, 1), embedding=4
)
TARGET = "dual_blocks/attn/add_k_proj"


def test_groups_begin_at_the_front_and_share_no_concept():
    names = [str(number) for number in range(100)]
    for count in compositions.COUNTS:
        made = groups(names, count)
        flat = [name for group in made for name in group]
        assert flat == names[: len(flat)]
        assert {len(group) for group in made} == {count}
        assert len(flat) <= max(count, compositions.FEW)


@pytest.mark.slow
def test_a_hundred_concepts_and_what_is_left():
    runs = load_runs(emoji_hundred.get_config())
    judge = NetworkJudge.load("models/emoji-flux/judge")
    assert len(runs) == 100
    drawn = asked(list(runs), runs, judge, 4, 0, 1)
    cells = {cell: [c for c in drawn if c.cell == cell] for cell in ("Acc_e", "Acc_g", "Acc_ir")}
    assert [len(each) for each in cells.values()] == [400, 400, 12 * compositions.FEW]
    left = {case.sought for case in cells["Acc_ir"]}
    shown, unseen = set(emoji_hundred.SHOWN), set(emoji_hundred.UNSEEN)
    assert left == shown | unseen | {"flat", "sticker", "in", "on"}
    assert not left & {judge.label(run.concept) for run in runs.values()}
    assert len(left) + 100 == len(judge.config.entities) + len(STYLES) + len(RELATIONS)
    # Each group's other labels use noise that no other group uses.
    ones, others = (
        {(c.prompt, c.seed) for c in asked(list(runs), runs, judge, 4, i, 2) if c.cell == "Acc_ir"}
        for i in (0, 1)
    )
    assert not ones & others


def test_nothing_in_training_names_what_is_unseen():
    for name, run in load_runs(emoji_hundred.get_config()).items():
        said = (*run.prompts, *run.synonyms, *run.irrelevant, *run.upper.prompts)
        words = {word for sentence in said for word in sentence.split()}
        assert not words & set(emoji_hundred.UNSEEN), name


@pytest.mark.slow
def test_choices_are_made_on_other_pictures():
    runs = load_runs(emoji_hundred.get_config())
    chosen = load_runs(emoji_hundred.validation())
    judge = NetworkJudge.load("models/emoji-flux/judge")
    drawn, other = (asked(list(each), each, judge, 2, 0, 1) for each in (runs, chosen))
    assert not {(c.prompt, c.seed) for c in drawn} & {(c.prompt, c.seed) for c in other}


@pytest.mark.slow
@pytest.mark.parametrize("erased", [(), ("cat", "noto", "in"), None])
def test_sentences_with_what_stays_are_not_those_counted(erased):
    runs = load_runs(emoji_hundred.get_config())
    judge = NetworkJudge.load("models/emoji-flux/judge")
    labels = {judge.label(run.concept) for run in runs.values()} if erased is None else set(erased)
    kept = emoji_hundred.keep_sentences(labels)
    assert kept == emoji_hundred.keep_sentences(labels)
    shown = {case.prompt for case in asked(list(runs), runs, judge, 8, 0, 1)}
    assert not shown & set(kept)
    for label in {*judge.config.entities, *judge.config.styles, *judge.config.relations} - labels:
        assert any(label in sentence for sentence in kept), label


def leaves(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"{TARGET}/A": rng.normal(size=(2, 32, 2)).astype(np.float32),
        f"{TARGET}/B": rng.normal(size=(2, 2, 32)).astype(np.float32) / 8,
    }


def test_full_rank_is_the_same_change():
    flat = leaves(0)
    made = whole(flat)
    found = flatten(made.scaled())
    change = found[f"{TARGET}/A"] @ found[f"{TARGET}/B"]
    np.testing.assert_allclose(change, flat[f"{TARGET}/A"] @ flat[f"{TARGET}/B"], atol=1e-5)


@pytest.mark.slow
def test_every_method_is_counted_once(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys):
    params = init(JudgeNetwork(LABELS), jax.random.key(3), 16)
    NetworkJudge(LABELS, params, 16).save(tmp_path / "judge")
    evaluation = Evaluation(judge=str(tmp_path / "judge"), steps=2, batch=6)
    common = {"synonyms": ("kitty",), "irrelevant": ("tree",), "evaluation": evaluation}
    runs = {
        name: tiny.run_config(tiny_folder, concept=name, **common) for name in ("cat", "dog", "sun")
    }
    for seed, (name, run) in enumerate(runs.items()):
        metadata = {"concept": name, "settings": json.dumps(dataclasses.asdict(run))}
        write_lora(tmp_path / name, nest(leaves(seed)), 2.0, metadata)
    monkeypatch.setattr(compositions, "COUNTS", (2,))
    monkeypatch.setattr(compositions, "FEW", 2)
    methods = {
        "sum": Method("sum"),
        "svd": Method("svd", 1),
        "fusion": Method("fusion", 2, least=1.0),
    }
    monkeypatch.setattr(compositions, "WANTED", 1.0)
    monkeypatch.setattr(compositions, "TRIED", 2)
    monkeypatch.setattr(compositions, "METHODS", methods)
    out = tmp_path / "out.json"
    made = measure(runs, runs, tmp_path, out, 3)
    assert json.loads(out.read_text()) == made
    assert set(made["counts"]["2"]) == set(methods)
    for found in made["counts"]["2"].values():
        cells = found["all"]
        assert [cells[c]["after"]["of"] for c in ("Acc_e", "Acc_g", "Acc_ir")] == [6, 6, 6]
        assert cells == found["kinds"]["entity"] | {"H": cells["H"]}
        assert {row["concept"] for row in found["concepts"]} <= {*LABELS.entities}
        assert cells["Acc_ir"]["before"] == made["counts"]["2"]["sum"]["all"]["Acc_ir"]["before"]
    compositions.show(made)
    assert "fusion" in capsys.readouterr().out
    monkeypatch.setattr(compositions, "changes", None)
    assert measure(runs, runs, tmp_path, out, 3) == made


def test_strengths_are_found_from_the_least_on():
    def left(strength: float) -> float:
        return max(0.0, 1 - strength / 2)

    assert compositions.find_strength(left, None) == 1
    assert compositions.find_strength(left, 1.7) == 1.7
    for least in (0.0, 1.0):
        found = compositions.find_strength(left, least)
        assert 1.6 <= found <= 1.6 + compositions.TOLERANCE
