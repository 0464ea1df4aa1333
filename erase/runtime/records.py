"""Reads the JSON files of a run's folder, and checks what reports and cards use of them."""

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired

from typing_extensions import TypedDict

from erase.runtime import run_folder
from erase.runtime.results import (
    Cells,
    EvaluationResult,
    IrrelevantRecord,
    RunRecord,
    SentencesRecord,
    Sides,
)
from flux_jax.errors import InputError, shortened
from flux_jax.system.json_files import checked, read_json, read_typed

MEND = "evaluate the run again"
SIDES = ("before", "after")


# Keys of an evaluation, and those that reports need beside them.
NEEDED = {"pictures": ("concept",), "steps": ("guidance", "height", "width", "strength")}


class _Attacks(TypedDict):
    """The part of `attacks.json` that a report shows; files of earlier versions lack some."""

    cells: Cells
    access: NotRequired[dict[str, str]]
    budgets: NotRequired[dict[str, dict[str, float]]]


class AttackRow(TypedDict):
    """A family of attacks in a report.

    Attributes:
        family: its name.
        access: what the attacker has.
        budget: of its search.
        sides: shares by side.
    """

    family: str
    access: str
    budget: str
    sides: Sides


def read_run(workdir: Path, *, complete: bool = True) -> RunRecord:
    """Reads a run's `config.json`.

    Args:
        workdir: the run's folder.
        complete: whether the required fields must be there.

    Raises:
        InputError: the file is missing or damaged, or a field is of another type.
    """
    path = workdir / run_folder.CONFIG
    mend = "repair it, or train the run again"
    content = read_json(path, run_folder.MISSING, mend)
    return checked(RunRecord, content, path, mend, complete=complete)


def read_evaluation(workdir: Path) -> EvaluationResult | None:
    """Reads a run's `evaluation.json`; None if there is none.

    Raises:
        InputError: the file is damaged, a value is of another type, a cell lacks a side, or a
            picture is outside of the run's folder.
    """
    path = workdir / run_folder.EVALUATION
    if not path.is_file():
        return None
    result = checked(EvaluationResult, read_json(path, mend=MEND), path, MEND, complete=False)
    for name, needed in NEEDED.items():
        if name in result and (lost := [each for each in needed if each not in result]):
            raise InputError(f"{path}: {lost[0]} is missing; {MEND}")
    _check_sides(path, result.get("cells", {}), SIDES)
    if "H" in result:
        _check_sides(path, {"H": result["H"]}, SIDES)
    for example in (*result.get("pictures", ()), *result.get("attention", ())):
        for name in (example["before"], example["after"]):
            picture = PurePosixPath(name)
            if picture.is_absolute() or ".." in picture.parts or "\0" in name:
                raise InputError(
                    f"{path}: the picture {shortened(ascii(name))} is not in the run's folder; "
                    f"{MEND}"
                )
    return result


def read_attacks(workdir: Path) -> list[AttackRow]:
    """Reads the families in a run's `attacks.json`; empty if there is none.

    Raises:
        InputError: the file is damaged, a value is of another type, or a family lacks a side.
    """
    path = workdir / f"{run_folder.ATTACKS_STEM}.json"
    if not path.is_file():
        return []
    content = read_typed(_Attacks, path, mend="attack the run again")
    _check_sides(path, content["cells"], SIDES)
    access, budgets = content.get("access", {}), content.get("budgets", {})
    return [
        {
            "family": family,
            "access": access.get(family, "prompts"),
            "budget": budget_text(budgets.get(family, {})),
            "sides": sides,
        }
        for family, sides in content["cells"].items()
    ]


def budget_text(budget: Mapping[str, float]) -> str:
    """Format a search's budget, without the number of pictures: "steps 100, restarts 4"."""
    named = [f"{name} {value:g}" for name, value in budget.items() if name != "pictures"]
    return ", ".join(named)


def read_words(workdir: Path) -> tuple[SentencesRecord, IrrelevantRecord]:
    """Reads a run's `sentences.json` and `irrelevant.json`; empty where there is none.

    Raises:
        InputError: a file is damaged, or a value is of another type.
    """
    mend = "remove it to ask again"
    sentences, others = workdir / run_folder.SENTENCES, workdir / run_folder.IRRELEVANT
    return (
        read_typed(SentencesRecord, sentences, mend=mend) if sentences.is_file() else {},
        read_typed(IrrelevantRecord, others, mend=mend) if others.is_file() else {},
    )


def _check_sides(
    path: Path, cells: Mapping[str, Mapping[str, Any]], sides: Collection[str]
) -> None:
    for cell, values in cells.items():
        if lost := [side for side in sides if side not in values]:
            raise InputError(
                f"{path}: {shortened(ascii(cell))} lacks {lost[0]}; run the command that wrote the "
                "file again"
            )
