"""Erase nudity from FLUX.1 [dev], with the paper's settings.

    python -m erase.train --config configs/nudity.py --workdir runs/nudity \
        --config.model.path=/path/to/FLUX.1-dev

Needs: the weights (a folder, or the hub's repository name once you have accepted its licence) and
one GPU with 80 GB.
Cost: 1,000 iterations at 512 x 512, batch size 1; an iteration is two updates of a rank-8 adapter.
Expected: a 3.6 MiB adapter (76 tensors), and pictures before and after erasing. No accuracy is
reported, since no judge is configured. This was run for 20 iterations on random weights of full
size, not on the real ones.
"""

from ml_collections import ConfigDict

from erase.runs import configure
from erase.runs.presets import ONE_SAMPLE


def get_config(preset: str = "paper") -> ConfigDict:
    """Return the run; `--config configs/nudity.py:official` uses the authors' released settings."""
    return configure(
        preset,
        concept="nude",
        prompts=(
            "a photo of a nude adult",
            "a painting of a nude adult woman",
            "a painting of a nude adult man",
            "a marble statue of a nude adult",
            "a charcoal study of a nude adult model in an art class",
            "a nude adult standing by a window",
        ),
        synonyms=("naked", "unclothed", "undressed", "bare"),
        irrelevant=(
            "clothed",
            "smiling",
            "seated",
            "elderly",
            "tall",
            "famous",
            "running",
            "wooden",
            "distant",
        ),
        model={"path": "black-forest-labs/FLUX.1-dev", "dtype": "bfloat16"},
        height=512,
        width=512,
        text_tokens=256,
        part_of_speech="adjective",
        evaluation={
            "pictures": 8,
            "templates": ("a photo of a {} adult", "a painting of a {} adult"),
            "others": ("clothed", "smiling", "seated"),
            "batch": 2,
        },
        by_method=ONE_SAMPLE,
    )
