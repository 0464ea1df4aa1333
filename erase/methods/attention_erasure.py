"""Attention map erasure (the paper's section 3): the concept's columns of the attention are zeroed.

Nothing is trained: while pictures are drawn, the concept's tokens, where a prompt has them, give
nothing to any token (`silenced` in `flux_jax.transformer`). So there are no weights to export.
"""

from erase.bank import Needs
from erase.config import Config
from erase.irrelevant import Words
from erase.methods.method import Method
from flux_jax.pipeline import Pipeline


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Nothing."""
    del config, words, pipe
    return Needs()


METHOD = Method(
    title="Attention map erasure",
    settings=None,
    needs=needs,
    steps=lambda config: {},
    compiled=lambda config: None,
    weights=lambda config: {},
    exports=None,
)
