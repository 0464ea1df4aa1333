"""Synonyms from the configuration, from a WordNet that NLTK finds, and from the shipped subset."""

import json
import shutil

import nltk
import pytest

from convert.errors import InputError
from erase import synonyms
from erase.config import PARTS_OF_SPEECH
from erase.runs import load_config

USABLE = {"concept": "car", "irrelevant": ("dog", "sun", "tree")}
LEXNAMES = 45
# Words of a synset, as (part of speech, lemmas), the more frequent sense of a word first.
SYNSETS = (
    ("noun", ("zork", "grand_zork", "blib")),
    ("noun", ("plim", "big_plim")),
    ("noun", ("plim", "zork")),
    ("adjective", ("zorky", "blibby")),
)
FILES = {"noun": "noun", "adjective": "adj", "verb": "verb", "adverb": "adv"}


@pytest.fixture(autouse=True)
def no_database(monkeypatch):
    """Whatever WordNet the machine has is out of sight."""
    monkeypatch.setattr(nltk.data, "path", [])


@pytest.fixture
def root(tmp_path):
    """A folder for NLTK_DATA with a WordNet of `SYNSETS`, in the format of wndb(5WN)."""
    folder = tmp_path / "nltk" / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    (folder / "lexnames").write_text("".join(f"{i:02d}\tname{i}\t1\n" for i in range(LEXNAMES)))
    (folder / "index.sense").write_text("")
    for part, suffix in FILES.items():
        tag, text, senses = suffix[0], "  1 header\n", {}
        for lemmas in (names for kind, names in SYNSETS if kind == part):
            for lemma in lemmas:
                senses.setdefault(lemma, []).append(len(text))
            words = " ".join(f"{lemma} 0" for lemma in lemmas)
            text += f"{len(text):08d} 00 {tag} {len(lemmas):02x} {words} 000 | made up  \n"
        (folder / f"data.{suffix}").write_text(text)
        (folder / f"index.{suffix}").write_text(
            "".join(
                f"{lemma} {tag} {len(at)} 0 {len(at)} 0 {' '.join(f'{a:08d}' for a in at)}  \n"
                for lemma, at in sorted(senses.items())
            )
        )
        (folder / f"{suffix}.exc").write_text("")
    for path in (tmp_path / "nltk").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path / "nltk"


def found(**changes):
    return synonyms.settle(load_config(USABLE | changes))


def test_the_configuration_comes_first():
    config, source = found(synonyms=("motor",))
    assert (config.synonyms, source) == (("motor",), "the configuration")


@pytest.mark.parametrize(
    ("concept", "part", "expected"),
    [
        ("car", "noun", ("auto", "automobile", "machine", "motorcar")),
        ("Car", "noun", ("auto", "automobile", "machine", "motorcar")),
        ("nude", "adjective", ("bare", "au naturel", "naked")),
        ("light  bulb", "noun", ("lightbulb", "bulb", "incandescent lamp")),
        ("hug", "verb", ("embrace", "bosom", "squeeze")),
    ],
)
def test_the_shipped_subset_gives_the_first_sense(concept, part, expected):
    names, source = synonyms.look_up(concept, part)
    assert names
    assert synonyms.clean(names, concept)[: len(expected)] == expected
    assert "subset" in source


def test_words_that_are_to_be_kept_are_no_synonyms():
    config, source = found(irrelevant=("dog", "Machine", "tree"))
    assert config.synonyms == ("auto", "automobile", "motorcar")
    assert "subset" in source


def test_names_are_cleaned():
    names = ("Nude", "nude_painting", "au_naturel", "denuded", "au_naturel")
    assert synonyms.clean(names, "nude") == ("au naturel", "denuded")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"concept": "soccer ball"},
            "'soccer ball': the WordNet subset .* no other word .* a noun",
        ),
        ({"concept": "Timothée"}, "'Timothée': the WordNet subset .* does not know it .* a noun"),
        ({"concept": "日本"}, "'日本': .* does not know it as a noun; name synonyms"),
        ({"part_of_speech": "adjective"}, "'car': .* as an adjective; .* upper.rsc to 0"),
    ],
)
def test_without_a_synonym_the_error_says_what_to_do(changes, message):
    with pytest.raises(InputError, match=message):
        found(**changes)


def test_none_is_sought_where_none_is_used():
    config, _ = found(concept="Timothée", upper={"rsc": 0.0})
    assert config.synonyms == ()


def test_other_methods_do_without():
    config, _ = found(concept="Timothée", method="uce")
    assert config.synonyms == ()


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_a_whole_database_is_preferred(root, monkeypatch, zipped):
    if zipped:
        shutil.make_archive(str(root / "corpora/wordnet"), "zip", root / "corpora", "wordnet")
        shutil.rmtree(root / "corpora/wordnet")
        (root / "corpora/wordnet.zip").chmod(0o644)
    monkeypatch.setattr(nltk.data, "path", [str(root)])
    config, source = found(concept="zork")
    assert config.synonyms == ("blib",)
    assert str(root) in source
    config, _ = found(concept="zorky", part_of_speech="adjective")
    assert config.synonyms == ("blibby",)
    # Its first sense has no other word; those of the second mean something else.
    with pytest.raises(InputError, match=f"WordNet at .*{root.name}.* no other word"):
        found(concept="plim")
    with pytest.raises(InputError, match=r"'car': WordNet at .* does not know it"):
        found()


def test_a_damaged_database_is_named(root, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(root)])
    (root / "corpora/wordnet/lexnames").unlink()
    with pytest.raises(InputError, match=r"NLTK_DATA: WordNet at .* is damaged"):
        found(concept="zork")


def test_the_subset_is_made_from_a_database(root, monkeypatch, tmp_path):
    subset = tmp_path / "subset.json"
    monkeypatch.setattr(synonyms, "SUBSET", subset)
    empty = {"licence": ["free"], "senses": {part: {} for part in synonyms.TAGS}}
    subset.write_text(json.dumps(empty))
    with pytest.raises(SystemExit) as end:
        synonyms.main(["synonyms", "zork"])
    assert end.value.code == 2
    monkeypatch.setattr(nltk.data, "path", [str(root)])
    synonyms.main(["synonyms", "Zork", "zorky", "unknown"])
    written = json.loads(subset.read_text())
    assert written["licence"] == ["free"]
    assert written["senses"] == {
        "noun": {"zork": ["zork", "grand_zork", "blib"]},
        "adjective": {"zorky": ["zorky", "blibby"]},
        "verb": {},
    }


def test_the_shipped_subset_keeps_its_licence():
    shipped = json.loads(synonyms.SUBSET.read_text())
    assert any("Princeton University" in line for line in shipped["licence"])
    assert set(shipped["senses"]) == set(PARTS_OF_SPEECH) == set(synonyms.TAGS)
