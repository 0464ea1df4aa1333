"""Find the tokens of a concept in a prompt: those that contain its characters.

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
    """Mark the tokens of a concept, as `marks` does, in prompts that must all contain it.

    Raises:
        InputError: as for `marks`, or a prompt does not contain its concept.
    """
    masks = marks(tokenizer, prompts, words)
    words = [words] * len(prompts) if isinstance(words, str) else words
    for row, prompt, word in zip(masks, prompts, words, strict=True):
        if not row.any():
            raise InputError(
                f"prompt = {shown(prompt)} does not hold the concept {shown(word)}; add the "
                "concept as a separate word"
            )
    return masks


def marks(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], words: str | Sequence[str]
) -> Float[np.ndarray, "B T"]:
    """Mark the tokens of a concept in every prompt.

    The concept is searched in the prompt's text, in every form that `erase.data.words.spelling`
    lists. A token is marked if and only if it contains at least one of the concept's characters,
    even if it also contains neighbouring characters.

    Args:
        tokenizer: T5's tokenizer, with `model_max_length` tokens.
        prompts: the prompts.
        words: the concept, or one for each prompt.

    Returns:
        Ones and zeros; a row is all zeros if the prompt does not contain the concept.

    Raises:
        InputError: a concept is empty or not in the vocabulary, or a prompt is too long.
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
    """Start and stop of each token in the text, in characters."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return tuple(map(tuple, encoded.offset_mapping))


@functools.lru_cache(maxsize=10_000)
def _check_known(tokenizer: "PreTrainedTokenizerBase", word: str) -> None:
    """Check that the vocabulary has the characters of a concept.

    Raises:
        InputError: it lacks some of them.
    """
    spellings = (word, word.lower(), word.replace("’", "'"))
    if all(
        tokenizer.unk_token_id in tokenizer(each, add_special_tokens=False, verbose=False).input_ids
        for each in spellings
    ):
        raise InputError(
            f"concept = {shown(word)} has characters that the tokenizer's vocabulary lacks; "
            "write it in characters that it has"
        )
