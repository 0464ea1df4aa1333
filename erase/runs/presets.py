"""Presets: the settings of each method as published by its authors.

`paper` has the values of EraseAnything's paper and, where it gives none (the weights of the losses,
the batch), those of its released code. `official` has the values of that code as far as they make
sense: its sampler, which moves 0.028 of the distance from noise to picture, and its teacher, which
is the student, do not. One of our iterations corresponds to two optimiser steps of that code.

Other methods have their authors' values in both `paper` and `native`. In `paper` they train the
queries and keys of the text in dual-stream blocks, as in the paper; in `native` they train the
layers that their authors train, or FLUX's nearest equivalent. All train adapters, whereas most
authors train the layers directly.

A value of a method may be set in several places. Later ones take precedence:

1. the defaults of `erase.methods.settings` and of `erase.config.schema`;
2. the model's file (`erase.json`), or `paper` for a FLUX.1 (see `defaults`); if the configuration
   names a preset, only the words for the concept;
3. the preset that the configuration file names;
4. the file's fields, then those of its `by_method` for the chosen method;
5. the command line.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from erase.methods.settings.erase_anything import Lower, Upper
from flux_jax.settings import TEXT_QUERY_KEY

_SAMPLING: Mapping[str, Any] = {
    "steps": 28,
    "batch_size": 1,
    "alternation": "bilevel",
    "evaluation": {"strength": 1.0},
}

# Projections to the text's keys and values in dual-stream blocks, like cross-attention's K and V.
TEXT_KEY_VALUE = ("dual_blocks/attn/add_k_proj", "dual_blocks/attn/add_v_proj")
ATTENTION = (
    *(f"dual_blocks/attn/add_{name}_proj" for name in "qkv"),
    *(f"dual_blocks/attn/to_{name}" for name in ("q", "k", "v", "out", "add_out")),
    *(f"single_blocks/attn/to_{name}" for name in "qkv"),
)
# Queries and keys of both streams in dual-stream blocks.
QUERY_KEY = tuple(
    f"dual_blocks/attn/{name}" for name in ("add_q_proj", "add_k_proj", "to_q", "to_k")
)
# The authors' values that differ from the defaults in `erase.methods.settings`, and the layers that
# they train. `stand_in` and `guide` are always set, since a model's words would replace them.
AUTHORS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "concept_ablation": ({"iterations": 100, "batch_size": 8}, TEXT_KEY_VALUE),
    "esd": ({"iterations": 1400, "esd": {"stand_in": None, "guidance": 1.0}}, ATTENTION),
    "uce": (
        {"uce": {"synonyms": False, "guide": ""}},
        ("context_embedder", "pooled_embedder/linear_1"),
    ),
    "mace": ({"iterations": 50, "adapter": {"rank": 1, "alpha": 1.0}}, TEXT_KEY_VALUE),
    "eap": (
        {"iterations": 1000, "eap": {"stand_in": None}},
        tuple(f"dual_blocks/attn/add_{name}_proj" for name in "qkv"),
    ),
    "meta_unlearning": (
        {
            "iterations": 1500,
            "batch_size": 10,
            "guidance": 3.0,
            "meta_unlearning": {"weight_decay": 1e-4, "clip": 1.0, "eta": 3.0, "inner_rate": 1e-5},
        },
        ATTENTION,
    ),
    # 250 points of trajectories in all, six in each update.
    "gem": ({"iterations": 42, "guidance": 3.0}, QUERY_KEY),
    "eraseflow": (
        {
            "iterations": 40,
            "steps": 40,
            "guidance": 4.5,
            "adapter": {"rank": 32, "alpha": 64.0},
        },
        ATTENTION,
    ),
}
# Larger batches exceed a GPU's memory with FLUX.1, without remat: their 8 and 10 samples, and the
# points of a trajectory, of which there are as many in all as in the authors' updates.
ONE_SAMPLE: Mapping[str, Mapping[str, Any]] = {
    **{name: {"batch_size": 1} for name in ("concept_ablation", "meta_unlearning")},
    "gem": {"iterations": 250, "gem": {"points": 1}},
    "eraseflow": {"iterations": 1600, "eraseflow": {"points": 1}},
}


def _by_method(*, native: bool) -> dict[str, dict[str, Any]]:
    """Values of each method in `AUTHORS`, with its authors' layers (`native`) or the paper's."""
    return {
        name: {
            # Only EraseAnything shuffles words.
            "bank": {"shuffled": 0.0},
            **values,
            "adapter": {
                **values.get("adapter", {}),
                "targets": targets if native else TEXT_QUERY_KEY,
            },
        }
        for name, (values, targets) in AUTHORS.items()
    }


def _values(level: Lower | Upper) -> dict[str, Any]:
    """All values of a level, except the folder of pictures, which presets do not set."""
    return {name: value for name, value in asdict(level).items() if name != "folder"}


_OURS: Mapping[str, Mapping[str, Any]] = {
    # The defaults of `erase.methods.settings` are the paper's.
    "paper": {
        **_SAMPLING,
        "guidance": 3.5,
        "iterations": 1000,
        "bank": {"shuffled": 1.0},
        "adapter": {"rank": 8, "alpha": 8.0},
        "lower": _values(Lower()),
        "upper": _values(Upper()),
    },
    "official": {
        **_SAMPLING,
        "guidance": 3.0,
        "iterations": 100,
        "bank": {"shuffled": 0.0},
        "adapter": {"rank": 8, "alpha": 8.0},
        "lower": _values(
            Lower(weight_decay=1e-5, attn=1e-3, trajectories="student", attn_form="released")
        ),
        "upper": _values(
            Upper(
                learning_rate=1e-3,
                weight_decay=1e-5,
                rsc_form="released",
                blocks="last",
                early=1.0,
            )
        ),
    },
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {**_OURS["paper"], "by_method": _by_method(native=False)},
    "native": {**_OURS["paper"], "by_method": _by_method(native=True)},
    "official": _OURS["official"],
}
