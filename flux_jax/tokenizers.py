"""The tokenizers of transformers; all modules take them from here.

On import, transformers advises to install PyTorch. Tokenizers do without it, so here it does not.
"""

import contextlib
import os
from collections.abc import Iterator

# Silences advice, but no warnings and no errors.
NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
# Who sets this wants to be told what transformers has to say.
VERBOSITY = "TRANSFORMERS_VERBOSITY"


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silences transformers' advice meanwhile, unless the user has said what it is to tell."""
    if NO_ADVICE in os.environ or VERBOSITY in os.environ:
        yield
        return
    os.environ[NO_ADVICE] = "1"
    try:
        yield
    finally:
        del os.environ[NO_ADVICE]


with _without_advice():
    from transformers import CLIPTokenizer, PreTrainedTokenizerBase, T5Tokenizer

__all__ = ["CLIPTokenizer", "PreTrainedTokenizerBase", "T5Tokenizer"]
