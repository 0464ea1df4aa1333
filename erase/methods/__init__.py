"""The methods of erasing, by the name that `--config.method` chooses them with."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from erase.config.schema import Config
from erase.methods import (
    attention_erasure,
    concept_ablation,
    eap,
    erase_anything,
    esd,
    mace,
    meta_unlearning,
    uce,
)
from erase.methods.base import Method

METHODS: Mapping[str, Method[Any]] = {
    "erase_anything": erase_anything.METHOD,
    "concept_ablation": concept_ablation.METHOD,
    "esd": esd.METHOD,
    "uce": uce.METHOD,
    "mace": mace.METHOD,
    "eap": eap.METHOD,
    "meta_unlearning": meta_unlearning.METHOD,
    "attention_erasure": attention_erasure.METHOD,
}
# The method that each field of a configuration is a setting of, beside those of all methods.
OWNERS: Mapping[str, str] = {
    field: name
    for name, method in METHODS.items()
    for field in (
        [spec.name for spec in fields(method.settings)]
        if method.settings and method.top_level
        else [name]
    )
}


def method_of(config: Config) -> Method[Any]:
    """The method of a run."""
    return METHODS[config.method]
