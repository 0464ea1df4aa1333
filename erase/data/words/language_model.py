"""Ask a language model at an OpenAI-compatible endpoint, and validate its replies.

Endpoint, key and model come from the environment: OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL.
Replies are checked against a schema and never evaluated. The key appears in no message or file.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import pydantic

from erase.data.words import endpoint
from flux_jax.errors import InputError
from flux_jax.system.files import read_bytes
from flux_jax.system.json_files import parse_json

KEY, URL, MODEL = "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"
DEFAULT_URL, DEFAULT_MODEL = "https://api.openai.com/v1", "gpt-4o"
# Number of unusable replies before giving up.
ATTEMPTS = 3
# Seconds of a try, and of all tries (2 minutes with the ends of the last one); further tries after
# errors that may pass.
TIMEOUT, TOTAL, RETRIES = 30.0, 115.0, 4
# Bytes of a reply.
SIZE = 2**20
FENCE = "```"


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
    key = os.environ.get(KEY)
    if not key:
        raise InputError(f"{KEY} is not set: give a key in the environment")
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise InputError(
            f"{KEY} has a space, a line break or a letter that no key has; set it again"
        )
    asked = endpoint.Endpoint(
        os.environ.get(URL) or DEFAULT_URL, os.environ.get(MODEL) or DEFAULT_MODEL, key
    )
    limits = endpoint.Limits(TIMEOUT, TOTAL, SIZE, RETRIES, ATTEMPTS)
    return endpoint.ask(asked, question, check, limits)


def parse(schema: type[Schema], text: str) -> Schema:
    """Parse a reply's JSON and check it against a schema.

    Raises:
        InputError: it is not the requested JSON.
    """
    try:
        return schema.model_validate_json(unfenced(text))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "reply"
        raise InputError(f"{place}: {first['msg']}") from None


def unfenced(text: str) -> str:
    """Remove the code fence that chat models often put around JSON."""
    # A regular expression would take quadratic time for some texts.
    inner = text.strip()
    if len(inner) < 2 * len(FENCE) or not (inner.startswith(FENCE) and inner.endswith(FENCE)):
        return text
    return inner[len(FENCE) : -len(FENCE)].removeprefix("json").strip()


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
        return pydantic.TypeAdapter(kind).validate_python(parse_json(read_bytes(path)))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged: remove it to ask again") from error


def describe(reply: Kept) -> str:
    """Format a reply as the file saved in a run's folder."""
    return json.dumps(asdict(reply), indent=2, ensure_ascii=False) + "\n"
