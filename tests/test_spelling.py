"""A concept is found in every form that a reader recognises, and in no other word."""

import pytest

from erase.data.words.spelling import mentions
from flux_jax.errors import InputError


@pytest.mark.parametrize(
    ("concept", "text", "found"),
    [
        ("cat", "Cat, CAT! cats CATS", ["Cat", "CAT", "cat", "CAT"]),
        ("cat", "cat's cats’ “cat”", ["cat"] * 3),
        ("cat", "(cat) dog/cat black-cat dog_cat cat—dog 3cats cat2", ["cat"] * 7),
        ("cat", "catlike catt catttts cat-like", ["cat"] * 4),
        ("cat", "ＣＡＴ a\u200bcat ca\u00adt a\u00a0cat", ["ＣＡＴ", "cat", "ca\u00adt", "cat"]),
        ("soccer ball", "soccer  ball, soccer\nball", ["soccer  ball", "soccer\nball"]),
        ("soccer ball", "soccer-balls SoccerBall", ["soccer-ball", "SoccerBall"]),
        ("soccer-ball", "soccer ball soccerball", ["soccer ball", "soccerball"]),
        ("soccer ball", "soccerrrs ball", ["soccerrrs ball"]),
        ("grass snake", "a grasssnake", ["grasssnake"]),
        ("Van Gogh", "van‐gogh’s and Van Gogh's", ["van‐gogh", "Van Gogh"]),
        ("O'Neil", "o’neil", ["o’neil"]),
        ("R2-D2", "r2d2 R2 D2", ["r2d2", "R2 D2"]),
        ("café", "cafe\u0301 CAFÉ", ["cafe\u0301", "CAFÉ"]),
        ("fire", "ﬁre", ["ﬁre"]),
        ("knife", "knives knife's", ["knives", "knife"]),
        ("butterfly", "two butterflies", ["butterflies"]),
        ("box", "boxes", ["box"]),
        ("woman", "women", ["women"]),
        ("cactus", "cacti cactuses", ["cacti", "cactus"]),
        ("C++", "C++ code", ["C++"]),
        ("a a", "xa a a", ["a a"]),
    ],
)  # fmt: skip
def test_whoever_reads_it_finds_the_concept(concept: str, text: str, found: list[str]):
    assert [text[each.start : each.stop] for each in mentions(text, concept)] == found


@pytest.mark.parametrize(
    ("concept", "text"),
    [
        ("cat", "caterpillar concatenate bobcat catty cater ca t c-a-t acat cät kitty"),
        ("ice", "slice iceberg police iced"),
        ("bra", "brass zebra brake"),
        ("of", "off"),
        ("bus", "bi busted"),
        ("safe", "saves"),
        ("car", "care scar carpet"),
        ("mp", "mp3s"),
        ("d2", "r2d22"),
        ("soccer ball", "soccer, ball soccer ballroom a ball for soccer soccer. ball soccer/ball"),
        ("cafe", "café cafe\u0301"),
    ],
)
def test_other_words_are_none(concept: str, text: str):
    assert [text[each.start : each.end] for each in mentions(text, concept)] == []


@pytest.mark.parametrize("concept", ["", "  ", "-", "\u200b", "\u3000"])
def test_a_concept_of_nothing_is_refused(concept: str):
    with pytest.raises(InputError, match=r"^concept = .* is empty: name the concept to erase$"):
        mentions("a cat", concept)
