"""Sentences: the concept stays whole in every position, and can be replaced."""

from collections import Counter

import numpy as np
import pytest

from erase.data.words.templates import as_template, draw_groups, leave_out, phrase, shuffle
from flux_jax.errors import InputError

PROMPTS = ("a photo of a {}", "a painting by Vincent van Gogh, in the style of VINCENT VAN GOGH")


@pytest.mark.parametrize(
    ("sentence", "concept", "template"),
    [
        ("a photo of a {}", "cat", "a photo of a {}"),
        ("A Cat and a cat.", "cat", "A {} and a {}."),
        ("a cat, a {}", "cat", "a {}, a {}"),
        ("a Soccer Ball on grass", "soccer ball", "a {} on grass"),
        ("what (1+1)? is", "(1+1)?", "what {} is"),
        ("dîner avec Timothée", "timothée", "dîner avec {}"),
        ("two accordions on a table", "accordion", "two {}s on a table"),
        ("the knives' and the knife's edge", "knife", "the {}s' and the {}'s edge"),
        ("a soccer-ball, a  soccer  ball", "soccer ball", "a {}, a  {}"),
        ("catlike, cattts, 3cats", "cat", "{}like, {}s, 3{}s"),
    ],
)
def test_the_concept_becomes_a_slot_everywhere(sentence: str, concept: str, template: str):
    assert as_template(sentence, concept) == template


@pytest.mark.parametrize("sentence", ["a dog", "a caterpillar", "concatenated", ""])
def test_a_prompt_without_the_concept_is_refused(sentence: str):
    with pytest.raises(InputError, match=f"'{sentence}' does not hold the concept 'cat'"):
        as_template(sentence, "cat")


def test_shuffles_keep_the_words_and_move_the_concept_whole():
    rng = np.random.default_rng(0)
    template = as_template(PROMPTS[1], "Vincent van Gogh")
    seen = set()
    for _ in range(50):
        shuffled = shuffle(rng, template)
        assert Counter(shuffled.split()) == Counter(template.split())
        assert phrase(shuffled, "Vincent van Gogh").count("Vincent van Gogh") == 2
        seen.add(shuffled)
    assert len(seen) > 40


def test_articles_and_foreign_braces():
    assert phrase("A {} with a {}", "apple") == "An apple with an apple"
    assert phrase("a {}", "cat") == "a cat"
    assert phrase("pasta {}", "onion") == "pasta onion"
    assert phrase("a {} and {this}", "cat") == "a cat and {this}"


def test_articles_follow_the_word_in_both_directions():
    for word in ("unicorn", "piano", "European", "one-way street", "U-turn", "TV", "user"):
        assert phrase("an {}, An {}", word) == f"a {word}, A {word}"
    for word in ("umbrella", "hour", "accordion", "heirloom", "X-ray", "onion", "8-ball", "urn"):
        assert phrase('a "{}", A {}', word) == f'an "{word}", An {word}'


def test_plurals_follow_the_word():
    words = {
        "cat": "cats", "box": "boxes", "butterfly": "butterflies", "toy": "toys",
        "knife": "knives", "roof": "roofs", "bus": "buses", "lens": "lenses", "quiz": "quizzes",
        "scissors": "scissors", "sheep": "sheep", "woman": "women", "human": "humans",
        "blouse": "blouses", "mouse": "mice", "fox": "foxes", "hero": "heroes", "Man": "Men",
        "soccer ball": "soccer balls",
    }  # fmt: skip
    for word, many in words.items():
        assert phrase("two {}s, {}'s", word) == f"two {many}, {word}'s"
        # Every generated form is recognised.
        assert as_template(f"two {many}", word) in ("two {}s", "two {}")


def test_groups_differ_in_one_word_only():
    others = ("the Dutch painter", "tree", "owl", "key")
    groups = draw_groups(
        np.random.default_rng(1), PROMPTS, "Vincent van Gogh", others, count=20, shuffled=0.5
    )
    assert len(groups) == 20
    for group in groups:
        assert group.words == ("Vincent van Gogh", *others)
        template = as_template(group.prompts[0], "Vincent van Gogh")
        for prompt, word in zip(group.prompts, group.words, strict=True):
            back = prompt.replace(word, "{}").replace("an {}", "a {}")
            assert back == template.replace("an {}", "a {}")
    originals = [phrase(as_template(p, "Vincent van Gogh"), "Vincent van Gogh") for p in PROMPTS]
    kept = sum(group.prompts[0] in originals for group in groups)
    assert 4 <= kept <= 16


def test_groups_follow_the_generator_alone():
    def draw(seed: int) -> list:
        rng = np.random.default_rng(seed)
        return draw_groups(rng, PROMPTS[:1], "cat", ("kitty", "tree"), count=9, shuffled=1.0)

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize(
    ("template", "part_of_speech", "left"),
    [
        ("a photo of a {}", "noun", "a photo of"),
        ("A {} and a dog", "noun", "and a dog"),
        ("a {} adult by a window", "adjective", "an adult by a window"),
        ("a cat {} a dog", "noun", "a cat a dog"),
        ("{}", "noun", ""),
        ("two {}s on a table", "noun", "on a table"),
        ("the {}'s keys, a {}-like thing", "noun", "keys, thing"),
        ("An {}!", "noun", ""),
        ("an {} unicorn and a {} in the sea", "adjective", "a unicorn and in the sea"),
    ],
)
def test_a_sentence_without_its_concept(template: str, part_of_speech: str, left: str):
    assert leave_out(template, part_of_speech) == left
