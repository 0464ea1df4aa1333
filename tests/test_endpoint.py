"""A language model's endpoint that misbehaves costs bounded time and memory, and shows no key."""

import threading
import time
from pathlib import Path

import pytest
from helpers.endpoint import SECRET, Endpoint, hangs, says

from benchmarks.torture import behaviours, endpoints
from erase.data.words import endpoint as bounded
from erase.data.words import language_model
from erase.data.words.endpoint import Limits
from flux_jax.errors import InputError


@pytest.mark.slow
def test_a_hundred_behaviours_end_in_time(tmp_path: Path):
    before = threading.active_count()
    rows = list(endpoints.rows(0.0, tmp_path))
    assert sum(row.tried for row in rows) == len(behaviours.every()) == 100
    assert [row.note for row in rows if row.held < row.tried] == []
    # The tries that were abandoned end too.
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert threading.active_count() <= before


def ask(limits: Limits, url: str) -> object:
    return bounded.ask(bounded.Endpoint(url, "m", SECRET), "?", str, limits)


def test_a_dead_endpoint_is_waited_for_once(endpoint: Endpoint):
    endpoint.answers = [hangs]
    limits = Limits(seconds=0.2, total=0.5, retries=9)
    with pytest.raises(InputError, match=r"127\.0\.0\.1: no usable reply in 0\.5 s, the last: no"):
        ask(limits, endpoint.url)
    asked, began = len(endpoint.requests), time.monotonic()
    with pytest.raises(InputError, match="since earlier questions took that long"):
        ask(limits, endpoint.url)
    assert time.monotonic() - began < 0.1
    assert len(endpoint.requests) == asked


def test_pauses_are_numbers_that_are_not_negative():
    for value, pause in (("3", 3.0), ("-1", None), ("nan", None), ("soon", None)):
        assert bounded._pause({"retry-after": value}) == pause
    assert bounded._pause({"retry-after-ms": "20", "retry-after": "9"}) == 0.02


@pytest.mark.parametrize("url", ["://", "http://[::1", "ftp://host/v1", "host", "http://h:port"])
def test_an_address_that_is_none_is_refused(url: str, endpoint: Endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(InputError, match="OPENAI_BASE_URL is not a web address"):
        language_model.ask("?", str)


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\x1b[1m", f"é{SECRET}", f" {SECRET}"])
def test_a_key_that_no_header_holds_is_refused(key: str, endpoint: Endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY has a space") as caught:
        language_model.ask("?", str)
    assert SECRET not in str(caught.value)
    assert endpoint.requests == []


def test_settings_that_the_client_cannot_use_are_refused(endpoint: Endpoint, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"nothing://user:{SECRET}@host")
    with pytest.raises(InputError, match="check OPENAI_BASE_URL and the proxy") as caught:
        language_model.ask("?", str)
    assert SECRET not in str(caught.value)


def test_the_name_of_a_model_is_only_text(endpoint: Endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_MODEL", "m\x1b[1m")
    endpoint.answers = [says("text")]
    assert language_model.ask("?", str) == ("text", "m\\x1b[1m at 127.0.0.1")
