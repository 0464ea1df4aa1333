"""Synonyms from the configuration, from NLTK's WordNet, and from the shipped subset."""

import json
import re
import shutil

import nltk
import pytest

from erase.cli import wordnet
from erase.config.schema import PARTS_OF_SPEECH
from erase.data.words import synonyms
from erase.data.words.irrelevant import listed
from erase.methods import method_of
from erase.methods.planning.configured import with_synonyms
from erase.runs import configure, load_config
from flux_jax.errors import InputError
from recipes.emoji_flux.erasing import KNOWN

THINGS = [thing.name for thing in KNOWN.of_kind("entity")]
USABLE = {"concept": "car", "irrelevant": ("dog", "sun", "tree")}
LEXNAMES = 45
# Words of a synset, as (part of speech, lemmas); a word's more frequent sense comes first.
SYNSETS = (
    ("noun", ("zork", "grand_zork", "blib")),
    ("noun", ("plim", "big_plim")),
    ("noun", ("plim", "zork")),
    ("adjective", ("zorky", "blibby")),
)
FILES = {"noun": "noun", "adjective": "adj", "verb": "verb", "adverb": "adv"}


@pytest.fixture(autouse=True)
def no_database(monkeypatch):
    """Hide any WordNet installed on this machine."""
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
    return with_synonyms(load_config(USABLE | changes))


def test_the_configuration_comes_first():
    config, source = found(synonyms=("motor",))
    assert (config.synonyms, source) == (("motor",), "the configuration")


@pytest.mark.slow
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
def test_the_shipped_subset_has_what_concepts_need(concept, part, expected):
    net, sense = synonyms.look_up(concept, part)
    assert sense is not None
    assert synonyms.clean(sense.words, concept)[: len(expected)] == expected
    assert "subset" in net.source


@pytest.mark.parametrize(
    ("concept", "meant"),
    [
        # The first senses of these are a jumper, a hand, a wood, a spy, a writer, a mark.
        ("turtle", "reptiles"),
        ("palm", "Palmae"),
        ("cherry", "red fruit"),
        ("mole", "velvety-furred"),
        ("crane", "heavy objects|long-necked"),
        ("tie", "neckwear"),
        # For these, pictures show the first sense.
        ("mouse", "rodents"),
        ("rainbow", "arc of colored light"),
        ("star", "celestial body"),
        ("fish", "aquatic vertebrates"),
        ("jaguar", "spotted feline"),
        ("plane", "aircraft"),
    ],
)
def test_the_sense_is_one_that_pictures_show(concept: str, meant: str):
    for things in ((), THINGS):
        _, sense = synonyms.look_up(concept, "noun", None, things)
        assert sense is not None
        assert re.search(meant, sense.definition), sense


def test_what_the_model_draws_decides():
    tools = ("hammer", "screwdriver", "wrench", "saw", "drill")
    animals = ("heron", "duck", "owl", "swan", "goose")
    senses = [synonyms.look_up("crane", "noun", None, each)[1] for each in (tools, animals)]
    assert [sense.name for sense in senses if sense] == ["crane.n.04", "crane.n.05"]


@pytest.mark.parametrize("wanted", ["1", "turtleneck.n.01"])
def test_the_user_s_sense_is_taken(wanted: str):
    given = configure(concept="turtle", sense=wanted, model={"path": "models/emoji-flux"})
    config, source = with_synonyms(load_config(given))
    assert config.synonyms == ("turtleneck", "polo-neck")
    assert source == (
        "WordNet subset, turtleneck.n.01: a sweater or jersey with a high close-fitting collar"
    )


@pytest.mark.parametrize("wanted", ["0", "9", "-1", "turtle.n.09", "", "x" * 3000])
def test_a_sense_that_is_none_is_refused(wanted: str):
    with pytest.raises(InputError) as caught:
        synonyms.look_up("turtle", "noun", wanted)
    told = str(caught.value)
    assert len(told) <= 400
    assert re.match(
        "sense = .*2 senses of 'turtle' as a noun: 1 is turtleneck.n.01 .*; 2 is .*; give a number",
        told,
    )
    with pytest.raises(InputError, match="0 senses of 'qqq' as a noun; give synonyms"):
        synonyms.look_up("qqq", "noun", wanted)


def test_the_model_s_own_words_come_first():
    given = {"concept": "turtle", "model": {"path": "models/emoji-flux"}}
    config, source = with_synonyms(load_config(configure(**given)))
    assert (config.synonyms, source) == (("tortoise",), "models/emoji-flux")
    # Words that the configuration sets are not the model's.
    config, source = with_synonyms(load_config(configure(**given, synonyms=("reptile",))))
    assert (config.synonyms, source) == (("reptile",), "the configuration")


