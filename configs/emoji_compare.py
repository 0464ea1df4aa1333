"""Thirty concepts for comparing methods on the shipped small FLUX.

    erase-anything compare --config configs/emoji_compare.py --out runs/comparison.json

    python -m erase.train --config configs/emoji_compare.py --workdir runs/emoji_compare

trains all of them with one method, chosen by `--config.method=NAME`.
Expected: comparison.json and a table of the methods. `--config configs/emoji_compare.py:paper` and
`:native` compare the authors' settings (see `erase.runs.presets`) on every third concept, since
these take up to 1,500 iterations at batch size 10.
Cost: hours on one GPU with three seeds and all methods; finished parts are not repeated.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import emoji
from configs.suite import CONCEPTS


def get_config(preset: str = "") -> ConfigDict:
    """Return one run per concept; every method's adapter is used at full strength."""
    names = tuple(CONCEPTS)
    given: Any = emoji(*(names[::3] if preset else names), preset=preset)
    for run in given.each.values():
        run.evaluation.strength = 1.0
    return given
