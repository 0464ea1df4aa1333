"""Every value of the method as others have set it.

`paper` has what EraseAnything's text says; where it is silent (the weights of the losses, the
batch), what its released code sets. `official` has what that code does, as far as it makes sense:
its sampler, which moves 0.028 of the way from noise to picture, and its teacher, which is the
student, do not. There two optimiser steps make an iteration of ours.
"""

from collections.abc import Mapping
from typing import Any

_SAMPLING: Mapping[str, Any] = {
    "steps": 28,
    "batch_size": 1,
    "alternation": "bilevel",
    "evaluation": {"strength": 1.0},
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        **_SAMPLING,
        "guidance": 3.5,
        "iterations": 1000,
        "bank": {"shuffled": 1.0},
        "adapter": {"rank": 8, "alpha": 8.0},
        "lower": {
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "clip": None,
            "esd": 1.0,
            "attn": 1.0,
            "eta": 1.0,
            "erase_to": "",
            "stand_in": None,
            "trajectories": "teacher",
            "attn_form": "normalised",
        },
        "upper": {
            "learning_rate": 5e-4,
            "weight_decay": 0.01,
            "clip": None,
            "lora": 0.1,
            "rsc": 0.1,
            "lora_target": "noise",
            "pictures": 8,
            "prompts": (),
            "without_concept": False,
            "rsc_form": "infonce",
            "blocks": "all",
            "temperature": 0.07,
            "negatives": 3,
            "early": 0.25,
        },
    },
    "official": {
        **_SAMPLING,
        "guidance": 3.0,
        "iterations": 100,
        "bank": {"shuffled": 0.0},
        "adapter": {"rank": 8, "alpha": 8.0},
        "lower": {
            "learning_rate": 1e-3,
            "weight_decay": 1e-5,
            "clip": None,
            "esd": 1.0,
            "attn": 1e-3,
            "eta": 1.0,
            "erase_to": "",
            "stand_in": None,
            "trajectories": "student",
            "attn_form": "released",
        },
        "upper": {
            "learning_rate": 1e-3,
            "weight_decay": 1e-5,
            "clip": None,
            "lora": 0.1,
            "rsc": 0.1,
            "lora_target": "noise",
            "pictures": 8,
            "prompts": (),
            "without_concept": False,
            "rsc_form": "released",
            "blocks": "last",
            "temperature": 0.07,
            "negatives": 3,
            "early": 1.0,
        },
    },
}
