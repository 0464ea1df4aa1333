"""Formatting of shares; all rounding goes through one module."""

import re

from helpers.tiny import ROOT

from erase.evaluation.percent import interval, number, percent, points
from erase.evaluation.statistics import wilson_interval

# A hundred times something within a formatted value, or Python's own percent format.
OWN = re.compile(r"f\"[^\"\n]*\{[^}\n]*(\b100 \*|\* 100\b)[^}\n]*:[^}\n]*\}|:\.\d?%\}")
# The card's lowest classes have so few pictures that whole percents are enough; shares of a chip's
# peak are not counts of pictures; styles of pages are not texts; a threshold of singular values is
# not a counted share.
ALLOWED = {
    "convert/inspect.py",
    "erase/evaluation/percent.py",
    "erase/methods/planning/flops.py",
    "recipes/emoji_flux/card.py",
    "benchmarks/speed/flux.py",
}


def test_shares_have_a_tenth_of_a_percent():
    assert [percent(value) for value in (0, 0.12345, 1)] == ["0.0 %", "12.3 %", "100.0 %"]
    counted = wilson_interval(60, 64)
    assert percent(counted) == percent(60 / 64) == "93.8 %"
    assert number(counted) == "93.8"
    assert interval(counted) == f"{number(counted['low'])} to {percent(counted['high'])}"
    assert interval(counted) == "85.0 to 97.5 %"


def test_points_have_a_sign():
    assert [points(value) for value in (0.0154, -0.2, 0, -0.0001)] == [
        "+1.5",
        "-20.0",
        "+0.0",
        "+0.0",
    ]


def test_nobody_rounds_shares_on_their_own():
    folders = ("erase", "benchmarks", "recipes", "flux_jax", "convert")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if OWN.search(path.read_text())}
    assert found == ALLOWED
