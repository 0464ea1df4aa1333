"""Which tokens of a prompt name a concept: those that hold its characters.

Axis letters: B prompts, T text tokens.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from erase.config.fields import shown
from erase.data.words.spelling import mentions
from flux_jax.errors import InputError

if TYPE_CHECKING:
    from flux_jax.models.tokenizers import PreTrainedTokenizerBase


def concept_masks(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], words: str | Sequence[str]
) -> Float[np.ndarray, "B T"]:
    """What `marks` finds, where every prompt has to hold its concept.

    Raises:
        InputError: what `marks` raises, or a concept is not in its prompt.
    """
    masks = marks(tokenizer, prompts, words)
    words = [words] * len(prompts) if isinstance(words, str) else words
    for row, prompt, word in zip(masks, prompts, words, strict=True):
        if not row.any():
            raise InputError(
                f"prompt = {shown(prompt)} does not hold the concept {shown(word)}; name the "
                "concept there as a word of its own"
            )
    return masks


def marks(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], words: str | Sequence[str]
) -> Float[np.ndarray, "B T"]:
    """Marks the tokens of a concept in every prompt.

    The concept is found in the prompt's text, in every form that `erase.data.words.spelling` lists.
    However the tokenizer cuts the text, each token is marked that has one of the concept's
    characters, a token that has its neighbours' too among them, and no other is.

    Args:
        tokenizer: T5's, with `model_max_length` tokens.
        prompts: texts.
        words: the concept, or one for each prompt.

    Returns:
        Ones and zeros; a row is all zeros where the prompt does not hold the concept.

    Raises:
        InputError: a concept is empty or is unknown to the vocabulary, or a prompt is too long.
    """
    words = [words] * len(prompts) if isinstance(words, str) else words
    limit = tokenizer.model_max_length
    masks = np.zeros((len(prompts), limit), np.float32)
    for row, prompt, word in zip(masks, prompts, words, strict=True):
        places = _places(tokenizer, prompt)
        # One more is needed for the end-of-text token.
        if len(places) >= limit:
            raise InputError(
                f"prompt = {shown(prompt)} has {len(places) + 1} tokens, over the limit of "
                f"{limit}: shorten it"
            )
        _check_known(tokenizer, word)
        for each in mentions(prompt, word):
            for index, (start, stop) in enumerate(places):
                if start < each.stop and stop > each.start:
                    row[index] = 1
    return masks


@functools.lru_cache(maxsize=10_000)
def _places(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[tuple[int, int], ...]:
    """The first character of each token, and the one after its last."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return tuple(map(tuple, encoded.offset_mapping))


@functools.lru_cache(maxsize=10_000)
def _check_known(tokenizer: "PreTrainedTokenizerBase", word: str) -> None:
    """Makes sure that the vocabulary tells a concept from others.

    Raises:
        InputError: it lacks some of its characters.
    """
    spellings = (word, word.lower(), word.replace("’", "'"))
    if all(
        tokenizer.unk_token_id in tokenizer(each, add_special_tokens=False, verbose=False).input_ids
        for each in spellings
    ):
        raise InputError(
            f"concept = {shown(word)} has characters that the tokenizer's vocabulary lacks; "
            "write it in letters that it knows"
        )
