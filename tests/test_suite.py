"""The thirty concepts: training, validation and evaluation use separate prompts."""

import re
from collections.abc import Iterable

import pytest

from configs.suite import CONCEPTS, KEPT, SETTINGS, VALIDATION
from erase.evaluation.emoji_judge import NetworkJudge
from recipes.emoji_flux.world import ENTITIES, INVERSE, RELATIONS, STYLES

NAMES = sorted((entity.name for entity in ENTITIES), key=len, reverse=True)
ENTITY = re.compile(rf"\b({'|'.join(map(re.escape, NAMES))})\b")
JUDGE = NetworkJudge.load("models/emoji-flux/judge")


def things(prompts: Iterable[str]) -> set[str]:
    return {name for prompt in prompts for name in ENTITY.findall(prompt)}


def test_there_are_ten_of_each_kind():
    kinds = [JUDGE.kind(fields["concept"]) for fields in CONCEPTS.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ("entity", "style", "relation"), 10
    )
    assert set(VALIDATION) == set(SETTINGS) == set(CONCEPTS)


@pytest.mark.parametrize("name", [n.replace(" ", "_") for n in (*STYLES, *RELATIONS)])
def test_things_differ_between_training_validation_and_evaluation(name: str):
    fields, validation = CONCEPTS[name], VALIDATION[name]["evaluation"]
    trained = things(fields["prompts"])
    shown = things(SETTINGS[name]["upper"]["prompts"])
    chosen = things(validation["templates"])
    counted = things(fields["evaluation"]["templates"])
    assert trained == shown == set(KEPT)
    assert len(chosen) >= 4
    assert len(counted) >= 4
    assert not trained & (chosen | counted)
    assert not chosen & counted
    assert validation["seed"] != 1_000_000


@pytest.mark.parametrize("name", RELATIONS)
def test_no_relation_holds_on_to_itself_in_other_words(name: str):
    fields = CONCEPTS[name.replace(" ", "_")]
    own = {name, INVERSE.get(name, name)}
    assert not own & set(fields["irrelevant"])
    for prompt in SETTINGS[name.replace(" ", "_")]["upper"]["prompts"]:
        assert not any(re.search(rf"\b{word}\b", prompt) for word in own), prompt
    # It is still counted among the others.
    assert len(fields["evaluation"]["others"]) == len(RELATIONS) - 1
