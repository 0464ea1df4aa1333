"""What each figure shows: rows and columns of pictures, each with its prompt, noise and adapters.

Pictures of one prompt always have the same noise, so that only the adapters differ.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from erase.config.fields import shown
from erase.data.words.spelling import mentions
from erase.figures.adapters import FigureAdapter
from flux_jax.errors import InputError

ORIGINAL = "original"
ERASED, KEPT = "#d9a400", "#15803d"
# How many adapters are added up, in the paper's Figure 16.
COUNTS = (3, 5, 10)


@dataclass(frozen=True)
class Cell:
    """A picture of a figure.

    Attributes:
        prompt: its prompt.
        seed: seed of its noise.
        adapters: place of each adapter, and its weight, by which its strength is multiplied.
        silenced: word whose tokens are muted, for attention map erasure.
        caption: below the picture.
        frame: colour of its frame; empty for none.
    """

    prompt: str
    seed: int
    adapters: tuple[tuple[int, float], ...] = ()
    silenced: str | None = None
    caption: str = ""
    frame: str = ""


@dataclass(frozen=True)
class Layout:
    """A figure before it is drawn.

    Attributes:
        headings: above the columns.
        rows: title of each row, and its cells; None is an empty place.
        line_below: number of rows above the dashed line; None for no line.
        line_right: number of columns left of the dashed line; None for no line.
    """

    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    line_below: int | None = None
    line_right: int | None = None


@dataclass(frozen=True)
class Request:
    """What a figure is made of.

    Attributes:
        adapters: its adapters.
        prompts: prompts; which of them a figure needs is in `LAYOUTS`.
        seeds: seeds of the prompts, which take turns.
        counts: numbers of adapters to add up.
    """

    adapters: Sequence[FigureAdapter]
    prompts: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    counts: Sequence[int] = field(default=())

    def seed(self, number: int) -> int:
        """Return the seed of the prompt of a number."""
        return self.seeds[number % len(self.seeds)]


def single_concept(request: Request) -> Layout:
    """Return Figure 4: a row for each method, a column for each concept.

    Raises:
        InputError: a prompt does not name one erased concept, or an adapter is missing.
    """
    return _by_concept(request, [each.method for each in request.adapters])


def losses(request: Request) -> Layout:
    """Return Figure 18: a row for each combination of losses, a column for each concept.

    Raises:
        InputError: a prompt does not name one erased concept, or an adapter is missing.
    """
    return _by_concept(request, [each.losses for each in request.adapters])


def _by_concept(request: Request, labels: Sequence[str]) -> Layout:
    columns, place = _columns(request), _places(request, labels)
    cells = [Cell(p, request.seed(n), caption=p) for n, (p, _) in enumerate(columns)]
    rows: list[tuple[str, list[Cell | None]]] = [(ORIGINAL, [*cells])]
    for label in dict.fromkeys(labels):
        used = [place(label, concept) for _, concept in columns]
        rows.append((label, [_with(c, [(a, 1.0)]) for c, a in zip(cells, used, strict=True)]))
    return Layout([concept for _, concept in columns], rows)


def methods(request: Request) -> Layout:
    """Return Figure 14: a row for each concept, a column for each method and attention maps.

    Raises:
        InputError: a prompt does not name one erased concept, or an adapter is missing.
    """
    labels = [each.method for each in request.adapters]
    columns, place = _columns(request), _places(request, labels)
    names = list(dict.fromkeys(labels))
    rows = []
    for number, (prompt, concept) in enumerate(columns):
        base = Cell(prompt, request.seed(number))
        drawn: list[Cell | None] = [base]
        drawn += [_with(base, [(place(name, concept), 1.0)]) for name in names]
        drawn.insert(-1, Cell(prompt, base.seed, silenced=concept))
        rows.append((prompt, drawn))
    return Layout([ORIGINAL, *names[:-1], "Attention map", names[-1]], rows)


def disentanglement(request: Request) -> Layout:
    """Return Figure 15: each concept's original and erased picture, and unrelated prompts.

    Raises:
        InputError: there is no prompt, or one names an erased concept.
    """
    _unrelated(request)
    own = len(request.adapters)
    others = [Cell(p, request.seed(own + n), caption=p) for n, p in enumerate(request.prompts)]
    rows: list[tuple[str, list[Cell | None]]] = [(ORIGINAL, [None, None, *others])]
    for number, adapter in enumerate(request.adapters):
        base = Cell(adapter.prompt, request.seed(number), caption=adapter.prompt, frame=KEPT)
        erased = Cell(base.prompt, base.seed, ((number, 1.0),), frame=ERASED)
        changed = [_with(each, [(number, 1.0)]) for each in others]
        rows.append((f"⊖ {adapter.concept}", [base, erased, *changed]))
    return Layout([ORIGINAL, "erased", *([""] * len(others))], rows, 1, 2)


def unrelated(request: Request) -> Layout:
    """Return Figure 16: unrelated prompts under normalised sums (above) and plain sums of N.

    Raises:
        InputError: there is no prompt, one names an erased concept, or there are too few adapters.
    """
    _unrelated(request)
    most = len(request.adapters)
    if most < 2:
        raise InputError(
            f"adapter = {str(request.adapters[0].path)!r:.200}: this figure adds adapters up; name "
            "two or more with --adapter"
        )
    counts = request.counts or [count for count in COUNTS if count <= most] or [most]
    if wrong := [count for count in counts if not 2 <= count <= most]:
        raise InputError(
            f"count = {wrong[0]} must be from 2 to {most}, the number of adapters; name more "
            "with --adapter"
        )
    cells = [Cell(p, request.seed(n), caption=p) for n, p in enumerate(request.prompts)]
    rows: list[tuple[str, list[Cell | None]]] = [(ORIGINAL, [*cells])]
    for title in ("normalised", "plain"):
        for count in counts:
            weight = 1 / count if title == "normalised" else 1.0
            used = [(place, weight) for place in range(count)]
            rows.append((f"{title} sum, N = {count}", [_with(cell, used) for cell in cells]))
    return Layout([""] * len(cells), rows, 1 + len(counts))


def related(request: Request) -> Layout:
    """Return Figure 17: a prompt with several concepts, each erased alone, then all together.

    All together they are a normalised sum.

    Raises:
        InputError: there is no prompt, or one does not name two erased concepts.
    """
    _check_once(request, [""] * len(request.adapters))
    if not request.prompts:
        raise InputError("prompt is missing: name one with two erased concepts, with --prompt")
    rows = []
    for number, prompt in enumerate(request.prompts):
        base = Cell(prompt, request.seed(number), caption=ORIGINAL)
        there = [n for n, each in enumerate(request.adapters) if mentions(prompt, each.concept)]
        if len(there) < 2:
            raise InputError(
                f"prompt = {shown(prompt)} names {len(there)} of the concepts that adapters erase; "
                "it needs two or more"
            )
        drawn: list[Cell | None] = [base]
        minus = [f"⊖ {request.adapters[n].concept}" for n in there]
        drawn += [
            Cell(prompt, base.seed, ((n, 1.0),), caption=title)
            for n, title in zip(there, minus, strict=True)
        ]
        every = tuple((n, 1 / len(there)) for n in there)
        drawn.append(Cell(prompt, base.seed, every, caption=" ".join(minus)))
        rows.append((prompt, drawn))
    return Layout([], rows)


LAYOUTS: Mapping[str, Callable[[Request], Layout]] = {
    "single-concept": single_concept,
    "methods": methods,
    "disentanglement": disentanglement,
    "unrelated": unrelated,
    "related": related,
    "losses": losses,
}


def _with(cell: Cell, adapters: Sequence[tuple[int, float]]) -> Cell:
    """The same picture with adapters; its caption is below the column's first picture alone."""
    return Cell(cell.prompt, cell.seed, tuple(adapters))


