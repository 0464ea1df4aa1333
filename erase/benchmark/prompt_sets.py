"""Read prompt sets as benchmarks publish them: CSV of any columns, COCO's JSON, plain text.

Columns are recognised by their names. A file `.csv` without a header, as Ring-A-Bell's, has one
prompt a line.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import TypedDict

from erase.benchmark.where import Condition, empty_cells, parse_condition, rows_where
from flux_jax.errors import InputError, counted, shortened
from flux_jax.settings import MOST_SEED
from flux_jax.system.files import read_text
from flux_jax.system.json_files import checked, read_json

# Limits on a file's bytes and on its prompts: COCO's captions of 2014 are 67 MB and 414,113.
MOST_BYTES, MOST_JSON_BYTES, MOST_PROMPTS = 64 << 20, 256 << 20, 1_000_000
# Characters of a prompt. The longest of I2P has about 4,000.
MOST_CHARACTERS = 20_000
# Names of columns in lower case, the preferred first.
PROMPT = ("prompt", "adv_prompt", "sensitive prompt", "caption", "text", "target_prompt")
SEED = ("evaluation_seed", "sd_seed", "seed")
GUIDANCE = ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance")
WIDTH, HEIGHT = ("sd_image_width", "width"), ("sd_image_height", "height")
CASE = ("coco_id", "image_id", "case_number")
GROUP = ("type",)
# Known columns that are not used.
OTHERS = (
    *("", "unnamed: 0", "source", "categories", "hard", "inappropriate_percentage"),
    *("nudity_percentage", "q16_percentage", "sd_safety_percentage", "prompt_toxicity"),
    *("lexica_url", "sd_model", "artist", "class", "sanitized_adv_prompt"),
)
KNOWN = (*PROMPT, *SEED, *GUIDANCE, *WIDTH, *HEIGHT, *CASE, *GROUP, *OTHERS)
MEND = "fetch it again"
# Text of an integer.
INTEGER = re.compile(r"-?[0-9]{1,20}")


@dataclass(frozen=True)
class BenchmarkPrompt:
    """A prompt of a set, with what its row says.

    Attributes:
        text: the prompt.
        seed: seed of its noise; None where the file has none.
        guidance: guidance scale; None where the file has none.
        height: pixels; None where the file has none.
        width: pixels; None where the file has none.
        case: its number in the file's own counting; empty where there is none.
        group: group that figures are also given for, such as "erased"; empty where there is none.
    """

    text: str
    seed: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    case: str = ""
    group: str = ""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a file.

    Attributes:
        name: the file's name.
        prompts: in the file's order.
        notes: what was not used of the file, a line each.
        where: conditions that chose the prompts.
    """

    name: str
    prompts: tuple[BenchmarkPrompt, ...]
    notes: tuple[str, ...] = ()
    where: tuple[str, ...] = ()


class _Image(TypedDict):
    id: int


class _Annotation(TypedDict):
    id: int
    image_id: int
    caption: str


class _Captions(TypedDict):
    """The part of COCO's JSON that is read."""

    images: list[_Image]
    annotations: list[_Annotation]


def read_prompt_set(
    path: str | Path, column: str | None = None, where: Sequence[str] = ()
) -> PromptSet:
    """Read a file of prompts.

    Args:
        path: `.json` is COCO's JSON; `.csv` a table, or one prompt a line; others have one prompt a
            line.
        column: name of the column with the prompts; by default the first of `PROMPT`.
        where: conditions on rows of a table, such as "nudity_percentage>50"; rows that meet all are
            read.

    Raises:
        InputError: the file is missing, too large, damaged, without prompts or without a column;
            or a value or condition cannot be used.
    """
    path, conditions = Path(path), [parse_condition(text) for text in where]
    kind = path.suffix.lower()
    if column is not None and kind != ".csv":
        raise InputError(f"column = {shortened(column)!r}: {path} is no CSV file; leave it out")
    if conditions and kind != ".csv":
        raise InputError(f"where = {conditions[0]!s:.100}: {path} is no CSV file; leave it out")
    if kind == ".json":
        found = _of_captions(path)
    else:
        text = _text(path)
        found = (
            _of_table(path, text, column, conditions) if kind == ".csv" else _of_lines(path, text)
        )
    if not found.prompts:
        also = f" where {conditions[0]!s:.100}" if conditions else ""
        raise InputError(f"{path} has no prompts{also}; check the {'value' if also else 'file'}")
    for number, prompt in enumerate(found.prompts, start=1):
        if len(prompt.text) > MOST_CHARACTERS:
            raise InputError(
                f"{path}: prompt {number} has {len(prompt.text):,} characters, over the limit of "
                f"{MOST_CHARACTERS:,}; is the file torn?"
            )
    return found


