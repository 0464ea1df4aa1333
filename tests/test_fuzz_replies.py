"""An endpoint's replies are only data: they give words and sentences, or the lists are used."""

import contextlib
import json
import unicodedata
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from helpers.bounds import bounded
from helpers.endpoint import SECRET, Answer, Endpoint, says
from hypothesis import example, given
from hypothesis import strategies as st

from erase.data.words import irrelevant, language_model, sentences
from erase.data.words.language_model import describe, read_kept
from erase.data.words.templates import as_template
from erase.methods.planning.configured import irrelevant_words
from erase.runs import RunConfig
from erase.runtime.run_folder import SENTENCES
from flux_jax.errors import InputError

CONFIG = RunConfig(
    concept="soccer ball",
    synonyms=("football",),
    irrelevant=("cloud", "tree", "spoon"),
    language_model=True,
    more_prompts=2,
)
DEEP = "[" * 10**5 + "]" * 10**5
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.sampled_from(
        ["a soccer ball", "A Soccer Ball on {}", "{}", "hot", "\u202e", "\0", "soccer ball\x1b[2J"]
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["sentences", "far", "choices", "message"]), TEXTS),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
PAIRS = st.lists(
    st.one_of(st.tuples(TEXTS, st.floats(0, 1)), st.tuples(st.text("abc", min_size=1), JSON), JSON),
    max_size=10,
)
CONTENTS = st.one_of(
    JSON.map(json.dumps),
    TEXTS,
    st.fixed_dictionaries(dict.fromkeys(irrelevant.Reply.model_fields, PAIRS)).map(json.dumps),
    st.fixed_dictionaries({"sentences": st.lists(TEXTS, max_size=5)}).map(json.dumps),
    st.sampled_from([DEEP, "9" * 5000, '{"sentences": ' + DEEP + "}"]),
).flatmap(lambda text: st.sampled_from([text, f"```json\n{text}\n```"]))


def completion(content: Any) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "message": {"role": "r", "content": content}}]}


BODIES = st.one_of(
    CONTENTS.map(completion).map(json.dumps),
    st.one_of(JSON, CONTENTS).map(completion).map(json.dumps),
    JSON.map(json.dumps),
    st.dictionaries(st.sampled_from(["choices", "error", "id", "model"]), JSON).map(json.dumps),
    st.dictionaries(st.just("choices"), st.lists(st.dictionaries(st.just("message"), JSON))).map(
        json.dumps
    ),
    st.sampled_from([DEEP, '{"choices": {"0": 1}}', '{"choices": ' + DEEP + "}"]),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


def replies(status: int, body: bytes, kind: str, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def hurried(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setattr(language_model, "RETRIES", 0)
    monkeypatch.setattr(language_model, "TIMEOUT", 2.0)
    return endpoint


def served(folder: Path) -> None:
    """Assert that words and sentences exist and are valid, and that the key is stored nowhere."""
    with bounded():
        words = irrelevant_words(CONFIG, folder)
        config, further = sentences.add_generated_prompts(CONFIG, folder)
    assert all(len(pool) >= CONFIG.upper.negatives for pool in words.pools)
    assert not {"soccer ball", "football"} & {word for pool in words.pools for word in pool}
    for prompt in config.prompts:
        assert "soccer ball" in as_template(prompt, "soccer ball").replace("{}", "soccer ball")
    assert len(further.sentences) in (0, CONFIG.more_prompts)
    for kept in (words, further):
        assert SECRET not in describe(kept)
        file = folder / "kept.json"
        file.write_text(describe(kept), "utf-8")
        assert read_kept(type(kept), file) == kept
        file.unlink()
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@given(
    body=BODIES,
    status=st.sampled_from([200] * 8 + [201, 204, 400, 401, 404, 429, 500, 503]),
    kind=st.sampled_from(["application/json"] * 6 + ["text/plain", "text/html; charset=x", ""]),
)
@example(body=json.dumps({"choices": {"0": 1}}).encode(), status=200, kind="application/json")
@example(body=DEEP.encode(), status=200, kind="application/json")
@example(body=json.dumps(completion(5)).encode(), status=200, kind="application/json")
@example(body=b"\xff\xfe", status=200, kind="application/json")
@example(body=b'{"choices": ' + b"9" * 5000 + b"}", status=200, kind="application/json")
def test_any_reply_ends_in_words(
    hurried: Endpoint, tmp_path: Path, body: bytes, status: int, kind: str
):
    hurried.answers = [replies(status, body, kind)]
    served(tmp_path)


@given(text=CONTENTS)
@example(text=json.dumps({"sentences": ["{}", "a {} and a soccer ball"]}))
@example(text=json.dumps({"sentences": ["a soccer ball\0", "\ud800 soccer ball"]}))
@example(text=json.dumps({"sentences": ["a soccer ball\0", "a soccer ball"]}))
def test_any_content_is_checked(text: str):
    with bounded():
        for check in (
            lambda: irrelevant.check(text, "soccer ball", ("football",), 2),
            lambda: sentences.check(text, "soccer ball", 2),
        ):
            found: tuple[Any, ...] = ()
            with contextlib.suppress(InputError):
                found = check()
            for each in found:
                assert each
                if isinstance(each, str):
                    assert "soccer ball" in each.casefold()
                    assert not any(unicodedata.category(letter) == "Cc" for letter in each)
                    assert "{" not in each


@given(content=st.one_of(JSON.map(json.dumps), st.binary(max_size=20), st.just(DEEP)))
def test_kept_files_are_read_or_refused(content: str | bytes, tmp_path: Path):
    path = tmp_path / SENTENCES
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    with bounded():
        for kind in (irrelevant.Words, sentences.Sentences):
            with pytest.raises(InputError, match="is damaged: remove it"):
                read_kept(kind, path)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(hurried: Endpoint, tmp_path: Path, status: int):
    """The request contains the key, and only the configured endpoint may receive it."""
    other = Endpoint()
    other.answers = [says(json.dumps({"sentences": ["a soccer ball", "the soccer ball"]}))]
    hurried.answers = [replies(status, b"", "text/plain", Location=f"{other.url}/x")]
    try:
        with pytest.raises(InputError, match=f"status {status}"):
            sentences.ask("soccer ball", 2)
        served(tmp_path)
        assert other.requests == []
    finally:
        other.server.shutdown()
        other.server.server_close()


def test_a_good_reply_is_taken_with_these_settings(hurried: Endpoint, tmp_path: Path):
    pair = ["a soccer ball", "the Soccer Ball, in oil"]
    hurried.answers = [says(json.dumps({"sentences": pair}))]
    config, found = sentences.add_generated_prompts(replace(CONFIG, language_model=False), tmp_path)
    assert found.sentences == tuple(pair)
    assert config.prompts[-2:] == tuple(pair)
