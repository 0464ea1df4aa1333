"""Settings of every method, one file per method.

These files do not import JAX, so errors in a configuration are reported before JAX is loaded. A
method that is not in `FIELDS` defines its settings in its own module.
"""

from collections.abc import Mapping

from erase.methods.settings import (
    attention_erasure,
    concept_ablation,
    eap,
    erase_anything,
    eraseflow,
    esd,
    gem,
    mace,
    meta_unlearning,
    uce,
)
from erase.methods.settings.base import MethodFields

FIELDS: Mapping[str, MethodFields] = {
    "erase_anything": erase_anything.FIELDS,
    "concept_ablation": concept_ablation.FIELDS,
    "esd": esd.FIELDS,
    "uce": uce.FIELDS,
    "mace": mace.FIELDS,
    "eap": eap.FIELDS,
    "meta_unlearning": meta_unlearning.FIELDS,
    "attention_erasure": attention_erasure.FIELDS,
    "gem": gem.FIELDS,
    "eraseflow": eraseflow.FIELDS,
}