def _columns(request: Request) -> list[tuple[str, str]]:
    """Return each prompt with the erased concept that it names; by default one for each concept.

    Raises:
        InputError: a prompt names no concept or several, or a concept is in none of the prompts.
    """
    first = {each.concept: each for each in reversed(request.adapters)}
    concepts = list(dict.fromkeys(each.concept for each in request.adapters))
    if not request.prompts:
        return [(first[concept].prompt, concept) for concept in concepts]
    columns = []
    for prompt in request.prompts:
        there = [concept for concept in concepts if mentions(prompt, concept)]
        if len(there) != 1:
            raise InputError(
                f"prompt = {shown(prompt)} names {len(there)} of the concepts that adapters erase; "
                f"it needs one: {', '.join(concepts[:3])}"
            )
        columns.append((prompt, there[0]))
    return columns


def _places(request: Request, labels: Sequence[str]) -> Callable[[str, str], int]:
    """Return a function from label and concept to the adapter's place.

    It raises InputError if there is no such adapter.

    Raises:
        InputError: see `_check_once`.
    """
    _check_once(request, labels)
    there = {
        (label, each.concept): place
        for place, (label, each) in enumerate(zip(labels, request.adapters, strict=True))
    }

    def place(label: str, concept: str) -> int:
        if (label, concept) not in there:
            raise InputError(
                f"{label:.60} has no adapter that erases {shown(concept)}; name it with "
                "--adapter LABEL=PATH"
            )
        return there[label, concept]

    return place


def _check_once(request: Request, labels: Sequence[str]) -> None:
    """Check that no two adapters of a label erase the same concept.

    Raises:
        InputError: two do.
    """
    there: dict[tuple[str, str], FigureAdapter] = {}
    for label, each in zip(labels, request.adapters, strict=True):
        if (other := there.setdefault((label, each.concept), each)) is not each:
            by = f" by {label}" if label else ""
            raise InputError(
                f"{shown(each.concept)} is erased{by:.60} in {other.path} and in {each.path}; name "
                "one of them, or give them labels: --adapter LABEL=PATH"
            )


def _unrelated(request: Request) -> None:
    """Check that there are prompts, and that none names an erased concept.

    Raises:
        InputError: there are none, or one does.
    """
    _check_once(request, [""] * len(request.adapters))
    if not request.prompts:
        raise InputError("prompt is missing: name some that have none of the erased concepts")
    for prompt in request.prompts:
        for each in request.adapters:
            if mentions(prompt, each.concept):
                raise InputError(
                    f"prompt = {shown(prompt)} names {shown(each.concept)}, which {each.path} "
                    "erases; this figure is of unrelated prompts"
                )
