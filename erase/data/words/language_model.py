"""Asks a language model over an OpenAI-compatible endpoint, and takes no reply on trust.

Endpoint, key and model come from the environment: OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL.
Replies are data: checked against a schema, never evaluated. The key is in no message and no file.
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
# Replies that may be unusable before something else serves.
ATTEMPTS = 3
# Of one request, in seconds; the client itself retries what may pass, and waits longer each time.
TIMEOUT, RETRIES = 30.0, 4
SYSTEM = "You are a helpful assistant and a well-established language expert"


@dataclass(frozen=True)
class Kept:
    """What a run's folder keeps of a reply: words that were asked for about a concept."""

    concept: str


Result = TypeVar("Result")
KeptT = TypeVar("KeptT", bound=Kept)
Schema = TypeVar("Schema", bound=pydantic.BaseModel)


def ask(question: str, check: Callable[[str], Result]) -> tuple[Result, str]:
    """Asks the language model of the environment until a reply is usable.

    Args:
        question: the message.
        check: makes the result of a reply's text; an InputError says what is wrong with it.

    Returns:
        The result, and who gave it, in words.

    Raises:
        InputError: there is no key, the endpoint cannot be used, or no reply was usable.
    """
    if not os.environ.get(KEY):
        raise InputError(f"{KEY} is not set: give a key in the environment")
    model = os.environ.get(MODEL) or DEFAULT_MODEL
    problem, openai = "", client_library()
    # Nobody but the endpoint that was named sees the question.
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
                # The body may repeat the key; the status says enough.
                raise InputError(f"language model at {host}: status {error.status_code}") from None
            except openai.APITimeoutError:
                raise InputError(f"language model at {host}: no answer in {TIMEOUT:g} s") from None
            except openai.OpenAIError as error:
                raise InputError(f"language model at {host}: {type(error).__name__}") from None
            except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
                problem = str(error) if isinstance(error, InputError) else "not a chat completion"
    raise InputError(f"language model at {host}: {ATTEMPTS} unusable replies, the last: {problem}")


def client_library() -> Any:
    """The package `openai`, imported only once a language model is asked.

    Raises:
        InputError: it is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise InputError(
            f"language model: the package openai cannot be imported ({error}); pip install openai"
        ) from error
    return openai


def parse(schema: type[Schema], text: str) -> Schema:
    """A reply's JSON, checked against a schema.

    Raises:
        InputError: it is not the JSON that was asked for.
    """
    # Chat models like to fence their JSON.
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
    """What a run's folder keeps about its concept; where it keeps nothing, a new reply.

    Args:
        kind: the dataclass that `describe` wrote.
        path: the file in the folder; only read.
        concept: the run's.
        ask: gives the reply; an InputError says why there is none.

    Returns:
        The words, or None; and why there are none, in brackets after a space.

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
    """Reads what a run's folder keeps of a model's reply, so that nobody asks twice.

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
    """The file that a run's folder keeps."""
    return json.dumps(asdict(reply), indent=2, ensure_ascii=False) + "\n"
