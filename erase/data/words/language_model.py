"""Ask a language model at an OpenAI-compatible endpoint, and validate its replies.

Endpoint, key and model come from the environment: OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL.
Replies are checked against a schema and never evaluated. The key appears in no message or file.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pydantic

from flux_jax.errors import InputError

KEY, URL, MODEL = "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"
DEFAULT_MODEL = "gpt-4o"
# Number of unusable replies before giving up.
ATTEMPTS = 3
# Seconds per request. The client retries transient errors, with increasing delays.
TIMEOUT, RETRIES = 30.0, 4
SYSTEM = "You are a helpful assistant and a well-established language expert"


@dataclass(frozen=True)
class Kept:
    """A reply saved in a run's folder: words about a concept."""

    concept: str


Result = TypeVar("Result")
KeptT = TypeVar("KeptT", bound=Kept)
Schema = TypeVar("Schema", bound=pydantic.BaseModel)


def ask(question: str, check: Callable[[str], Result]) -> tuple[Result, str]:
    """Ask the language model of the environment until a reply is usable.

    Args:
        question: the message.
        check: parses a reply's text; raises an InputError if it is unusable.

    Returns:
        The result, and its source in words.

    Raises:
        InputError: there is no key, the endpoint cannot be used, or no reply was usable.
    """
    if not os.environ.get(KEY):
        raise InputError(f"{KEY} is not set: give a key in the environment")
    model = os.environ.get(MODEL) or DEFAULT_MODEL
    problem, openai = "", client_library()
    # Without redirects, only the configured endpoint sees the question.
    transport = openai.DefaultHttpxClient(follow_redirects=False)
    with openai.OpenAI(timeout=TIMEOUT, max_retries=RETRIES, http_client=transport) as client:
        host = urlsplit(str(client.base_url)).hostname
        for _ in range(ATTEMPTS):
            try:
                answer = client.chat.completions.create(
                    model=model,
                    messages=[
                        {"role": "system", "content": SYSTEM},
                        {"role": "user", "content": question},
                    ],
                )
                return check(answer.choices[0].message.content or ""), f"{model} at {host}"
            except openai.APIStatusError as error:
                # Status only, since the body may repeat the key.
                raise InputError(f"language model at {host}: status {error.status_code}") from None
            except openai.APITimeoutError:
                raise InputError(f"language model at {host}: no answer in {TIMEOUT:g} s") from None
            except openai.OpenAIError as error:
                raise InputError(f"language model at {host}: {type(error).__name__}") from None
            except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
                problem = str(error) if isinstance(error, InputError) else "not a chat completion"
    raise InputError(f"language model at {host}: {ATTEMPTS} unusable replies, the last: {problem}")


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


def parse(schema: type[Schema], text: str) -> Schema:
    """Parse a reply's JSON and check it against a schema.

    Raises:
        InputError: it is not the requested JSON.
    """
    # Chat models often put JSON in a code fence.
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    try:
        return schema.model_validate_json(fenced[1] if fenced else text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "reply"
        raise InputError(f"{place}: {first['msg']}") from None


def kept_or_asked(
    kind: type[KeptT], path: Path, concept: str, ask: Callable[[], KeptT]
) -> tuple[KeptT | None, str]:
    """Return the reply saved in a run's folder for its concept, else a new one.

    Args:
        kind: the dataclass that `describe` wrote.
        path: file in the folder; only read.
        concept: concept of the run.
        ask: requests a new reply; raises an InputError if there is none.

    Returns:
        The words, or None; and the reason if there are none, in brackets after a space.

    Raises:
        InputError: the file is damaged.
    """
    if path.is_file() and (reply := read_kept(kind, path)).concept == concept:
        return reply, ""
    try:
        return ask(), ""
    except InputError as error:
        return None, f" ({error})"


def read_kept(kind: type[KeptT], path: Path) -> KeptT:
    """Read a saved reply, so that the language model is asked only once.

    Args:
        kind: the dataclass that `describe` wrote.
        path: the file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        raise InputError(f"{path} is damaged: remove it to ask again") from error


def describe(reply: Kept) -> str:
    """Format a reply as the file saved in a run's folder."""
    return json.dumps(asdict(reply), indent=2, ensure_ascii=False) + "\n"
