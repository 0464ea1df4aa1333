"""What raters are asked about which pictures, after the paper's Figures 12 and 13.

Erasing and preserving: one picture of each method for a prompt, all from the same seed. Quality,
adherence and diversity: three pictures of one method for a prompt, from different seeds.
"""

import base64
import hashlib
import io
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import TypedDict

from erase.config.fields import shown
from erase.data.words.spelling import mentions
from flux_jax.errors import InputError
from flux_jax.system.pictures import opened_picture

# Pictures of a method in a trial on quality, adherence and diversity.
VARIED = 3
VARIED_QUESTIONS = ("quality", "adherence", "diversity")
# Trials of a questionnaire, its methods, and how often a rater's attention is checked.
MOST_TRIALS, MOST_METHODS, TRIALS_PER_CHECK = 300, 12, 10


class Question(TypedDict):
    """A question with its scale of 1 to 5."""

    key: str
    title: str
    text: str


QUESTIONS: Mapping[str, Question] = {
    key: {"key": key, "title": title, "text": text}
    for key, title, text in (
        (
            "erasing",
            "Erasing cleanliness",
            "Is “{concept}” gone? 1: the picture plainly shows it. 5: nothing of it is left, and "
            "the picture is clean.",
        ),
        (
            "preserving",
            "Irrelevant preservation",
            "Is the picture what the prompt asks for? 1: not at all, or spoilt. 5: fully, "
            "and intact.",
        ),
        ("quality", "Imaging quality", "1: broken or noisy pictures. 5: clear and well made."),
        ("adherence", "Prompt adherence", "1: the prompt is ignored. 5: all of it is there."),
        ("diversity", "Output diversity", "1: the same picture three times. 5: three ideas."),
    )
}


class Item(TypedDict):
    """What is rated: a method's picture, or its three pictures, as data addresses."""

    id: str
    pictures: list[str]


class Trial(TypedDict):
    """A screen of the questionnaire."""

    id: str
    prompt: str
    questions: list[Question]
    items: list[Item]


class KeyItem(TypedDict):
    """The method that an item shows, and its trial."""

    method: str
    trial: str


class Key(TypedDict):
    """What the page does not show, kept apart from it.

    Attributes:
        study: digest that joins page, key and answers.
        methods: in the order of the command.
        items: by their ids.
        trials: questions of each trial.
        prompts: number of each trial's prompt.
        checks: the wanted answer of each attention check, by its trial.
    """

    study: str
    methods: list[str]
    items: dict[str, KeyItem]
    trials: dict[str, list[str]]
    prompts: dict[str, int]
    checks: dict[str, int]


@dataclass(frozen=True)
class Picture:
    """A picture with what it was drawn for, and its width and height in pixels."""

    prompt: str
    seed: str
    address: str
    size: tuple[int, int]


def read_pictures(folder: Path) -> dict[str, Picture]:
    """Read the PNG files of a folder by name; prompt and seed are in their text entries.

    Raises:
        InputError: the folder has no pictures, or one lacks its prompt or seed.
    """
    pictures = {}
    for file in sorted(folder.glob("*.png")):
        with opened_picture(file, "draw it again") as picture:
            texts = getattr(picture, "text", {})
            if not {"prompt", "seed"} <= texts.keys():
                raise InputError(
                    f"{file} has no prompt and seed in its text entries: draw it with "
                    "`erase-anything sample`"
                )
            buffer = io.BytesIO()
            # Written anew: entries would give the method away.
            picture.convert("RGB").save(buffer, "PNG", optimize=True)
        address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        pictures[file.name] = Picture(texts["prompt"], texts["seed"], address, picture.size)
    if not pictures:
        raise InputError(f"pictures = {shown(str(folder))} has no PNG files")
    return pictures


