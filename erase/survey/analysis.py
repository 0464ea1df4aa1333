"""What the ratings say: means, agreement of raters, differences of methods.

Axis letters: R raters, U rated units (items by one question), P pairs of ratings.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats
from typing_extensions import TypedDict

from erase.survey.answers import Joined, Rating
from erase.survey.questions import QUESTIONS
from flux_jax.errors import InputError

# Draws of the bootstrap.
DRAWS = 9999


class Mean(TypedDict):
    """Mean rating of a method by a question; the interval is over raters, None for a single one."""

    mean: float
    low: float | None
    high: float | None
    ratings: int


class Difference(TypedDict):
    """Wilcoxon's signed-rank test of two methods by one question.

    Attributes:
        question: key of the question.
        methods: both methods.
        difference: mean of the first minus the second, over raters and prompts.
        pairs: number of ratings of both by one rater on one prompt.
        p: two-sided; `corrected` is for all tests of the study (Benjamini and Hochberg).
        corrected: see `p`.
    """

    question: str
    methods: tuple[str, str]
    difference: float
    pairs: int
    p: float
    corrected: float


class Result(TypedDict):
    """The analysis of a study, as it is written to JSON."""

    study: str
    methods: list[str]
    raters: int
    complete: dict[int, float]
    left_out: dict[str, str]
    means: dict[str, dict[str, Mean]]
    alpha: dict[str, float | None]
    differences: list[Difference]


def analyse(joined: Joined, study: str, methods: Sequence[str]) -> Result:
    """Analyse the ratings of a study.

    Args:
        joined: the ratings.
        study: digest of the study.
        methods: in the order in which they are shown.

    Raises:
        InputError: the package `krippendorff` is missing.
    """
    asked = [key for key in QUESTIONS if any(each.question == key for each in joined.ratings)]
    by_question = {key: [each for each in joined.ratings if each.question == key] for key in asked}
    return {
        "study": study,
        "methods": [*methods],
        "raters": len(joined.complete),
        "complete": joined.complete,
        "left_out": joined.left_out,
        "means": {key: _means(ratings, methods) for key, ratings in by_question.items()},
        "alpha": {key: agreement(ratings) for key, ratings in by_question.items()},
        "differences": _differences(by_question, methods),
    }


def _means(ratings: Sequence[Rating], methods: Sequence[str]) -> dict[str, Mean]:
    means: dict[str, Mean] = {}
    for method in methods:
        by_rater: dict[int, list[int]] = defaultdict(list)
        for each in ratings:
            if each.method == method:
                by_rater[each.rater].append(each.value)
        if not by_rater:
            continue
        low, high = interval([np.mean(values) for values in by_rater.values()])
        every = list(itertools.chain.from_iterable(by_rater.values()))
        mean = float(np.mean([np.mean(values) for values in by_rater.values()]))
        means[method] = {"mean": mean, "low": low, "high": high, "ratings": len(every)}
    return means


def interval(values: Sequence[np.floating]) -> tuple[float | None, float | None]:
    """Bootstrapped 95 % interval of the mean over raters, by percentiles; None for one rater."""
    if len(values) < 2:
        return None, None
    data = np.asarray(values, float)
    if np.ptp(data) == 0:
        return float(data[0]), float(data[0])
    found = stats.bootstrap(
        (data,), np.mean, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def agreement(ratings: Sequence[Rating]) -> float | None:
    """Krippendorff's alpha, ordinal; None where raters rated nothing in common, or all alike.

    Raises:
        InputError: its package is missing.
    """
    try:
        import krippendorff
    except ModuleNotFoundError:
        raise InputError(
            "study needs krippendorff: pip install 'erase-anything-jax[study]'"
        ) from None
    raters = sorted({each.rater for each in ratings})
    units = sorted({(each.prompt, each.method) for each in ratings})
    table: Float[np.ndarray, "R U"] = np.full((len(raters), len(units)), np.nan)
    for each in ratings:
        table[raters.index(each.rater), units.index((each.prompt, each.method))] = each.value
    paired = table[:, (~np.isnan(table)).sum(0) > 1]
    if len(np.unique(paired[~np.isnan(paired)])) < 2:
        return None
    return float(krippendorff.alpha(paired, level_of_measurement="ordinal"))


def _differences(
    by_question: Mapping[str, Sequence[Rating]], methods: Sequence[str]
) -> list[Difference]:
    """Test each pair of methods by each question."""
    tests: list[Difference] = []
    for question, ratings in by_question.items():
        values = _by_prompt(ratings)
        for first, second in itertools.combinations(methods, 2):
            common = sorted(values[first].keys() & values[second].keys())
            if not common:
                continue
            pairs = [(values[first][place], values[second][place]) for place in common]
            gaps = np.array([a - b for a, b in pairs], float)
            test: Any = stats.wilcoxon(gaps) if gaps.any() else None
            p = 1.0 if test is None else float(test.pvalue)
            tests.append(
                {
                    "question": question,
                    "methods": (first, second),
                    "difference": float(gaps.mean()),
                    "pairs": len(gaps),
                    "p": p,
                    "corrected": p,
                }
            )
    if tests:
        corrected = stats.false_discovery_control([test["p"] for test in tests])
        tests = [{**test, "corrected": float(c)} for test, c in zip(tests, corrected, strict=True)]
    return tests


def _by_prompt(ratings: Sequence[Rating]) -> Mapping[str, Mapping[tuple[int, int], int]]:
    """Ratings of each method by rater and prompt."""
    values: dict[str, dict[tuple[int, int], int]] = defaultdict(dict)
    for each in ratings:
        values[each.method][each.rater, each.prompt] = each.value
    return values
