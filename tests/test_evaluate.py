"""Evaluation: its prompts, its counts and its files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from configs import emoji_cat
from erase.attacks.attack import attack
from erase.attacks.disguises import FAMILIES
from erase.config.schema import Config, EarlyStop, Evaluation, Model
from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.eval_prompts import EvalPrompt, draw_cases, evaluation_prompts, judge_pictures
from erase.evaluation.evaluate import (
    by_synonym,
    concepts_to_keep,
    evaluate,
    evaluation_cells,
    plan_evaluation,
)
from erase.evaluation.judge import open_judge
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, init
from erase.evaluation.notes import left_out_note
from erase.evaluation.statistics import CELLS, harmonic_mean, wilson_interval
from erase.methods.settings.erase_anything import Upper
from erase.model.attention_maps import TIMES, attention_maps
from erase.report import report
from erase.runs import RunConfig, load_config
from erase.training import run
from flux_jax import Adapter, load, lora
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline
from flux_jax.weights.loading import Weights

LABELS = JudgeConfig(
    ("cat", "dog", "hot dog", "apple"),
    ("plain", "dark"),
    ("left of", "on"),
    widths=(8, 8),
    blocks=(1, 1),
    embedding=4,
)


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def adapter(pipe: Pipeline) -> Adapter:
    tree = lora.init(jax.random.key(0), pipe.params["transformer"], rank=2)
    return Adapter(jax.tree.map(lambda leaf: leaf + 0.5, tree), 2.0)


@pytest.fixture(scope="module")
def judge() -> NetworkJudge:
    params = init(JudgeNetwork(LABELS), jax.random.key(3), 16)
    # An untrained judge would find nothing at all.
    params["entity_head"]["bias"] *= 0
    return NetworkJudge(LABELS, params, 16)


@pytest.fixture(scope="module")
def config(judge: NetworkJudge, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("judge")
    judge.save(folder)
    return RunConfig(
        concept="cat",
        model=Model("tiny"),
        synonyms=("kitty", "feline"),
        height=16,
        width=16,
        evaluation=Evaluation(
            judge=str(folder),
            templates=("a photo of a {}", "a {} on a mat"),
            pictures=6,
            batch=8,
            steps=2,
            examples=3,
            attention_examples=2,
        ),
    )


def test_cases_spread_over_words_templates_and_seeds(config: Config):
    drawn = evaluation_prompts(config, ["dog", "apple"])
    by_cell = {cell: [c for c in drawn if c.cell == cell] for cell in CELLS}
    assert [len(part) for part in by_cell.values()] == [6, 6, 6]
    assert {c.prompt for c in by_cell["Acc_e"]} == {"a photo of a cat", "a cat on a mat"}
    # Every synonym in every template, all judged by the concept's own name.
    assert len({c.prompt for c in by_cell["Acc_g"]}) == 4
    assert {c.sought for c in by_cell["Acc_g"]} == {"cat"}
    assert len({c.prompt for c in by_cell["Acc_ir"]}) == 4
    assert {c.sought for c in by_cell["Acc_ir"]} == {"dog", "apple"}
    assert len({(c.prompt, c.seed) for c in drawn}) == len(drawn)
    assert evaluation_prompts(config, ["dog", "apple"]) == drawn
    assert all(c.cell != "Acc_g" for c in evaluation_prompts(replace(config, synonyms=()), ["dog"]))


@pytest.mark.parametrize(
    ("changes", "settings", "told"),
    [
        ({"height": 32}, {}, "height = 32: the judge .* takes pictures of 16 x 16 pixels"),
        ({"width": 128}, {}, "width = 128: the judge"),
        ({"concept": "bat", "prompts": ("a bat",)}, {}, "'bat' is not among the judge's labels"),
        ({}, {"others": ("dog", "cow")}, "'cow' is not among the judge's labels"),
        ({"early_stop": EarlyStop(1)}, {"judge": None}, "early_stop needs a judge"),
    ],
)
def test_what_the_judge_cannot_count_is_told_before_a_model_is_opened(
    config: Config, tmp_path: Path, changes: dict, settings: dict, told: str
):
    asked = replace(config, **changes, evaluation=replace(config.evaluation, **settings))
    asked = replace(asked, model=Model("no-such-folder"), upper=Upper(rsc=0))
    with pytest.raises(InputError, match=told) as raised:
        run.run({"": asked}, tmp_path / "run")
    assert len(str(raised.value)) < 400
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="no-such-folder"):
        run.run({"": replace(config, model=asked.model, upper=asked.upper)}, tmp_path / "run")


def test_a_size_that_the_model_cannot_draw_is_told_before_weights_are_read(
    config: Config, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Weights, "__getitem__", lambda *_: pytest.fail("weights are read"))
    asked = replace(config, model=Model(str(tiny_folder)), upper=Upper(rsc=0), height=18)
    asked = replace(asked, evaluation=replace(config.evaluation, judge=None))
    with pytest.raises(InputError, match="height = 18 is not a multiple"):
        run.run({"": asked}, tmp_path / "run")


def test_longer_names_win_and_pairs_are_ordered(judge: NetworkJudge):
    assert judge.named_pair("a hot dog left of an apple") == (2, 3)
    assert judge.named_pair("an apple on dogs and a cat") == (3, 1)
    with pytest.raises(InputError, match="two entities"):
        judge.named_pair("a hot dog alone")


def test_verdicts_follow_each_label(judge: NetworkJudge):
    pictures = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    labels = ["cat", "dark", "left of", "on"] * 10
    drawn = [EvalPrompt("Acc_e", "a dog left of a cat", 0, label) for label in labels]
    verdict = judge(pictures)
    relation = judge.relation(pictures, np.full(40, 1), np.full(40, 0)).argmax(-1)
    expected = {
        "cat": verdict.entities[:, 0] > 0,
        "dark": verdict.style.argmax(-1) == 1,
        "left of": relation == 0,
        "on": relation == 1,
    }
    wanted = [expected[label][i] for i, label in enumerate(labels)]
    assert np.array_equal(judge_pictures(judge, pictures, drawn), wanted)


def test_harmonic_mean_wants_all_three():
    def cells(erased: float, other_words: float, kept: float):
        shares = {"Acc_e": erased, "Acc_g": other_words, "Acc_ir": kept}
        return {name: {"after": {"share": value}} for name, value in shares.items()}

    assert harmonic_mean(cells(0.25, 0.6, 1.0), "after") == pytest.approx(3 / (1 / 0.75 + 2.5 + 1))
    assert harmonic_mean(cells(1.0, 0.0, 1.0), "after") == 0
    assert harmonic_mean(cells(0.0, 0.0, 0.0), "after") == 0


def place(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Position of a picture on a sheet, in pixels from the top and from the left."""
    height, width = picture.shape[:2]
    corners = np.argwhere((sheet == picture[0, 0]).all(axis=-1)).tolist()
    return next(
        (y, x) for y, x in corners if np.array_equal(sheet[y : y + height, x : x + width], picture)
    )


