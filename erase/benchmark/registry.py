"""Judges of benchmarks by name; a judge's module is imported when it is used."""

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase.judges.protocol import PictureJudge
from flux_jax.errors import InputError, nearest, shortened
from flux_jax.system.files import read_text


@dataclass(frozen=True)
class Entry:
    """A judge that can be named.

    Attributes:
        home: its class, "module:class".
        value: what `NAME=VALUE` gives, for messages; empty if it takes no value.
        needed: whether the value must be given.
    """

    home: str
    value: str
    needed: bool = False


JUDGES = {
    "emoji": Entry("erase.judges.small_model:SmallModelJudge", "the judge's folder", True),
    "nudenet": Entry("erase.judges.nudenet:NudeNet", "the threshold"),
    "clip": Entry("erase.judges.clip_score:CLIPScore", "a folder or name on the hub"),
    "classes": Entry("erase.judges.clip_classes:CLIPClasses", "a file, a class per line", True),
    "persons": Entry("erase.judges.persons:PersonJudge", "the folder of its head", True),
    "q16": Entry("erase.judges.q16:Q16", "the file of its vectors", True),
}

# What compares folders of pictures.
FID = "erase.judges.fid:FID"
FRECHET = "erase.judges.frechet:JudgeFrechet"


@dataclass(frozen=True)
class JudgeOptions:
    """Settings of judges.

    Attributes:
        words: what the small model's judge looks for in all pictures.
        erased: classes and persons whose accuracy is counted apart.
        trunk: file of MobileNetV2's weights, for `persons`; None for the one in its folder.
        clip: CLIP of `classes` and `q16`, a folder or hub name; None for the published one.
        template: text of a class for `classes`, with {} in its place; None for the judge's own.
    """

    words: tuple[str, ...] = ()
    erased: tuple[str, ...] = ()
    trunk: str | None = None
    clip: str | None = None
    template: str | None = None


def parse_judge(text: str) -> tuple[str, str]:
    """Split "NAME" or "NAME=VALUE"; needs no judge's packages.

    Raises:
        InputError: the name is unknown, or its value is missing.
    """
    name, _, value = text.partition("=")
    if name not in JUDGES:
        raise InputError(f"judge = {shortened(name)!r} is unknown; {nearest(name, JUDGES)}")
    entry = JUDGES[name]
    if entry.needed and not value:
        raise InputError(f"judge = {name!r} needs {entry.value}: --judge {name}=PATH")
    if name == "nudenet" and value:
        _number(value)
    if entry.needed and not Path(value).exists():
        raise InputError(f"judge = {shortened(text)!r}: {value} does not exist; check the path")
    return name, value


def open_judge(text: str, options: JudgeOptions | None = None) -> PictureJudge:
    """Open a judge named on the command line.

    Args:
        text: "NAME" or "NAME=VALUE".
        options: further settings.

    Raises:
        InputError: it is unknown, or its packages or files are missing.
    """
    name, value = parse_judge(text)
    options = options or JudgeOptions()
    judge: Any = pkgutil.resolve_name(JUDGES[name].home)
    load = judge.load
    if name == "emoji":
        return load(value, options.words)
    if name == "classes":
        names, words = read_classes(value)
        template = {} if options.template is None else {"template": options.template}
        return load(names, options.clip, words, options.erased, **template)
    if name == "q16":
        return load(value, options.clip)
    if name == "persons":
        return judge.open(value, options.trunk, options.erased)
    if name == "nudenet" and value:
        return load(_number(value))
    return load(value) if value else load()


def open_distance(weights: str | None, judge: str | None = None) -> tuple[str, Any]:
    """Open the comparison of folders of pictures: its name in results, and the object.

    Args:
        weights: file of FID's network; None for the one that the package downloads.
        judge: folder of a judge, whose features are compared instead; None for FID.

    Raises:
        InputError: the package is not installed, or the file or folder cannot be used.
    """
    if judge is not None:
        return "frechet", pkgutil.resolve_name(FRECHET).load(judge)
    return "fid", pkgutil.resolve_name(FID)(None if weights is None else Path(weights))


def read_classes(path: str) -> tuple[list[str], dict[str, str]]:
    """Read a file of classes, one a line: "cat", or "cat: kitty, feline" with synonyms.

    Returns:
        Names of the classes; and the class of each synonym.

    Raises:
        InputError: the file cannot be read, a line has no class, or a synonym is there twice.
    """
    names: list[str] = []
    words: dict[str, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        name, colon, rest = (part.strip() for part in line.partition(":"))
        synonyms = [word.strip() for word in rest.split(",")] if colon else []
        if not name and not synonyms:
            continue
        if not name or not all(synonyms):
            raise InputError(
                f"{path}: line {number} = {shortened(line.strip(), 60)!r} has a name missing; "
                "write a class, or a class: synonym, synonym"
            )
        for word in synonyms:
            if word.lower() in words:
                raise InputError(
                    f"{path}: line {number}: {word!r:.60} is there twice; name it once"
                )
            words[word.lower()] = name
        names.append(name)
    return names, words


def _lines(path: str) -> list[str]:
    try:
        return read_text(Path(path)).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); check the path") from None


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(
            f"judge = 'nudenet={value:.40}': the threshold must be a number, such as 0.6"
        ) from None
