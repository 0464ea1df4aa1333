"""Raters' answers: files are read, checked against the key and joined."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import TypedDict

from erase.config.fields import shown
from erase.survey.questions import Key
from flux_jax.errors import InputError
from flux_jax.system.files import read_text
from flux_jax.system.json_files import read_typed

# Bytes of a file of answers; a questionnaire of 300 trials has 200 kB.
MOST_BYTES = 4 << 20
KINDS = (".json", ".csv")
# The largest number of a rater; the page has the same limit.
MOST_RATER = 1_000_000
COLUMNS = ("study", "rater", "trial", "item", "question", "rating")


class Answer(TypedDict):
    """A rating of an item by a question."""

    trial: str
    item: str
    question: str
    rating: int


class Answers(TypedDict):
    """A file that the page exports."""

    study: str
    rater: int
    answers: list[Answer]


@dataclass(frozen=True)
class Rating:
    """A rating, with the method and the prompt's number that the key names for its item."""

    rater: int
    prompt: int
    method: str
    question: str
    value: int


@dataclass(frozen=True)
class Joined:
    """Answers of all raters.

    Attributes:
        ratings: of the raters who passed every attention check that they answered.
        complete: share of the questions that each of these raters answered.
        left_out: files that are not used, with the reason.
    """

    ratings: list[Rating]
    complete: dict[int, float]
    left_out: dict[str, str]


def join(folder: Path, key: Key) -> Joined:
    """Read the answers of all raters in a folder, JSON or CSV.

    A file that cannot be used is left out with its reason, so that one does not stop the others.

    Raises:
        InputError: the folder has no file that can be used.
    """
    ratings: list[Rating] = []
    complete: dict[int, float] = {}
    left_out: dict[str, str] = {}
    files: dict[int, str] = {}
    questions = sum(len(key["trials"][item["trial"]]) for item in key["items"].values())
    for file in sorted(each for each in folder.iterdir() if each.suffix.lower() in KINDS):
        try:
            answers = _read(file)
            if (rater := answers["rater"]) in files:
                raise InputError(f"rater {rater} is in {files[rater]} already")
            own = list(_ratings(answers, key))
        except InputError as error:
            left_out[file.name] = str(error)
            continue
        files[rater] = file.name
        ratings += own
        complete[rater] = len(own) / questions
    if not ratings:
        reason = next(iter(left_out.values()), "it has no .json or .csv files")
        raise InputError(f"answers = {shown(str(folder))} has none that can be used: {reason}")
    return Joined(ratings, complete, left_out)


def read_key(file: Path) -> Key:
    """Read a questionnaire's key.

    Raises:
        InputError: it is missing or damaged.
    """
    mend = "use the key.json that was written with the page"
    key = read_typed(Key, file, mend=mend)
    trials = {item["trial"] for item in key["items"].values()}
    if missing := trials - (key["trials"].keys() & key["prompts"].keys()):
        raise InputError(f"{file}: trial {shown(min(missing))} has no questions; {mend}")
    named = [item["method"] for item in key["items"].values()]
    if sorted(key["methods"]) != sorted(set(named)):
        raise InputError(f"{file}: methods and items name different methods; {mend}")
    return key


def _read(file: Path) -> Answers:
    """Read a file of either kind.

    Raises:
        InputError: it is damaged.
    """
    mend = "ask the rater to export it again"
    if file.suffix.lower() == ".json":
        return read_typed(Answers, file, mend=mend)
    try:
        text = read_text(file, mend, MOST_BYTES)
        lines = list(csv.DictReader(io.StringIO(text)))
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{file.name}: it is no CSV in UTF-8; {mend}") from None
    if not lines or set(lines[0]) != set(COLUMNS):
        raise InputError(f"{file.name}: the columns must be {', '.join(COLUMNS)}")
    if len({(line["study"], line["rater"]) for line in lines}) > 1:
        raise InputError(f"{file.name}: it has several raters; one file for each")
    try:
        answers: list[Answer] = [
            {
                "trial": line["trial"],
                "item": line["item"],
                "question": line["question"],
                "rating": int(line["rating"]),
            }
            for line in lines
        ]
        return {"study": lines[0]["study"], "rater": int(lines[0]["rater"]), "answers": answers}
    except (TypeError, ValueError):
        raise InputError(f"{file.name}: rater and rating must be whole numbers") from None


def _ratings(answers: Answers, key: Key) -> Iterator[Rating]:
    """Check answers against the key.

    Raises:
        InputError: they are another questionnaire's, an attention check failed, a value is outside
            1 to 5, or something is rated twice.
    """
    if answers["study"] != key["study"]:
        raise InputError(f"study = {shown(answers['study'])} is not this one, {key['study']!r}")
    if not 1 <= answers["rater"] <= MOST_RATER:
        raise InputError(f"rater = {answers['rater']} is no number from 1 to {MOST_RATER:,}")
    if not answers["answers"]:
        raise InputError("nothing is rated in it")
    seen: set[tuple[str, str]] = set()
    for answer in answers["answers"]:
        trial, item, question = answer["trial"], answer["item"], answer["question"]
        if not 1 <= answer["rating"] <= 5:
            raise InputError(f"rating = {answer['rating']} of {shown(item)} is outside 1 to 5")
        if (item, question) in seen:
            raise InputError(f"item {shown(item)} is rated twice by {shown(question)}")
        seen.add((item, question))
        if trial in key["checks"]:
            if answer["rating"] != key["checks"][trial]:
                raise InputError("an attention check failed")
            continue
        known = key["items"].get(item)
        if known is None or known["trial"] != trial or question not in key["trials"][trial]:
            raise InputError(
                f"item {shown(item)} of trial {shown(trial)} with question {shown(question)} is "
                "unknown"
            )
        prompt = key["prompts"][trial]
        yield Rating(answers["rater"], prompt, known["method"], question, answer["rating"])
