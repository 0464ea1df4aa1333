"""Measuring the model's own samples: prompts, counts and files."""

import json
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, init
from flux_jax.pipeline import load
from recipes.emoji_flux import measure as measuring
from recipes.emoji_flux.measure import Probe, correct, measure, probes, without_pooled
from recipes.emoji_flux.world import ENTITIES, RELATIONS, STYLES


@pytest.fixture(scope="module")
def judge() -> NetworkJudge:
    names = tuple(entity.name for entity in ENTITIES)
    config = JudgeConfig(names, STYLES, RELATIONS, widths=(8, 8), blocks=(1, 1), embedding=4)
    params = init(JudgeNetwork(config), jax.random.key(0))
    # An untrained judge would find nothing at all.
    params["entity_head"]["bias"] *= 0
    return NetworkJudge(config, params)


def test_probes_ask_for_every_class_equally():
    available = np.ones((len(ENTITIES), len(STYLES)), bool)
    available[5:, 2] = False
    asked = list(probes(2, available))
    count = Counter((probe.group, probe.name) for probe in asked)
    for entity in ENTITIES:
        assert count["entity", entity.name] == count["misspelt", entity.name] == 2
        assert count["synonym", entity.name] == (2 if entity.synonyms else 0)
    assert {count["style", name] for name in STYLES} == {20}
    assert {count["relation", name] for name in RELATIONS} == {20}
    for probe in asked:
        if probe.group == "style":
            assert probe.prompt.endswith(f"in the style of {probe.name}")
            names = [entity.name for entity in ENTITIES[:5]]
            assert probe.name != STYLES[2] or any(name in probe.prompt for name in names)
        if probe.group == "entity":
            assert ENTITIES[probe.entities[0]].name in probe.prompt
        if probe.group == "synonym":
            assert any(word in probe.prompt for word in ENTITIES[probe.entities[0]].synonyms)
        if probe.relation:
            assert RELATIONS[probe.relation[2]] == probe.name
            first, second = (probe.prompt.index(ENTITIES[i].name[:4]) for i in probe.relation[:2])
            assert first < second or ENTITIES[probe.relation[1]].name[:4] in probe.prompt[:first]
    assert list(probes(2, available)) == asked


@pytest.mark.slow
def test_a_probe_holds_only_if_all_it_asks_for_is_seen(judge: NetworkJudge):
    pictures = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    verdict = judge(pictures)
    shown = np.flatnonzero(verdict.entities[0] > 0).tolist()
    hidden = np.flatnonzero(verdict.entities[0] <= 0).tolist()
    assert shown
    assert hidden
    style = int(verdict.style[0].argmax())
    relation = int(judge.relation(pictures, np.array([3]), np.array([4]))[0].argmax())
    for probe, expected in (
        (Probe("", "", "", (shown[0],), style), True),
        (Probe("", "", "", (shown[0], hidden[0])), False),
        (Probe("", "", "", (shown[0],), (style + 1) % len(STYLES)), False),
        (Probe("", "", "", relation=(3, 4, relation)), True),
        (Probe("", "", "", relation=(3, 4, (relation + 1) % len(RELATIONS))), False),
    ):
        assert correct(judge, pictures, [probe])[0] == expected


@pytest.mark.slow
def test_without_pooled_only_the_pooled_vector_is_zero(tiny_folder: Path):
    pipe = load(tiny_folder)
    whole, blind = pipe.encode(["a cat"]), without_pooled(pipe).encode(["a cat"])
    assert np.any(whole.pooled)
    assert not np.any(blind.pooled)
    assert np.array_equal(whole.text, blind.text)


@pytest.mark.slow
def test_measure_writes_shares_and_sheets(
    tiny_folder: Path, judge: NetworkJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def draw(pipe, prompts, seeds, options, **settings):
        del pipe, options, settings
        seen.append((prompts, seeds))
        return np.random.default_rng(0).integers(0, 256, (len(prompts), 64, 64, 3), np.uint8)

    monkeypatch.setattr(measuring, "draw", draw)
    results = measure(load(tiny_folder), judge, tmp_path, per_class=1)
    written = json.loads((tmp_path / "measure.json").read_text())
    assert written.pop("settings") == {"per_class": 1, "steps": 28, "guidance": 3.5}
    assert written == results
    groups = ("entity", "style", "relation", "two objects", "synonym", "misspelt", "shuffled")
    assert set(results) == {*groups, "entity, no pooled vector"}
    for group in results.values():
        accuracy = group["accuracy"]
        assert accuracy["low"] <= accuracy["share"] <= accuracy["high"]
        assert min(group["classes"].values()) >= 0
    assert results["entity"]["accuracy"]["of"] == len(ENTITIES)
    # The prompts of "entity" are sampled again from the same noise.
    again = [probe.prompt for probe in probes(1) if probe.group == "entity"]
    assert seen[1][0] == again
    assert set(zip(*seen[1], strict=True)) <= set(zip(*seen[0], strict=True))
    with Image.open(tmp_path / "two-objects.png") as picture:
        assert picture.size == (12 * 64, 64)
