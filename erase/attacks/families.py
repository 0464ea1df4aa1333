"""Families of attacks: what each has access to, and its budget; needs no JAX."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from erase.config.fields import build_dataclass, number
from flux_jax.errors import InputError, nearest

# Changed prompts, which need no search; see `erase.attacks.disguises`.
DISGUISES = ("misspelt", "affixes", "repeated", "synonyms", "shuffled")


@dataclass(frozen=True)
class InversionBudget:
    """Budget of `erase.attacks.inversion`.

    Attributes:
        restarts: searches from different starts, at once; the best by held-out error counts.
        steps: steps of Adam.
        batch: points of the pictures per step and restart.
        examples: pictures of the concept that the frozen model draws for the search.
        rate: learning rate of Adam, relative to the embeddings' standard deviation.
    """

    restarts: int = number(4, least=1)
    steps: int = number(100, least=1)
    batch: int = number(4, least=1)
    examples: int = number(16, least=1)
    rate: float = number(0.5, above=0)


@dataclass(frozen=True)
class TokensBudget:
    """Budget of `erase.attacks.tokens`.

    Attributes:
        restarts: searches from different starts, at once; the best by held-out error counts.
        steps: steps along the gradient.
        batch: points of the pictures per step and restart.
        examples: pictures of the concept that the frozen model draws for the search.
        candidates: candidates that each step rates.
        tokens: number of tokens in the concept's place.
        own_words: whether these may spell the concept or a synonym.
    """

    restarts: int = number(4, least=1)
    steps: int = number(100, least=1)
    batch: int = number(4, least=1)
    examples: int = number(16, least=1)
    candidates: int = number(8, least=1)
    tokens: int = number(2, least=1)
    own_words: bool = False


@dataclass(frozen=True)
class RingABellBudget:
    """Budget of `erase.attacks.ring_a_bell`.

    Attributes:
        restarts: prompts that are searched for, at once.
        tokens: number of tokens of a prompt.
        population: candidates of each search.
        generations: generations of each search.
        mutation: probability that a token of a child is replaced by a random one.
        eta: how much of the concept's direction is added to a prompt's encoding.
        own_words: whether the prompts may spell the concept or a synonym.
    """

    restarts: int = number(4, least=1)
    tokens: int = number(8, least=1)
    population: int = number(200, least=4)
    generations: int = number(200, least=1)
    mutation: float = number(0.1, least=0, most=1)
    eta: float = number(3.0, least=0)
    own_words: bool = False


@dataclass(frozen=True)
class RelearnBudget:
    """Budget of `erase.attacks.relearn`.

    Attributes:
        restarts: trainings on different pictures, at once; pictures are drawn by each in turn.
        steps: steps of AdamW.
        examples: pictures of the concept, and harmless pictures, that the frozen model draws.
        rate: learning rate of AdamW.
    """

    restarts: int = number(1, least=1)
    steps: int = number(40, least=1)
    examples: int = number(32, least=1)
    rate: float = number(1e-3, above=0)


Budget = InversionBudget | TokensBudget | RingABellBudget | RelearnBudget


@dataclass(frozen=True)
class Search:
    """A family of attacks that searches.

    Attributes:
        access: what the attacker has.
        budget: class of its budget.
    """

    access: str
    budget: type[Budget]


# Each is `ATTACK` in this package's module of that name.
SEARCHES: Mapping[str, Search] = {
    "inversion": Search("weights, input of the text encoder", InversionBudget),
    "tokens": Search("weights, prompts", TokensBudget),
    "ring_a_bell": Search("text encoder, prompts", RingABellBudget),
    "relearn": Search("weights, further training", RelearnBudget),
}
FAMILIES = (*DISGUISES, *SEARCHES)
# Names of all fields of budgets.
BUDGETS = tuple(
    dict.fromkeys(each.name for search in SEARCHES.values() for each in fields(search.budget))
)
# The access of disguised prompts.
PROMPTS = "prompts"


def chosen(names: Sequence[str], given: Mapping[str, Any]) -> dict[str, Budget | None]:
    """Check families and budgets of a command.

    Args:
        names: the families; with none, those of disguised prompts.
        given: values that the budgets of all chosen families take instead of their defaults.

    Returns:
        The families in the order of `FAMILIES`, with the budget of each that searches.

    Raises:
        InputError: a family is unknown, a value is out of range, or no chosen family takes it.
    """
    names = names or DISGUISES
    if unknown := [name for name in names if name not in FAMILIES]:
        raise InputError(
            f"family = {unknown[0][:60]!r} is unknown; {nearest(unknown[0], FAMILIES)}"
        )
    budgets: dict[str, Budget | None] = {}
    for name in FAMILIES:
        if name in names:
            budgets[name] = _budget(SEARCHES[name].budget, given) if name in SEARCHES else None
    taken = {each.name for budget in budgets.values() if budget for each in fields(budget)}
    if idle := [name for name in given if name not in taken]:
        takers = [name for name, each in SEARCHES.items() if idle[0] in _names(each.budget)]
        raise InputError(
            f"{idle[0]} = {given[idle[0]]!r} has no effect: of the families, only "
            f"{', '.join(takers)} {'take' if len(takers) > 1 else 'takes'} it; name one by --family"
        )
    return budgets


def described(budget: Budget | None, pictures: int) -> dict[str, float]:
    """Return the budget of a family as numbers by name, the judged pictures first."""
    return {"pictures": pictures, **({} if budget is None else asdict(budget))}


def access_of(family: str) -> str:
    """Return what the attacker of a family has access to."""
    return SEARCHES[family].access if family in SEARCHES else PROMPTS


def _names(budget: type[Budget]) -> set[str]:
    return {each.name for each in fields(budget)}


def _budget(kind: type[Budget], given: Mapping[str, Any]) -> Budget:
    """Build a budget from the values that it has.

    Raises:
        InputError: a value is out of its range.
    """
    problems: list[str] = []
    names = _names(kind)
    mine = {name: value for name, value in given.items() if name in names}
    budget = build_dataclass(kind, mine, problems)
    if problems:
        raise InputError(problems[0])
    return budget
