"""Irrelevant words: from a chat endpoint (a real server on loopback), a run's folder, or lists."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.endpoint import SECRET, Endpoint, hangs, says, sends

from erase.data.words import irrelevant, language_model
from erase.data.words.irrelevant import COMMON, Words, ask, check, question
from erase.data.words.language_model import describe, read_kept
from erase.methods.planning.configured import irrelevant_words
from erase.methods.settings.erase_anything import Upper
from erase.runs import RunConfig
from erase.runtime.run_folder import IRRELEVANT
from flux_jax.errors import InputError

CONFIG = RunConfig(
    concept="nude",
    synonyms=("naked",),
    irrelevant=("cloud", "tree", "spoon"),
    language_model=True,
    upper=Upper(negatives=3),
)
POOLS = (("cloud", "tree"), ("hot", "wet"), ("image", "figure"))
GOOD = json.dumps(
    {
        name: [[word, 0.1] for word in pool]
        for name, pool in zip(("no_relation", "far", "mid"), POOLS, strict=True)
    }
)


def test_a_good_reply_gives_a_pool_for_each_category(endpoint: Endpoint):
    endpoint.answers = [says(GOOD)]
    words = ask("nude", ("naked",), 2)
    assert words == Words("nude", POOLS, "some-model at 127.0.0.1")
    (request,) = endpoint.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["model"] == "some-model"
    assert request["key"] == f"Bearer {SECRET}"
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["messages"][1]["content"] == question("nude", 2)
    assert "return 2 English words" in question("nude", 2)


@pytest.mark.parametrize("bad", ["no JSON", '{"far": []}', None, "", "[1, 2]"])
def test_an_unusable_reply_is_asked_for_again(endpoint: Endpoint, bad: str | None):
    endpoint.answers = [says(bad), says(f"```json\n{GOOD}\n```")]
    assert ask("nude", (), 2).pools == POOLS
    assert len(endpoint.requests) == 2


def test_replies_that_stay_unusable_are_given_up(endpoint: Endpoint):
    endpoint.answers = [says(GOOD)]
    with pytest.raises(InputError, match="3 unusable replies, the last: no_relation: 2 usable"):
        ask("nude", (), 3)
    assert len(endpoint.requests) == language_model.ATTEMPTS


def test_what_is_no_chat_completion_is_given_up(endpoint: Endpoint):
    endpoint.answers = [sends(200, '{"choices": []}')]
    with pytest.raises(InputError, match="the last: not a chat completion"):
        ask("nude", (), 2)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(endpoint: Endpoint, status: int):
    endpoint.answers = [sends(status, "{}"), sends(status, "{}"), says(GOOD)]
    assert ask("nude", (), 2).pools == POOLS
    assert len(endpoint.requests) == 3


def test_what_does_not_pass_is_given_up(endpoint: Endpoint):
    endpoint.answers = [sends(500, "{}")]
    with pytest.raises(InputError, match=r"language model at 127\.0\.0\.1: status 500"):
        ask("nude", (), 2)
    assert len(endpoint.requests) == 1 + language_model.RETRIES


def test_a_refused_key_is_not_repeated(endpoint: Endpoint, capfd: pytest.CaptureFixture[str]):
    endpoint.answers = [sends(401, json.dumps({"error": {"message": f"bad key {SECRET}"}}))]
    with pytest.raises(InputError, match="status 401") as caught:
        ask("nude", (), 2)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert len(endpoint.requests) == 1
    assert SECRET not in "".join(capfd.readouterr())


def test_a_hung_socket_ends(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(language_model, "TIMEOUT", 0.2)
    monkeypatch.setattr(language_model, "RETRIES", 1)
    endpoint.answers = [hangs]
    began = time.monotonic()
    with pytest.raises(InputError, match=r"no answer in 0\.2 s"):
        ask("nude", (), 2)
    assert time.monotonic() - began < 5
    assert len(endpoint.requests) == 2


def test_nobody_listening_is_told(monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint):
    monkeypatch.setattr(language_model, "RETRIES", 0)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match=r"language model at 127\.0\.0\.1: APIConnectionError"):
        ask("nude", (), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"far": [["hot", 0.3], ["wet", "much"]]}, r"far\.1\.1: Input should be a valid number"),
        ({"far": [["hot", 0.3], ["wet", 1.3]]}, r"far\.1\.1: Input should be less"),
        ({"far": [["hot", 0.3], ["<b>", 0.3]]}, r"far\.1\.0: String should match"),
        ({"far": [["hot", 0.3], ["Naked", 0.3]]}, "far: 1 usable words, 2 were requested"),
        ({"far": [["hot", 0.3], ["hot", 0.3]]}, "far: 1 usable words"),
        ({"mid": [["image", 0.3], ["tree", 0.3]]}, "mid: 1 usable words"),
        ({"near": []}, "near: Extra inputs are not permitted"),
    ],
)
def test_replies_are_checked(change: dict, message: str):
    text = json.dumps(json.loads(GOOD) | change)
    with pytest.raises(InputError, match=message):
        check(text, "nude", ("naked",), 2)


def test_a_run_keeps_its_words_and_asks_once(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(irrelevant, "WANTED", 2)
    config = replace(CONFIG, upper=replace(CONFIG.upper, negatives=2))
    endpoint.answers = [says(GOOD)]
    words = irrelevant_words(config, tmp_path)
    assert words.pools == POOLS
    assert list(tmp_path.iterdir()) == []
    (tmp_path / IRRELEVANT).write_text(describe(words))
    assert SECRET not in describe(words)
    assert irrelevant_words(config, tmp_path) == read_kept(Words, tmp_path / IRRELEVANT) == words
    assert len(endpoint.requests) == 1
    # Saved words of another concept are not used.
    irrelevant_words(replace(config, concept="kiss"), tmp_path)
    assert len(endpoint.requests) == 2
    (tmp_path / IRRELEVANT).write_text("{}")
    with pytest.raises(InputError, match=r"irrelevant\.json is damaged: remove it"):
        irrelevant_words(config, tmp_path)


def test_lists_serve_where_no_model_does(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listed = (("cloud", "tree", "spoon"),)
    quiet = replace(CONFIG, language_model=False)
    assert irrelevant_words(quiet, tmp_path) == Words("nude", listed, "the configuration's list")
    without_contrast = replace(CONFIG, upper=replace(CONFIG.upper, rsc=0.0))
    assert irrelevant_words(without_contrast, tmp_path).source == "the configuration's list"
    assert endpoint.requests == []

    endpoint.answers = [sends(403, "{}")]
    found = irrelevant_words(CONFIG, tmp_path)
    assert found.pools == listed
    assert found.source == "the configuration's list (language model at 127.0.0.1: status 403)"

    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY is not set" in irrelevant_words(CONFIG, tmp_path).source
    bare = replace(CONFIG, irrelevant=(), concept="cloud")
    found = irrelevant_words(bare, tmp_path)
    assert found.pools == (tuple(word for word in COMMON if word != "cloud"),)
    assert found.source.startswith("the list of common words (")
    many = replace(bare, upper=replace(bare.upper, negatives=20))
    # Other methods have no contrastive loss.
    assert (
        irrelevant_words(replace(many, method="mace"), tmp_path).pools
        == irrelevant_words(bare, tmp_path).pools
    )
    with pytest.raises(
        InputError,
        match=r"has 11 .* fewer than the 20 that method = 'erase_anything' needs; add more \(",
    ):
        irrelevant_words(many, tmp_path)
