"""Every value of the methods as others have set it.

`paper` has what EraseAnything's text says; where it is silent (the weights of the losses, the
batch), what its released code sets. `official` has what that code does, as far as it makes sense:
its sampler, which moves 0.028 of the way from noise to picture, and its teacher, which is the
student, do not. There two optimiser steps make an iteration of ours.

Other methods have the values of their authors in both `paper` and `native`: in the first they train
the queries and keys of the text in dual-stream blocks, as the paper has it, in the second the
layers that their authors train, or FLUX's nearest to them. All train adapters, where most authors
train the layers themselves.
"""

from collections.abc import Mapping
from typing import Any

from flux_jax.targets import TEXT_QUERY_KEY

_SAMPLING: Mapping[str, Any] = {
    "steps": 28,
    "batch_size": 1,
    "alternation": "bilevel",
    "evaluation": {"strength": 1.0},
}

# Of dual-stream blocks, what the text's keys and values are made by: cross-attention's K and V.
TEXT_KEY_VALUE = ("dual_blocks/attn/add_k_proj", "dual_blocks/attn/add_v_proj")
ATTENTION = (
    *(f"dual_blocks/attn/add_{name}_proj" for name in "qkv"),
    *(f"dual_blocks/attn/to_{name}" for name in ("q", "k", "v", "out", "add_out")),
    *(f"single_blocks/attn/to_{name}" for name in "qkv"),
)
# What their authors set, and the layers that they train.
AUTHORS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "concept_ablation": (
        {
            "iterations": 100,
            "batch_size": 8,
            "concept_ablation": {
                "learning_rate": 1.6e-5,
                "weight_decay": 0.01,
                "clip": 1.0,
                "target": "model",
                "prior": 0.0,
            },
        },
        TEXT_KEY_VALUE,
    ),
    "esd": (
        {
            "iterations": 1400,
            "esd": {
                "learning_rate": 1e-4,
                "weight_decay": 0.0,
                "clip": None,
                "eta": 1.0,
                "stand_in": None,
                "erase_to": "",
                "trajectories": "student",
                "guidance": 1.0,
            },
        },
        ATTENTION,
    ),
    "uce": (
        {
            "uce": {
                "templates": ("{}",),
                "synonyms": False,
                "guide": "",
                "ridge": 0.5,
                "preserve": 1.0,
            }
        },
        ("context_embedder", "pooled_embedder/linear_1"),
    ),
    "mace": (
        {
            "iterations": 50,
            "adapter": {"rank": 1, "alpha": 1.0},
            "mace": {"learning_rate": 1e-5, "weight_decay": 0.0, "clip": None},
        },
        TEXT_KEY_VALUE,
    ),
    "eap": (
        {
            "iterations": 1000,
            "eap": {
                "learning_rate": 1e-5,
                "weight_decay": 0.0,
                "clip": None,
                "logits_rate": 1e-2,
                "temperature": 2.0,
                "preserve": 1.0,
                "most": 100,
                "eta": 1.0,
                "stand_in": None,
                "trajectories": "student",
                "guidance": None,
            },
        },
        tuple(f"dual_blocks/attn/add_{name}_proj" for name in "qkv"),
    ),
    "meta_unlearning": (
        {
            "iterations": 1500,
            "batch_size": 10,
            "guidance": 3.0,
            "meta_unlearning": {
                "learning_rate": 1e-5,
                "weight_decay": 1e-4,
                "clip": 1.0,
                "eta": 3.0,
                "keep": 0.1,
                "meta": 0.1,
                "inner_rate": 1e-5,
            },
        },
        ATTENTION,
    ),
}


def _by_method(*, native: bool) -> dict[str, dict[str, Any]]:
    """What each of them sets, with the layers of its authors or those of the paper."""
    return {
        name: {
            # Words are EraseAnything's to shuffle.
            "bank": {"shuffled": 0.0},
            **values,
            "adapter": {
                **values.get("adapter", {}),
                "targets": targets if native else TEXT_QUERY_KEY,
            },
        }
        for name, (values, targets) in AUTHORS.items()
    }


_OURS: Mapping[str, Mapping[str, Any]] = {
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
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {**_OURS["paper"], "by_method": _by_method(native=False)},
    "native": {**_OURS["paper"], "by_method": _by_method(native=True)},
    "official": _OURS["official"],
}
