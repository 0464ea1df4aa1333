"""Questions to an OpenAI-compatible endpoint, bounded in time and in size.

A try has one deadline, from the connection to the last byte, whether the endpoint is silent or
sends a byte now and then. A reply has one limit of size, as sent and decompressed. The time that a
process spends on an endpoint without a usable reply is limited too.
"""

import functools
import json
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from flux_jax.errors import InputError, printable

Result = TypeVar("Result")
SYSTEM = "You are a helpful assistant and a well-established language expert"
# Status codes that may pass, besides errors of the server: timeout, conflict, too many requests.
PASSING = (408, 409, 429)
# Seconds between two tries: the first time, twice as long each later time, and at most.
PAUSE, LONGEST_PAUSE = 0.5, 8.0
# The compressions that are read, and zlib's parameter for each.
ENCODINGS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


@dataclass(frozen=True)
class Limits:
    """Limits of a question.

    Attributes:
        seconds: of a try.
        total: seconds of all tries of this process at an endpoint that gave nothing usable.
        size: bytes of a reply.
        retries: tries after errors that may pass.
        unusable: replies without the requested content.
    """

    seconds: float = 30.0
    total: float = 115.0
    size: int = 2**20
    retries: int = 4
    unusable: int = 3


@dataclass(frozen=True)
class Endpoint:
    """An endpoint, and a model there.

    Attributes:
        url: its base address.
        model: the model's name.
        key: the key, which appears in no message.
    """

    url: str
    model: str
    key: str = field(repr=False)

    @property
    def host(self) -> str:
        """Host of the address.

        Raises:
            InputError: it is not a web address.
        """
        try:
            parts = urlsplit(self.url)
            host = parts.hostname if parts.scheme in ("http", "https") else None
            # An invalid port raises an error.
            _ = parts.port
        except ValueError:
            host = None
        if not host:
            raise InputError("OPENAI_BASE_URL is not a web address; for instance http://host/v1")
        return printable(host)


class PassingError(Exception):
    """A try failed, but another one may not.

    Attributes:
        pause: seconds until the next try, if the endpoint asks for a pause.
    """

    def __init__(self, message: str, pause: float | None = None):
        """Takes a message for the user."""
        super().__init__(message)
        self.pause = pause


class RefusedError(Exception):
    """The endpoint cannot be used; another try would not help."""


# Seconds that questions without a usable reply took, by address: a run of many concepts waits only
# once for an endpoint that does not answer.
_lost: dict[str, float] = {}


def ask(
    endpoint: Endpoint, question: str, check: Callable[[str], Result], limits: Limits
) -> tuple[Result, str]:
    """Ask until a reply is usable.

    Args:
        endpoint: where to ask.
        question: the message.
        check: parses a reply's text; raises an InputError if it is unusable.
        limits: of time and size.

    Returns:
        The result, and its source in words.

    Raises:
        InputError: the endpoint cannot be used, or no reply was usable within the limits.
    """
    host, began = endpoint.host, time.monotonic()
    try:
        return (
            _ask(endpoint, question, check, limits),
            f"{printable(endpoint.model)} at {host}",
        )
    except InputError as error:
        _lost[endpoint.url] = _lost.get(endpoint.url, 0.0) + time.monotonic() - began
        raise InputError(f"language model at {host}: {error}") from None


def _ask(
    endpoint: Endpoint, question: str, check: Callable[[str], Result], limits: Limits
) -> Result:
    end = time.monotonic() + limits.total - _lost.get(endpoint.url, 0.0)
    failed = unusable = 0
    problem = "none, since earlier questions took that long"
    while (left := end - time.monotonic()) > 0:
        try:
            return check(reply_to(question, endpoint, min(limits.seconds, left), limits.size))
        except RefusedError as error:
            raise InputError(str(error)) from None
        except PassingError as error:
            if failed == limits.retries:
                raise InputError(str(error)) from None
            pause = PAUSE * 2**failed if error.pause is None else error.pause
            failed, problem = failed + 1, str(error)
            time.sleep(max(0.0, min(pause, LONGEST_PAUSE, end - time.monotonic())))
        except (ValueError, RecursionError) as error:
            unusable += 1
            problem = str(error) if isinstance(error, InputError) else "not the requested JSON"
        if unusable == limits.unusable:
            raise InputError(f"{unusable} unusable replies, the last: {problem}")
    raise InputError(f"no usable reply in {limits.total:g} s, the last: {problem}")