def questionnaire(
    methods: Mapping[str, Mapping[str, Picture]], concept: str, salt: str | None = None
) -> tuple[list[Trial], Key]:
    """Make the trials and their key.

    Args:
        methods: pictures of each method, by file name.
        concept: the erased concept; prompts that name it ask about erasing.
        salt: makes the items' ids; random by default, so that nobody can compute them.

    Raises:
        InputError: there are too few or too many methods or trials, or files of one name were drawn
            for different prompts or seeds.
    """
    if not 2 <= len(methods) <= MOST_METHODS:
        raise InputError(f"{len(methods)} methods: give 2 to {MOST_METHODS} with --pictures")
    salt = secrets.token_hex(16) if salt is None else salt
    first = next(iter(methods.values()))
    by_prompt: dict[str, list[str]] = {}
    for name in common(methods):
        by_prompt.setdefault(first[name].prompt, []).append(name)
    making = _Making(concept, salt, [*methods])
    for number, (prompt, files) in enumerate(by_prompt.items()):
        erasing = mentions(prompt, concept)
        same_seed = {method: [pictures[files[0]].address] for method, pictures in methods.items()}
        making.add(number, prompt, ["erasing" if erasing else "preserving"], same_seed)
        if not erasing and len(files) >= VARIED:
            # In an order that says nothing of the methods'.
            for method in sorted(methods, key=lambda each: _hashed(salt, prompt, each)):
                shows = [methods[method][name].address for name in files[:VARIED]]
                making.add(number, prompt, VARIED_QUESTIONS, {method: shows})
    trials, key = making.trials, making.key
    if len(trials) > MOST_TRIALS:
        raise InputError(f"{len(trials)} trials: at most {MOST_TRIALS}; give fewer pictures")
    for number in range(1 + len(trials) // TRIALS_PER_CHECK):
        trials.append(_check(number, salt, key))
    key["study"] = _hashed(salt, *sorted(key["items"]))[:16]
    return trials, key


class _Making:
    """Trials and their key while they are made."""

    def __init__(self, concept: str, salt: str, methods: list[str]):
        self.concept, self.salt = concept, salt
        self.trials: list[Trial] = []
        self.key: Key = {
            "study": "",
            "methods": methods,
            "items": {},
            "trials": {},
            "prompts": {},
            "checks": {},
        }

    def add(
        self, number: int, prompt: str, asked: Sequence[str], shows: Mapping[str, list[str]]
    ) -> None:
        """Add a trial on the prompt of a number, with pictures of each method."""
        name, key = str(len(self.trials)), self.key
        items: list[Item] = []
        for method, pictures in shows.items():
            item = _hashed(self.salt, name, method)[:12]
            key["items"][item] = {"method": method, "trial": name}
            items.append({"id": item, "pictures": pictures})
        # In the order of random ids, not of methods.
        items.sort(key=lambda item: item["id"])
        key["trials"][name] = [*asked]
        key["prompts"][name] = number
        questions = [_about(QUESTIONS[each], self.concept) for each in asked]
        self.trials.append({"id": name, "prompt": prompt, "questions": questions, "items": items})


def common(methods: Mapping[str, Mapping[str, Picture]]) -> list[str]:
    """Return the names of files that all methods have, for the same prompts and seeds.

    Raises:
        InputError: a method lacks a file, or drew it for another prompt or seed.
    """
    (title, first), *others = methods.items()
    for other, pictures in others:
        if pictures.keys() != first.keys():
            odd = min(pictures.keys() ^ first.keys())
            raise InputError(f"pictures: {shown(odd)} is of {title} or {other} alone")
        for name in first:
            if (first[name].prompt, first[name].seed) != (
                pictures[name].prompt,
                pictures[name].seed,
            ):
                raise InputError(
                    f"pictures: {shown(name)} has another prompt or seed in {other} than in {title}"
                )
            if first[name].size != pictures[name].size:
                wide, high = pictures[name].size
                raise InputError(
                    f"pictures: {shown(name)} has {wide} x {high} pixels in {other} and another "
                    f"size in {title}, which tells them apart; draw all in one size"
                )
    return [*first]


def _hashed(*words: str) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def _about(question: Question, concept: str) -> Question:
    return {**question, "text": question["text"].replace("{concept}", concept)}


def _check(number: int, salt: str, key: Key) -> Trial:
    """A trial whose answer is in its question."""
    name = f"check-{number}"
    wanted = 1 + int(_hashed(salt, name), 16) % 5
    key["checks"][name] = wanted
    text = f"This is a check of attention, without pictures. Please choose {wanted}."
    question: Question = {"key": "check", "title": "Attention", "text": text}
    item: Item = {"id": name, "pictures": []}
    return {"id": name, "prompt": "", "questions": [question], "items": [item]}