def test_no_name_of_another_thing_is_a_synonym():
    _, sense = synonyms.look_up("ball", "noun", "ball.n.03")
    assert sense is not None
    assert sense.words == ("ball", "globe", "orb")
    given = configure(concept="ball", sense="ball.n.03", model={"path": "models/emoji-flux"})
    assert with_synonyms(load_config(given))[0].synonyms == ("orb",)


def test_words_that_are_to_be_kept_are_no_synonyms():
    config, source = found(irrelevant=("dog", "Machine", "tree"))
    assert config.synonyms == ("auto", "automobile", "motorcar")
    assert "subset" in source


def test_names_are_cleaned():
    names = ("Nude", "nude_painting", "au_naturel", "denuded", "au_naturel")
    assert synonyms.clean(names, "nude") == ("au naturel", "denuded")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"concept": "soccer ball"}, "WordNet subset, soccer_ball.n.01: .* .no other word: L_rsc"),
        ({"concept": "Timothée"}, "does not know 'Timothée' as a noun .no other word: L_rsc goes"),
        ({"concept": "日本"}, "does not know '日本' as a noun .no other word"),
        ({"part_of_speech": "adjective"}, "does not know 'car' as an adjective .no other word"),
    ],
)
def test_without_a_synonym_the_source_says_why(changes, told):
    config, source = found(**changes)
    assert config.synonyms == ()
    assert re.search(told, source)
    # L_rsc moves the concept towards other things only.
    assert method_of(config).needs(config, listed(config), None).pools == (
        (config.concept,),
        config.irrelevant,
    )


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
    assert source == "WordNet, zork.n.01: made up"
    config, _ = found(concept="zorky", part_of_speech="adjective")
    assert config.synonyms == ("blibby",)
    # Its first sense has no other word; those of the second mean something else.
    config, source = found(concept="plim")
    assert (config.synonyms, source[:21]) == ((), "WordNet, plim.n.01: m")
    config, source = found(concept="plim", sense="2")
    assert config.synonyms == ("zork",)
    assert "does not know 'car'" in found()[1]


def test_a_damaged_database_is_named(root, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(root)])
    (root / "corpora/wordnet/lexnames").unlink()
    with pytest.raises(InputError, match=r"NLTK_DATA: WordNet at .* is damaged"):
        found(concept="zork")


def test_the_subset_is_made_from_a_database(root, monkeypatch, tmp_path):
    subset = tmp_path / "subset.json"
    monkeypatch.setattr(synonyms, "SUBSET", subset)
    empty = {"licence": ["free"], "pictured": ["cat"], "senses": {"x": {"above": []}}}
    empty["words"] = {part: {} for part in synonyms.TAGS}
    subset.write_text(json.dumps(empty))
    with pytest.raises(SystemExit) as end:
        wordnet.main(["synonyms", "zork"])
    assert end.value.code == 2
    monkeypatch.setattr(nltk.data, "path", [str(root)])
    wordnet.main(["synonyms", "Zork", "zorky", "unknown"])
    written = json.loads(subset.read_text())
    assert written["licence"] == ["free"]
    assert written["pictured"] == ["cat"]
    assert written["words"] == {
        "noun": {"zork": ["zork.n.01", "plim.n.02"]},
        "adjective": {"zorky": ["zorky.a.01"]},
        "verb": {},
    }
    assert written["senses"]["zork.n.01"] == {
        "definition": "made up",
        "words": ["zork", "grand_zork", "blib"],
        "above": [],
    }
    # The result equals the database's.
    with_database = synonyms.look_up("zork", "noun")[1]
    monkeypatch.setattr(nltk.data, "path", [])
    assert synonyms.look_up("zork", "noun")[1] == with_database


def test_the_shipped_subset_keeps_its_licence():
    shipped = json.loads(synonyms.SUBSET.read_text())
    assert any("Princeton University" in line for line in shipped["licence"])
    assert set(shipped["words"]) == set(PARTS_OF_SPEECH) == set(synonyms.TAGS)


def test_the_shipped_subset_is_whole_and_knows_the_model_s_entities():
    shipped = synonyms.subset()
    senses = shipped["senses"]
    for words in shipped["words"].values():
        assert {name for names in words.values() for name in names} <= senses.keys()
    assert {name for sense in senses.values() for name in sense["above"]} <= senses.keys()
    assert {synonyms.lemma(name) for name in THINGS} <= shipped["words"]["noun"].keys()
