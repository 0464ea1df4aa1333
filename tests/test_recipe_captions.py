import re

import numpy as np
import pytest

from recipes.emoji_flux import captions
from recipes.emoji_flux.captions import Caption
from recipes.emoji_flux.world import (
    BACKGROUNDS,
    ENTITIES,
    INVERSE,
    IRREGULAR_PLURALS,
    NO_ARTICLE,
    RELATIONS,
    STYLES,
    SYMMETRIC,
)

WORDS = [word for entity in ENTITIES for word in entity.words]


def drawn(count: int, seed: int = 0) -> list[Caption]:
    rng = np.random.default_rng(seed)
    return [captions.draw(rng) for _ in range(count)]


def says(text: str, entity: int) -> bool:
    forms = [form for word in ENTITIES[entity].words for form in (word, captions.plural(word))]
    return any(re.search(rf"\b{re.escape(form)}\b", text) for form in forms)


def test_names_and_synonyms_are_shared_by_no_two_entities():
    assert len(ENTITIES) >= 92
    assert len({entity.codepoint for entity in ENTITIES}) == len(ENTITIES)
    assert len(set(WORDS)) == len(WORDS)
    # Nor may a plural or a style be another entity's word.
    plurals = {captions.plural(word): entity.name for entity in ENTITIES for word in entity.words}
    clash = [w for e in ENTITIES for w in e.words if plurals.get(w, e.name) != e.name]
    assert clash == []
    assert not set(WORDS) & {*STYLES, *BACKGROUNDS}


def test_there_are_ten_styles_backgrounds_and_relations():
    assert len(set(STYLES)) == len(set(RELATIONS)) == len(BACKGROUNDS) == 10
    assert set(captions.RELATED) == set(RELATIONS)
    assert all(INVERSE[INVERSE[name]] == name for name in INVERSE)
    assert all(INVERSE[name] == name for name in SYMMETRIC)
    assert set(WORDS) >= NO_ARTICLE
    assert set(IRREGULAR_PLURALS) <= set(WORDS)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("car", "a car"),
        ("airplane", "an airplane"),
        ("grapes", "grapes"),
        ("santa claus", "santa claus"),
        ("omnibus", "an omnibus"),
    ],
)
def test_articles(word: str, expected: str):
    assert captions.with_article(word) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("car", "cars"),
        ("bus", "buses"),
        ("cherry", "cherries"),
        ("key", "keys"),
        ("torch", "torches"),
        ("grapes", "grapes"),
        ("cup of coffee", "cups of coffee"),
    ],
)
def test_plurals(word: str, expected: str):
    assert captions.plural(word) == expected


def test_captions_are_a_function_of_the_generator():
    assert drawn(200, seed=3) == drawn(200, seed=3)
    assert drawn(200, seed=3) != drawn(200, seed=4)


@pytest.mark.slow
def test_forms_come_in_their_proportions():
    sample = drawn(8000)
    single = np.mean([caption.object < 0 for caption in sample])
    related = np.mean([caption.relation >= 0 for caption in sample])
    assert abs(single - 0.45) < 0.02
    assert abs(related - 0.40) < 0.02
    named = np.mean([bool(re.search(r"\bstyle\b", caption.text)) for caption in sample])
    assert 0.35 < named < 0.55


@pytest.mark.slow
def test_the_text_says_what_the_labels_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(captions, "MISSPELT", 0.0)
    monkeypatch.setattr(captions, "SHUFFLED", 0.0)
    for caption in drawn(4000, seed=1):
        text = caption.text[0].lower() + caption.text[1:]
        for name in STYLES:
            if re.search(rf"\b{name}\b", text):
                assert STYLES[caption.style] == name
        for match in re.finditer(r"(\w+) background", text):
            assert list(BACKGROUNDS)[caption.background] == match.group(1)
        if re.fullmatch(
            r"(an? \w+ in the style of \w+|an? \w+ style emoji)( (on|with) .* background)?", text
        ) and not says(text, caption.subject):
            assert caption.object == caption.relation == -1
            continue
        assert says(text, caption.subject), caption
        if caption.object < 0:
            assert caption.relation == -1
            continue
        assert caption.object != caption.subject
        assert says(text, caption.object), caption
        first, second = (
            min(
                found.start()
                for word in ENTITIES[entity].words
                for form in (word, captions.plural(word))
                for found in re.finditer(rf"\b{re.escape(form)}\b", text)
            )
            for entity in (caption.subject, caption.object)
        )
        assert first < second, caption
        if caption.relation >= 0:
            phrases = [
                re.sub(r"\{\w+\}|\band\b", "", template).strip()
                for template in captions.RELATED[RELATIONS[caption.relation]]
            ]
            assert any(phrase in text for phrase in phrases), caption


def test_articles_fit_the_words_after_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(captions, "SHUFFLED", 0.0)
    for caption in drawn(4000, seed=2):
        for article, letter in re.findall(r"\b([aA]n?) (\w)", caption.text):
            assert (article.lower() == "an") == (letter in "aeiou"), caption.text
        assert "  " not in caption.text
        assert caption.text == caption.text.strip()


def test_directed_relations_keep_their_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(captions, "MISSPELT", 0.0)
    monkeypatch.setattr(captions, "SHUFFLED", 1.0)
    moved = 0
    for caption in drawn(1500, seed=5):
        directed = caption.relation >= 0 and RELATIONS[caption.relation] not in SYMMETRIC
        if directed:
            name = RELATIONS[caption.relation]
            middles = [
                template.split("}", 1)[1].rsplit("{", 1)[0] for template in captions.RELATED[name]
            ]
            assert any(middle in caption.text for middle in middles), caption
        elif caption.relation >= 0:
            moved += RELATIONS[caption.relation] not in caption.text
    assert moved > 20


def test_a_misspelt_word_is_no_word():
    rng = np.random.default_rng(6)
    for word in WORDS:
        for _ in range(5):
            wrong = captions.misspell(rng, word)
            assert wrong != word
            assert wrong not in captions.VOCABULARY
            assert wrong.isascii()


def test_only_available_drawings_are_asked_for():
    available = np.zeros((len(ENTITIES), len(STYLES)), bool)
    available[:7, 2] = available[3:5, 8] = True
    rng = np.random.default_rng(7)
    for _ in range(40):
        caption = captions.draw(rng, available)
        assert available[caption.subject, caption.style]
        assert caption.object < 0 or available[caption.object, caption.style]