def _text(path: Path) -> str:
    """Read a text file of limited size.

    Raises:
        InputError: it is missing, too large or no text.
    """
    try:
        text = read_text(path, "split it", MOST_BYTES)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); check the path"
        ) from None
    if "\0" in text:
        raise InputError(f"{path} has zero bytes, so it is no text or is torn; {MEND}")
    return text


def _of_lines(path: Path, text: str) -> PromptSet:
    lines = [line.strip() for line in text.splitlines()]
    return PromptSet(path.name, _bounded(path, [BenchmarkPrompt(line) for line in lines if line]))


def _of_captions(path: Path) -> PromptSet:
    """Read COCO's JSON: the first caption of each picture, in the order of the pictures.

    Raises:
        InputError: it is damaged, or not in COCO's form.
    """
    content = read_json(path, mend=MEND, most=MOST_JSON_BYTES)
    missing = [name for name in ("images", "annotations") if name not in content]
    if missing:
        names = ", ".join(shortened(ascii(name), 30) for name in list(content)[:5])
        raise InputError(
            f"{path}: {missing[0]} is missing (it has {names or 'nothing'}); JSON with prompts "
            "must be COCO's captions_*.json"
        )
    captions = checked(_Captions, content, path, MEND)
    first: dict[int, _Annotation] = {}
    for each in captions["annotations"]:
        there = first.setdefault(each["image_id"], each)
        if each["id"] < there["id"]:
            first[each["image_id"]] = each
    ids = [image["id"] for image in captions["images"] if image["id"] in first]
    prompts = [
        BenchmarkPrompt(first[i]["caption"].strip(), case=str(i)) for i in dict.fromkeys(ids)
    ]
    more = len(captions["annotations"]) - len(prompts)
    notes = (f"{path.name}: of each picture the first caption is used, {more:,} are not",)
    return PromptSet(path.name, _bounded(path, prompts), notes if more else ())


def _of_table(
    path: Path, text: str, column: str | None, where: Sequence[Condition] = ()
) -> PromptSet:
    rows = _rows(path, text)
    if not rows:
        return PromptSet(path.name, ())
    header = [name.strip() for name in rows[0][1]]
    names = [name.lower() for name in header]
    # Ring-A-Bell's: only prompts.
    single = all(len(row) == 1 for _, row in rows) and names[0] not in KNOWN
    if column is None and not where and single:
        prompts = [BenchmarkPrompt(row[0].strip()) for _, row in rows if row[0].strip()]
        return PromptSet(path.name, _bounded(path, prompts), _headless(path, header))
    wanted = PROMPT if column is None else (column.strip().lower(),)
    place = _place(names, wanted)
    if place is None:
        shown = ", ".join(repr(shortened(name, 30)) for name in header[:12])
        raise InputError(
            f"{path} has no column {'prompt' if column is None else shortened(column)!r}; name one "
            f"with --column: {shown}{' and more' if len(header) > 12 else ''}"
        )
    used = [wanted, *FIELDS.values()]
    if twice := [n for n in names if names.count(n) > 1 and any(n in each for each in used)]:
        raise InputError(f"{path} has the column {shortened(twice[0], 40)!r} twice; rename one")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise InputError(
                f"{path}: line {line} has {counted(len(row), 'value')} and the header "
                f"{len(header)}; the file is torn: {MEND}"
            )
    reader = _Reader(path, header, {name: _place(names, each) for name, each in FIELDS.items()})
    chosen = rows_where(rows[1:], where, names, path)
    prompts = [reader.prompt(line, row, place) for line, row in chosen if row[place].strip()]
    chosen_by = [each.column for each in where]
    notes = _notes(path, header, (*KNOWN, *chosen_by), place, len(chosen) - len(prompts))
    if where:
        which = " and ".join(shortened(str(each), 60) for each in where)
        empty = empty_cells(rows[1:], where, names)
        also = f"; {counted(empty, 'row')} with an empty cell left out" if empty else ""
        notes = (f"{path.name}: {len(chosen):,} of {len(rows) - 1:,} rows, {which}{also}", *notes)
    return PromptSet(path.name, _bounded(path, prompts), notes, tuple(map(str, where)))