def reply_to(question: str, endpoint: Endpoint, seconds: float, size: int) -> str:
    """Ask once.

    Args:
        question: the message.
        endpoint: where to ask.
        seconds: until the last byte of the reply.
        size: most bytes of the reply.

    Returns:
        The text of the reply.

    Raises:
        InputError: the reply is too large, or is not a chat completion.
        PassingError: there was no reply, but there may be one to another try.
        RefusedError: the endpoint cannot be used.
    """
    openai = client_library()
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    with _client(endpoint, seconds, size) as client:

        def post() -> bytes:
            create = client.chat.completions.with_raw_response.create
            return create(model=endpoint.model, messages=messages).content

        try:
            content = _within(seconds, post)
        except openai.APIStatusError as error:
            # The status alone, since the body may repeat the key.
            message, status = f"status {error.status_code}", error.status_code
            if status in PASSING or status >= 500:
                raise PassingError(message, _pause(error.response.headers)) from None
            raise RefusedError(message) from None
        except (TimeoutError, openai.APITimeoutError):
            raise PassingError(f"no answer in {seconds:g} s") from None
        except openai.APIConnectionError as error:
            # Some versions of the library wrap the errors of a client.
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            raise PassingError(type(error).__name__) from None
        except openai.OpenAIError as error:
            raise RefusedError(type(error).__name__) from None
    return _text(content)


def _text(content: bytes) -> str:
    """The text of a chat completion.

    Raises:
        InputError: it is not a chat completion.
    """
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        text = 0
    if not isinstance(text, str | None):
        raise InputError("not a chat completion")
    return text or ""


def _within(seconds: float, work: Callable[[], Result]) -> Result:
    """Run work that may block, such as a look-up of a host, in a thread, and abandon it when late.

    Raises:
        TimeoutError: it was late.
    """
    results: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def put() -> None:
        try:
            results.put((work(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=put, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast(Result, result)


def _pause(headers: Any) -> float | None:
    """Seconds that an endpoint asks to wait."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = unit * float(headers[name])
        except (KeyError, ValueError):
            continue
        if seconds >= 0:
            return seconds
    return None


def _client(endpoint: Endpoint, seconds: float, size: int) -> Any:
    """The client library's client, for a single try.

    Raises:
        RefusedError: the environment has settings that the library cannot use.
    """
    openai = client_library()
    end = time.monotonic() + seconds
    try:
        # Without redirects, only the configured endpoint sees the question.
        transport = _bounded_client()(follow_redirects=False)
        transport.end, transport.size = end, size
        return openai.OpenAI(
            api_key=endpoint.key,
            base_url=endpoint.url,
            timeout=seconds,
            max_retries=0,
            http_client=transport,
        )
    # The errors are of several kinds, and their texts may have passwords of proxies.
    except Exception as error:
        raise RefusedError(
            f"the client cannot be made ({type(error).__name__}); check OPENAI_BASE_URL and the "
            "proxy and certificate settings of the environment"
        ) from None


@functools.cache
def _bounded_client() -> type[Any]:
    """The library's HTTP client, with bounds on replies."""

    class Bounded(client_library().DefaultHttpxClient):
        """Reads replies until a time, in `time.monotonic`'s seconds, and up to a size in bytes."""

        end: float
        size: int

        def send(self, request: Any, **settings: Any) -> Any:
            """Sends a request, and reads the whole reply."""
            request.headers["accept-encoding"] = "gzip, deflate"
            response = super().send(request, **settings | {"stream": True})
            try:
                raw = _joined(response.iter_raw(), self.size, self.end)
            finally:
                response.close()
            kind = response.headers.get("content-encoding", "").strip().lower()
            headers = {
                name: value
                for name, value in response.headers.items()
                if name not in ("content-encoding", "content-length", "transfer-encoding")
            }
            content = _decompressed(raw, kind, self.size)
            return type(response)(
                response.status_code, headers=headers, content=content, request=request
            )

    return Bounded


def _joined(parts: Iterable[bytes], size: int, end: float) -> bytes:
    """Join the parts of a reply.

    Args:
        parts: read from the connection one by one.
        size: most bytes.
        end: the latest time of a part.

    Raises:
        InputError: there are more bytes.
        TimeoutError: it is late.
    """
    content = bytearray()
    for part in parts:
        content += part
        if len(content) > size:
            raise _too_large(size)
        if time.monotonic() > end:
            raise TimeoutError
    return bytes(content)


def _decompressed(content: bytes, kind: str, size: int) -> bytes:
    """Decompress a reply, no further than a size.

    Args:
        content: as sent.
        kind: its Content-Encoding.
        size: most bytes.

    Raises:
        InputError: it is larger, damaged, or compressed in another way.
    """
    if kind in ("", "identity"):
        return content
    if kind not in ENCODINGS:
        raise InputError(f"Content-Encoding is {printable(kind[:40])!r} instead of gzip or deflate")
    for parameter in dict.fromkeys((ENCODINGS[kind], -zlib.MAX_WBITS)):
        try:
            plain = zlib.decompressobj(parameter).decompress(content, size + 1)
        except zlib.error:
            # Some servers send deflate without its header.
            continue
        if len(plain) > size:
            raise _too_large(size)
        return plain
    raise InputError(f"damaged {kind} data")


def _too_large(size: int) -> InputError:
    return InputError(f"a reply over {size:,} bytes")


def client_library() -> Any:
    """Import the package `openai`, only when a language model is asked.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        import openai
    except ImportError as error:
        raise InputError(
            f"language model: the package openai cannot be imported ({error}); pip install openai"
        ) from error
    return openai
