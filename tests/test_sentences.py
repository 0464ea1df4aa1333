"""Sentences from a language model: checked, saved with the run, and optional."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.endpoint import SECRET, Endpoint, says, sends

from erase.config.schema import Config
from erase.data.words.language_model import describe
from erase.data.words.sentences import Sentences, add_generated_prompts, ask, check, question
from erase.runtime.run_folder import SENTENCES
from flux_jax.errors import InputError

CONFIG = Config(concept="soccer ball", prompts=("a photo of a {}",), more_prompts=2)
TWO = ("A soccer ball on wet grass", "two dogs chase a Soccer Ball, watercolour")
GOOD = json.dumps({"sentences": [*TWO, TWO[0]]})


def test_a_good_reply_gives_sentences(endpoint: Endpoint):
    endpoint.answers = [says("what?"), says(f"```json\n{GOOD}\n```")]
    assert ask("soccer ball", 2) == Sentences("soccer ball", TWO, "some-model at 127.0.0.1")
    assert len(endpoint.requests) == 2
    asked = endpoint.requests[0]["messages"][1]["content"]
    assert asked == question("soccer ball", 2)
    assert 'exactly as they are: "soccer ball"' in asked
    assert '"日本"' in question("日本", 2)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"sentences": [*TWO, "a ball on grass"]}, "'a ball on grass' does not hold the concept"),
        ({"sentences": [TWO[0], TWO[0]]}, "sentences: 1 different ones, 2 were requested"),
        ({"sentences": [TWO[0], 5]}, r"sentences\.1: Input should be a valid string"),
        (
            {"sentences": ["a soccer ball" + " x" * 200]},
            r"sentences\.0: String should have at most",
        ),
        ({"captions": TWO}, "sentences: Field required"),
    ],
)
def test_replies_are_checked(reply: dict, message: str):
    with pytest.raises(InputError, match=message):
        check(json.dumps(reply), "soccer ball", 2)


def test_a_run_keeps_its_sentences_and_asks_once(endpoint: Endpoint, tmp_path: Path):
    endpoint.answers = [says(GOOD)]
    config, found = add_generated_prompts(CONFIG, tmp_path)
    assert config == replace(CONFIG, prompts=(*CONFIG.prompts, *TWO))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / SENTENCES).write_text(describe(found))
    assert SECRET not in describe(found)
    assert add_generated_prompts(CONFIG, tmp_path) == (config, found)
    assert len(endpoint.requests) == 1
    (tmp_path / SENTENCES).write_text("[]")
    with pytest.raises(InputError, match=r"sentences\.json is damaged: remove it"):
        add_generated_prompts(CONFIG, tmp_path)


def test_the_configurations_serve_where_no_model_does(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    quiet = replace(CONFIG, more_prompts=0)
    assert add_generated_prompts(quiet, tmp_path) == (
        quiet,
        Sentences("soccer ball", (), "the configuration"),
    )
    assert endpoint.requests == []
    endpoint.answers = [sends(403, "{}")]
    config, found = add_generated_prompts(CONFIG, tmp_path)
    assert config == CONFIG
    assert found.source == "the configuration (language model at 127.0.0.1: status 403)"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY is not set" in add_generated_prompts(CONFIG, tmp_path)[1].source
