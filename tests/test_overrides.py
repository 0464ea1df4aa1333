"""Overrides on the command line: lists, and another concept."""

import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from erase.cli import flags as command
from erase.config.schema import Config
from erase.methods import mace
from erase.runs import RunConfig
from erase.runs.overrides import joined_lists, read_list
from flux_jax.errors import InputError

# Raised by ml_collections when it loads a configuration's file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
FILE = """
from erase.runs import configure
def get_config():
    return configure(
        concept="cat",
        model={"path": "no/such-folder"},
        prompts=("a {} on a mat", "two cats", "a kitty and a cat's toy"),
        synonyms=("kitty", "feline"),
        irrelevant=("dog", "sun", "tree"),
        part_of_speech="verb",
        upper={"prompts": ("a dog", "a tree")},
        lower={"stand_in": "dogs"},
        mace={"stand_in": "thing"},
        evaluation={"templates": ("a kitty {}", "a {} outside"), "others": ("dog",)},
        by_method={"mace": {"prompts": ("a cat",), "iterations": 7}},
    )
"""


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Load a file with overrides, as the command does."""
    path = tmp_path / "config.py"
    path.write_text(FILE)
    command._note.cache_clear()

    def read(*overrides: str, text: str = FILE) -> Config:
        path.write_text(text)
        arguments = ["program", f"--config={path}", *overrides]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        values = flags.FlagValues()
        monkeypatch.setattr(flags, "FLAGS", values)
        command.config_flags.DEFINE_config_file("config", flag_values=values)
        values(joined_lists(arguments, "config", RunConfig))
        return next(iter(command.configured().values()))

    return read


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("synonyms", "football,ball", ("football", "ball")),
        ("synonyms", "soccer ball , orb", ("soccer ball", "orb")),
        ("synonyms", "('football', 'ball')", ("football", "ball")),
        ("synonyms", "['football']", ("football",)),
        ("synonyms", "'football','ball'", ("football", "ball")),
        ("synonyms", "()", ()),
        ("evaluation.others", "O'Neil,7", ("O'Neil", "7")),
        ("adapter.targets", "a/b,c/d", ("a/b", "c/d")),
        ("prompts", "a {}, drawn", ("a {}, drawn",)),
        ("prompts", "(a photo) of a {}", ("(a photo) of a {}",)),
        ("evaluation.templates", "('a {}, drawn', '{}')", ("a {}, drawn", "{}")),
        ("uce.templates", '"a {}, drawn"', ("a {}, drawn",)),
    ],
)
def test_lists_are_read_in_every_writing(name: str, text: str, words: tuple[str, ...]):
    assert read_list(name, text) == words
    assert joined_lists([f"--config.{name}={text}"], "config", RunConfig) == joined_lists(
        [f"--config.{name}", repr(words)], "config", RunConfig
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("synonyms", "football,,ball"),
        ("synonyms", "football,"),
        ("synonyms", ""),
        ("synonyms", "None"),
        ("synonyms", "(football, ball)"),
        ("synonyms", "['football'"),
        ("synonyms", "football,'ball'"),
        ("synonyms", "(1, 2)"),
        ("prompts", "('a {}', a cat)"),
        ("prompts", " "),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(name: str, text: str):
    with pytest.raises(InputError, match=rf"^{name} = .*\(\) is an empty list$") as raised:
        read_list(name, text)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_repeated_flags_add_up_in_their_order(configured: Any):
    config = configured(
        "--config.synonyms=football,ball", "--config.iterations=7", "--config.synonyms", "orb",
        "--config.prompts=a {}, drawn", "--config.prompts=a cat",
    )  # fmt: skip
    assert config.synonyms == ("football", "ball", "orb")
    assert config.prompts == ("a {}, drawn", "a cat")
    assert config.iterations == 7


def test_another_concept_keeps_no_words_of_the_old_one(
    configured: Any, capsys: pytest.CaptureFixture[str]
):
    config = configured(
        "--config.concept=dog", "--config.upper.rsc=0", "--config.irrelevant=sun,sea"
    )
    assert (config.concept, config.synonyms, config.irrelevant) == (
        "dog",
        (),
        ("sun", "sea"),
    )
    assert config.prompts == ("a {} on a mat",)
    assert config.part_of_speech == "noun"
    assert config.upper.prompts == ("a tree",)
    assert config.lower.stand_in is None
    assert config.method_settings(mace.Settings).stand_in == "thing"
    assert (config.evaluation.templates, config.evaluation.others) == (("a {} outside",), ())
    said = capsys.readouterr().err
    assert said.startswith("concept = 'dog' replaces 'cat': ignored the file's values for it")
    assert said.count("\n") == 1
    assert "irrelevant" not in said
    assert "uce" not in said
    for name in ("prompts", "synonyms", "part_of_speech", "lower.stand_in"):
        assert f" {name}," in said
    ablated = configured("--config.concept=dog", "--config.method=mace", "--config.synonyms=pup")
    assert (ablated.prompts, ablated.iterations) == (("a {} on a mat",), 7)
    assert ablated.synonyms == ("pup",)


def test_the_models_own_words_follow_for_another_concept(configured: Any):
    model = Path(__file__).resolve().parents[1] / "models" / "emoji-flux"
    config = configured("--config.concept=dog", text=FILE.replace("no/such-folder", str(model)))
    assert "hound" in config.synonyms
    assert "a {} on a mat" in config.prompts
    assert len(config.irrelevant) >= 3
    assert "dog" not in (*config.irrelevant, *config.evaluation.others)


def test_the_same_concept_keeps_its_words(configured: Any, capsys: pytest.CaptureFixture[str]):
    config = configured("--config.concept=Cat")
    assert config.synonyms == ("kitty", "feline")
    assert len(config.prompts) == 3
    assert capsys.readouterr().err == ""


def test_one_concept_for_runs_that_have_their_own_is_refused(configured: Any):
    text = FILE.replace('concept="cat",', 'concept="cat", each={"a": {"concept": "cat"}},')
    with pytest.raises(InputError, match="concept = 'dog' would change none of the runs"):
        configured("--config.concept=dog", text=text)


def test_another_sense_takes_the_place_of_the_file_s_synonyms(
    configured: Any, capsys: pytest.CaptureFixture[str]
):
    text = FILE.replace('part_of_speech="verb",', "").replace(
        "by_method=", 'each={"a": {}, "b": {"synonyms": ("pussycat",)}}, by_method='
    )
    config = configured("--config.sense=1", text=text)
    assert (config.sense, config.synonyms) == ("1", ())
    said = capsys.readouterr().err
    assert "sense = '1': its words in WordNet, if it has others, replace the file's syn" in said
    assert "kitty, feline, pussycat" in said
    # If both are named, both apply.
    config = configured("--config.sense=1", "--config.synonyms=puss", text=text)
    assert config.synonyms == ("puss",)
    assert "sense = '1' has no effect, since synonyms are given" in capsys.readouterr().err
