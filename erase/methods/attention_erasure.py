"""Attention map erasure (the paper's section 3): zeros the concept's columns of the attention.

Nothing is trained: during sampling, no token attends to the concept's tokens in a prompt
(`silenced` in `flux_jax.models.transformer`). So there are no weights to export.
"""

from erase.config.schema import Config
from erase.data.plan import Needs
from erase.data.words.irrelevant import Words
from erase.methods.base import Method
from erase.methods.settings.attention_erasure import FIELDS
from flux_jax.pipeline import Pipeline


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request nothing besides the concept's sentences."""
    del config, words, pipe
    return Needs()


METHOD = Method(
    title="Attention map erasure",
    fields=FIELDS,
    needs=needs,
    steps=lambda config: {},
    compiled=lambda config: None,
    weights=lambda config: {},
    exports=None,
)