def test_synonyms_that_the_base_cannot_draw_are_left_out(config: Config):
    drawn = evaluation_prompts(replace(config, synonyms=("kitty", "feline", "grimalkin")), ["dog"])
    after = np.zeros(len(drawn), bool)
    # The base model draws a cat for all words but one, and sometimes for "kitty".
    before = np.array([case.word not in ("grimalkin", "kitty") for case in drawn])
    before[next(i for i, case in enumerate(drawn) if case.word == "kitty")] = True
    found = {"before": before, "after": after}
    rows = {row["word"]: row for row in by_synonym(drawn, found)}
    assert {word: row["left_out"] for word, row in rows.items()} == {
        "kitty": False, "feline": False, "grimalkin": True,
    }  # fmt: skip
    assert rows["grimalkin"] == {
        "concept": "cat", "word": "grimalkin", "before": 0, "after": 0, "of": 2, "left_out": True,
    }  # fmt: skip
    cells = evaluation_cells(drawn, found)
    assert cells["Acc_g"] == {"before": wilson_interval(3, 4), "after": wilson_interval(0, 4)}
    assert cells["Acc_e"]["before"]["of"] == cells["Acc_ir"]["before"]["of"] == 6
    told = left_out_note({"synonyms": list(rows.values())})
    assert "“grimalkin” (0 of 2)" in told
    assert "kitty" not in told
    # No synonym is left: there is no Acc_g, and H is computed from the rest.
    nothing = {
        "before": before & np.array([case.cell != "Acc_g" for case in drawn]),
        "after": after,
    }
    assert set(evaluation_cells(drawn, nothing)) == {"Acc_e", "Acc_ir"}
    # If the concept's own name does not work either, no synonym is excluded.
    blind = {"before": np.zeros(len(drawn), bool), "after": after}
    assert evaluation_cells(drawn, blind)["Acc_g"]["before"] == wilson_interval(0, 6)
    assert left_out_note({}) == ""


