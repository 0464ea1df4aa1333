"""The tokens that a search may use, and texts that spell the concept.

Axis letter: V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from flux_jax.errors import InputError

if TYPE_CHECKING:
    from flux_jax.models.tokenizers import PreTrainedTokenizerBase

# Shorter words and pieces are in too many others.
SHORTEST = 3
# Of the words that a concept of several words consists of.
SHORTEST_PART = 4
MARK = "▁"


def allowed_tokens(
    tokenizer: "PreTrainedTokenizerBase", size: int, words: Sequence[str]
) -> Bool[np.ndarray, "V"]:
    """Mark the tokens that a search may use: those with a letter or digit, except some words.

    Args:
        tokenizer: T5's tokenizer.
        size: V, of the encoder; the tokenizer may have fewer.
        words: words whose pieces are not allowed, nor tokens that contain them.

    Raises:
        InputError: no token is left.
    """
    barred, pieces = _parts(words), set()
    for word in barred:
        for text in {word, word.lower(), word.capitalize()}:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            pieces |= {_letters(each) for each in tokenizer.convert_ids_to_tokens(ids)}
    count = min(size, len(tokenizer))
    allowed = np.zeros(size, bool)
    for index, piece in enumerate(tokenizer.convert_ids_to_tokens(list(range(count)))):
        text = _letters(piece)
        own = len(text) >= SHORTEST and (text in pieces or spells(text, words))
        allowed[index] = bool(text) and not own
    allowed[[each for each in tokenizer.all_special_ids if each < size]] = False
    if not allowed.any():
        raise InputError(
            "own_words = False: the tokenizer has no token that is not part of the concept's "
            "words; give --own_words"
        )
    return allowed


def spells(text: str, words: Sequence[str]) -> bool:
    """Whether a text has one of some words, or a long part of one, also over spaces."""
    letters = _letters(text)
    return any(_letters(word) in letters for word in _parts(words) if _letters(word))


def _parts(words: Sequence[str]) -> list[str]:
    """The words, and the long ones among those that they consist of."""
    inner = [part for word in words for part in word.split() if len(part) >= SHORTEST_PART]
    return list(dict.fromkeys([*words, *inner]))


def _letters(text: str) -> str:
    """A text's letters and digits in lower case."""
    return "".join(each for each in text.casefold() if each.isalnum())
