"""What to say of an evaluation that could not count everything."""

from erase.runtime.results import ComparedRow, EvaluationResult, Result, Sums


def left_out_note(result: Result | ComparedRow) -> str:
    """What to say of synonyms that are left out of Acc_g; nothing where there are none.

    Args:
        result: an evaluation's; those of earlier versions left none out.
    """
    words = [row for row in result.get("synonyms", ()) if row["left_out"]]
    if not words:
        return ""
    each = [f"“{row['word']}” ({row['before']} of {row['of']})" for row in words]
    more = f" and {len(each) - 3} more" if len(each) > 3 else ""
    return (
        f"Left out of Acc_g: {', '.join(each[:3])}{more}. The base does not know such a word for "
        "the concept: the judge finds it in under 20 % of the base's pictures."
    )


def mean_note(result: EvaluationResult | Sums) -> str:
    """What to say of an H that lacks Acc_g; nothing where it has it, or there is no H.

    Args:
        result: an evaluation's, or sums over several.
    """
    if "H" not in result or "Acc_g" in result.get("cells", result):
        return ""
    return "H is the mean of 1 − Acc_e and Acc_ir alone: no synonym could be counted for Acc_g."