@pytest.mark.slow
def test_evaluation_writes_what_a_report_reads(
    pipe: Pipeline, adapter: Adapter, config: Config, judge: NetworkJudge, tmp_path: Path
):
    result: dict[str, Any] = {**evaluate(pipe, adapter, config, tmp_path)}
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    assert list(result["cells"]) == ["Acc_e", "Acc_g", "Acc_ir"]
    assert {v["of"] for cell in result["cells"].values() for v in cell.values()} == {6}
    assert result["H"] == {side: harmonic_mean(result["cells"], side) for side in result["H"]}
    assert [row["concept"] for row in result["concepts"]] != []
    assert sum(row["of"] for row in result["concepts"]) == 6
    assert {row["concept"] for row in result["concepts"]} <= {"dog", "hot dog", "apple"}
    assert len(result["pictures"]) == 9
    together = np.asarray(Image.open(tmp_path / "before_after.png"))
    last = -1
    for number, entry in enumerate(result["pictures"]):
        before, after = (np.asarray(Image.open(tmp_path / entry[s])) for s in ("before", "after"))
        assert before.shape == (16, 16, 3)
        # Two rows per cell, a column per example.
        places = [place(together, picture.repeat(8, 0).repeat(8, 1)) for picture in (before, after)]
        assert places[0][1] == places[1][1]
        assert places[0][0] + 128 <= places[1][0]
        if number % 3:
            assert places[0][1] >= last + 128
        last = places[0][1]
        assert not np.array_equal(before, after)
        assert np.array_equal(before, pipe([entry["prompt"]], [entry["seed"]], 2, 3.5, 16, 16)[0])
        assert entry["found_before"] == judge.shows_each(before[None], [entry["sought"]])[0]
    assert result["adapter_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(adapter.lora))
    maps = np.load(tmp_path / "attention.npz")
    assert maps["before"].shape == maps["after"].shape == (2, 4, 4)
    assert result["attention_times"] == list(TIMES)
    (tmp_path / "config.json").write_text(json.dumps({"concept": "cat"}))
    assert "Acc_ir" in report.write(tmp_path).read_text()


@pytest.mark.slow
def test_attacks_are_counted_on_every_side_and_written_twice(
    pipe: Pipeline, adapter: Adapter, config: Config, tmp_path: Path
):
    result = attack(pipe, adapter, config, tmp_path, pictures=3)
    assert json.loads((tmp_path / "attacks.json").read_text()) == result
    assert tuple(result["cells"]) == FAMILIES
    lines = (tmp_path / "attacks.csv").read_text().splitlines()
    assert lines[0] == "family,side,access,budget,found,of,share,low,high"
    assert len(lines) == 1 + 3 * len(FAMILIES)
    for family, line in zip(FAMILIES, lines[3::3], strict=True):
        after = result["cells"][family]["after"]
        assert line.startswith(f"{family},after,prompts,,{after['found']},3,")
    # At strength 0 the adapter has no effect.
    still = replace(config, evaluation=replace(config.evaluation, strength=0.0))
    for sides in attack(pipe, adapter, still, tmp_path, pictures=3)["cells"].values():
        assert sides["before"] == sides["after"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": None}, "evaluation.judge = None"),
        ({"templates": ("a photo of a {} " + "and more " * 200,)}, "prompt"),
    ],
)
def test_attacks_need_a_judge_and_room(
    pipe: Pipeline, adapter: Adapter, config: Config, tmp_path: Path, changes, message
):
    changed = replace(config, evaluation=replace(config.evaluation, **changes))
    with pytest.raises(InputError, match=message):
        attack(pipe, adapter, changed, tmp_path, pictures=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_attacks_silence_the_concept_where_the_prompt_holds_it(
    pipe: Pipeline, config: Config, judge: NetworkJudge
):
    drawn = [
        EvalPrompt("any", f"a photo of a {word}", 5, "cat") for word in ("cat", "ctat", "kitty")
    ]
    base = draw_cases(pipe, drawn, config, [], "before")
    silenced = draw_cases(pipe, drawn, config, [], "silenced", "cat")
    changed = np.abs(base.astype(int) - silenced).max((1, 2, 3))
    assert changed[0] > 1
    # Two programs may round differently, by one grey level.
    assert changed[1:].max() <= 1


def test_relations_are_attacked_by_all_but_shuffled_words(
    pipe: Pipeline, adapter: Adapter, config: Config, tmp_path: Path
):
    templates = ("a cat {} a dog", "an apple {} a cat")
    of_relation = replace(
        config,
        concept="on",
        synonyms=("atop",),
        evaluation=replace(config.evaluation, templates=templates),
    )
    result = attack(pipe, adapter, of_relation, tmp_path, pictures=2)
    assert result["kind"] == "relation"
    assert (
        tuple(result["cells"])
        == tuple(result["prompts"])
        == tuple(f for f in FAMILIES if f != "shuffled")
    )
    assert result["prompts"]["synonyms"] == ["a cat atop a dog", "an apple atop a cat"]
    with pytest.raises(InputError, match="two entities"):
        attack(pipe, adapter, replace(config, concept="on"), tmp_path, pictures=1)


def test_attention_is_a_share_and_strength_zero_changes_nothing(
    pipe: Pipeline, adapter: Adapter, config: Config
):
    prompts, seeds = ["a cat on a mat", "a photo of a cat"], [5, 6]
    off = replace(config, evaluation=replace(config.evaluation, strength=0.0))
    same = attention_maps(pipe, adapter, off, prompts, seeds)
    changed = attention_maps(pipe, adapter, config, prompts, seeds)
    assert np.array_equal(same["before"], same["after"])
    assert np.array_equal(same["before"], changed["before"])
    assert np.abs(changed["after"] - changed["before"]).max() > 1e-3
    for maps in changed.values():
        assert maps.shape == (2, 4, 4)
        assert maps.min() >= 0
        assert maps.max() < 1


def test_without_a_judge_there_are_pictures_and_a_clear_line(
    pipe: Pipeline, adapter: Adapter, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture
):
    unjudged = replace(config, evaluation=replace(config.evaluation, judge=None, others=("dog",)))
    result: dict[str, Any] = {**evaluate(pipe, adapter, unjudged, tmp_path)}
    assert "cells" not in result
    assert len(result["pictures"]) == 9
    assert {entry["found_after"] for entry in result["pictures"]} == {None}
    assert "No judge" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concept": "catt"}, "concept = 'catt'.*'cat'"),
        ({"others": ("zebra",)}, "'zebra'"),
        ({"others": ("on",)}, "two entities"),
        ({"judge": "no-such-folder"}, "no-such-folder"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict,
    message: str,
):
    monkeypatch.setattr("erase.evaluation.eval_prompts.draw", lambda *_, **__: pytest.fail("drawn"))
    if "concept" in changes:
        config = replace(config, **changes)
    else:
        config = replace(config, evaluation=replace(config.evaluation, **changes))
    with pytest.raises(InputError, match=message):
        evaluate(pipe, adapter, config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_composition_erases_besides_is_not_asked_for():
    config = load_config(emoji_cat.get_config())
    pipe = load(config.model.path)
    judge = open_judge(config.evaluation.judge or "")
    away = [word for word in concepts_to_keep(config, judge) if word not in ("dog", "fish")]
    _, drawn = plan_evaluation(config, pipe, away)
    assert {case.sought for case in drawn if case.cell == "Acc_ir"} == {"dog", "fish"}
    assert {case.sought for case in drawn if case.cell != "Acc_ir"} == {"cat"}
