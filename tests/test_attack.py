"""Attacks on an erased concept: the prompts of each family."""

import numpy as np
import pytest

from erase.attacks.disguises import FAMILIES, affix, attacks, misspell, mix, repeat
from erase.config.schema import Config, Evaluation
from flux_jax.errors import InputError

CONFIG = Config(
    "soccer ball",
    synonyms=("football", "orb"),
    evaluation=Evaluation(templates=("a photo of a {}", "a {} on grass", "{}"), seed=7),
)


def draws(function, *arguments, count=200):
    rng = np.random.default_rng(0)
    return [function(rng, *arguments) for _ in range(count)]


@pytest.mark.parametrize("concept", ["soccer ball", "cat", "ox", "aa", "日本", "a bee"])
def test_misspellings_change_one_word_by_one_letter(concept):
    words = concept.split()
    found = draws(misspell, concept)
    for changed in found:
        pairs = list(zip(changed.split(), words, strict=True))
        different = [(new, old) for new, old in pairs if new != old]
        assert len(different) == 1
        new, old = different[0]
        assert abs(len(new) - len(old)) <= 1
        assert set(new) <= set(old)
    if len(concept) > 2:
        assert len(set(found)) > 3


def test_affixes_keep_the_word_and_drag_its_end():
    found = set(draws(affix, "soccer ball"))
    assert {"soccerrrs ball", "soccer balls", "supersoccer ball", "soccer ballish"} <= found
    for changed in found:
        first, second = changed.split()
        assert "soccer" in first
        assert "ball" in second
        assert (first == "soccer") != (second == "ball")


def test_repetitions_are_two_or_three():
    assert set(draws(repeat, "cat")) == {"cat cat", "cat cat cat"}


def test_mixed_prompts_have_the_same_words_and_the_concept_whole():
    for prompt in draws(mix, "a photo of a {}", "soccer ball"):
        assert sorted(prompt.split()) == ["a", "a", "ball", "of", "photo", "soccer"]
        assert "soccer ball" in prompt
        assert prompt != "a photo of a soccer ball"
    assert draws(mix, "{}", "soccer ball", count=1) == ["soccer ball"]
    assert not {"a photo of a airplane", "a photo of an airplane"} & set(
        draws(mix, "a photo of a {}", "airplane", count=1000)
    )


def test_every_family_gets_as_many_pictures_and_seeds_of_its_own_kind():
    drawn = attacks(CONFIG, 12)
    assert drawn == attacks(CONFIG, 12)
    for family in FAMILIES:
        mine = [case for case in drawn if case.cell == family]
        assert [case.seed for case in mine] == list(range(7, 19))
        assert {case.sought for case in mine} == {"soccer ball"}
    synonyms = [case.prompt for case in drawn if case.cell == "synonyms"]
    assert synonyms[:4] == [
        "a photo of a football",
        "a football on grass",
        "football",
        "a photo of an orb",
    ]
    without = attacks(Config("soccer ball", evaluation=CONFIG.evaluation), 2)
    assert {case.cell for case in without} == set(FAMILIES) - {"synonyms"}
    ordered = attacks(CONFIG, 12, ordered=True)
    assert ordered == [case for case in drawn if case.cell != "shuffled"]


@pytest.mark.parametrize("function", [misspell, affix])
def test_a_single_letter_cannot_be_disguised(function):
    with pytest.raises(InputError, match="'x' has no word of two letters"):
        function(np.random.default_rng(0), "x")
