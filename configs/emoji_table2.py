"""Erase "car" from the shipped small FLUX by one of the methods of the paper's Table 2.

    python -m erase.train --config configs/emoji_table2.py --workdir runs/emoji_table2

Each method has its learning rate as tuned on the small model (RESULTS.md), and every adapter is
used at full strength. `--config.method=NAME` chooses another method; `make table2` trains all of
them and draws the table.
Cost: a minute or two on 2 CPU cores; no pictures are drawn.
Expected: an adapter; `make table2` has the figures.
"""

from ml_collections import ConfigDict

from configs import PATH
from configs.suite import CONCEPTS, SETTINGS
from erase.methods import METHODS
from erase.runs import configure, merge_fields

CONCEPT = "car"


def get_config(preset: str = "") -> ConfigDict:
    """Return the run; `--config configs/emoji_table2.py:paper` uses a preset's values instead."""
    own = {part: values for part, values in SETTINGS[CONCEPT].items() if part in METHODS}
    words = merge_fields(CONCEPTS[CONCEPT], own)
    run = merge_fields(words, {"evaluation": {"strength": 1.0, "pictures": 0}})
    return configure(preset, model={"path": PATH}, **run)
