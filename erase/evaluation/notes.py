"""Notes on evaluations with missing counts."""

from collections.abc import Callable

from erase.runtime.results import ComparedRow, EvaluationResult, Result, Sums


def left_out_note(result: Result | ComparedRow, shown: Callable[[str], str] = str) -> str:
    """Return a note on synonyms left out of Acc_g; empty if there are none.

    Args:
        result: result of an evaluation; those of earlier versions left none out.
        shown: formats a word.
    """
    words = [row for row in result.get("synonyms", ()) if row["left_out"]]
    if not words:
        return ""
    each = [f"“{shown(row['word'])}” ({row['before']} of {row['of']})" for row in words]
    more = f" and {len(each) - 3} more" if len(each) > 3 else ""
    return (
        f"Left out of Acc_g: {', '.join(each[:3])}{more}. The base model does not know such a word "
        "for the concept: the judge detects it in less than 20 % of the base model's pictures."
    )


def mean_note(result: EvaluationResult | Sums) -> str:
    """Return a note on an H without Acc_g; empty if H includes it or there is no H.

    Args:
        result: result of an evaluation, or sums over several.
    """
    if "H" not in result or "Acc_g" in result.get("cells", result):
        return ""
    return "H is the harmonic mean of 1 − Acc_e and Acc_ir alone: no synonym counts for Acc_g."