def _rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV, each with the number of its last line; empty lines are left out.

    Raises:
        InputError: a quote is not closed, or there are too many rows.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    rows = []
    try:
        for row in reader:
            if row:
                rows.append((reader.line_num, row))
            if len(rows) > MOST_PROMPTS + 1:
                break
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is no CSV ({error}); the file is torn: {MEND}"
        ) from None
    return rows


def _headless(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    # A single word is more often the name of a column.
    if len(header[0].split()) > 1:
        return ()
    return (f"{path.name}: no header; its first line {shortened(header[0], 40)!r} is a prompt",)


FIELDS: Mapping[str, Sequence[str]] = {
    "seed": SEED,
    "guidance": GUIDANCE,
    "width": WIDTH,
    "height": HEIGHT,
    "case": CASE,
    "group": GROUP,
}


def _place(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _notes(
    path: Path, header: Sequence[str], known: Sequence[str], place: int, empty: int
) -> tuple[str, ...]:
    """Name the columns that are unknown, the choice between prompts, and empty rows."""
    notes = []
    names = [name.lower() for name in header]
    unknown = [shortened(h, 30) for h, name in zip(header, names, strict=True) if name not in known]
    unknown = [name for name in unknown if name != shortened(header[place], 30)]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        notes.append(f"{path.name}: unknown columns are not used: {', '.join(unknown[:5])}{more}")
    if rest := [header[i] for i, name in enumerate(names) if name in PROMPT and i != place]:
        notes.append(
            f"{path.name}: prompts are those of column {shortened(header[place], 30)}; --column "
            f"chooses another: {', '.join(rest)}"
        )
    if empty:
        notes.append(f"{path.name}: {counted(empty, 'row')} without a prompt left out")
    return tuple(notes)


@dataclass(frozen=True)
class _Reader:
    """Reads the values of rows.

    Attributes:
        path: the file, for messages.
        header: names of the columns.
        places: index of each field's column, or None.
    """

    path: Path
    header: Sequence[str]
    places: Mapping[str, int | None]

    def prompt(self, line: int, row: Sequence[str], place: int) -> BenchmarkPrompt:
        """Return a row's prompt.

        Raises:
            InputError: a number cannot be used.
        """
        return BenchmarkPrompt(
            row[place].strip(),
            self._integer(line, row, "seed", 0, MOST_SEED),
            self._guidance(line, row),
            self._integer(line, row, "height", 1, 1 << 16),
            self._integer(line, row, "width", 1, 1 << 16),
            self._value(row, "case"),
            self._value(row, "group"),
        )

    def _value(self, row: Sequence[str], field: str) -> str:
        place = self.places[field]
        return "" if place is None else row[place].strip()

    def _integer(
        self, line: int, row: Sequence[str], field: str, least: int, most: int
    ) -> int | None:
        place = self.places[field]
        if place is None:
            return None
        value = row[place].strip()
        # pandas writes integers of columns with empty cells as 7.0.
        digits = value.removesuffix(".0")
        number = int(digits) if INTEGER.fullmatch(digits) else None
        if number is None or not least <= number <= most:
            raise self._refused(line, place, value, f"an integer from {least} to {most}")
        return number

    def _guidance(self, line: int, row: Sequence[str]) -> float | None:
        place = self.places["guidance"]
        if place is None:
            return None
        try:
            value = float(row[place])
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise self._refused(line, place, row[place], "a finite number, at least 0")
        return value

    def _refused(self, line: int, place: int, value: str, wanted: str) -> InputError:
        return InputError(
            f"{self.path}: line {line}: {shortened(self.header[place], 40)} = "
            f"{shortened(value, 40)!r} must be {wanted}; correct it or remove the column"
        )


def _bounded(path: Path, prompts: Sequence[BenchmarkPrompt]) -> tuple[BenchmarkPrompt, ...]:
    """Return the prompts.

    Raises:
        InputError: there are too many.
    """
    if len(prompts) > MOST_PROMPTS:
        raise InputError(f"{path} has more than {MOST_PROMPTS:,} prompts, the limit; split it")
    return tuple(prompts)
