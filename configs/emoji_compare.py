"""Thirty concepts for the comparison of methods on the shipped small FLUX.

    python -m erase compare --config configs/emoji_compare.py --out runs/comparison.json

    python -m erase.train --config configs/emoji_compare.py --workdir runs/emoji_compare

trains one of the methods on all of them, `--config.method=NAME`.
Expected: comparison.json and a table of the methods. `--config configs/emoji_compare.py:paper` and
`:native` compare their authors' values, see `erase.runs.presets`: up to 1,500 iterations of batch
10, so that they have every third concept.
Cost: hours on one GPU with three seeds and all methods; what is done is not done again.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import emoji
from configs.suite import CONCEPTS


def get_config(preset: str = "") -> ConfigDict:
    """The runs, one a concept; whatever makes an adapter, all of it is used."""
    names = tuple(CONCEPTS)
    given: Any = emoji(*(names[::3] if preset else names), preset=preset)
    for run in given.each.values():
        run.evaluation.strength = 1.0
    return given
