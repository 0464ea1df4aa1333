"""Which tokens of a prompt name a concept, found by the concept's own token sequences.

Axis letters: B prompts, T text tokens.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from convert.errors import InputError
from flux_jax.tokenizers import PreTrainedTokenizerBase

# Sentencepiece writes a space before a word like this.
SPACE = "▁"
# Put before a word they show how it is cut where no space precedes it.
ANCHORS = ("(", "-")


def concept_masks(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], words: str | Sequence[str]
) -> Float[np.ndarray, "B T"]:
    """What `marks` finds, where every prompt has to hold its concept.

    Raises:
        InputError: what `marks` raises, or a concept is not in its prompt.
    """
    masks = marks(tokenizer, prompts, words)
    words = [words] * len(prompts) if isinstance(words, str) else words
    for row, prompt, word in zip(masks, prompts, words, strict=True):
        if not row.any():
            pieces = tokenizer.convert_ids_to_tokens(list(_ids(tokenizer, prompt)))
            raise InputError(
                f"prompt = {prompt!r} does not hold the concept {word!r} "
                f"(its tokens are {' '.join(pieces)}); name the concept there as it is written"
            )
    return masks


def marks(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], words: str | Sequence[str]
) -> Float[np.ndarray, "B T"]:
    """Marks the tokens of a concept in every prompt.

    A token is marked where one of the concept's token sequences stands in the tokenised prompt:
    in any case, with the space before it or (after a bracket, a hyphen, ...) without, at every
    occurrence. Sequences start where a word starts; what follows may go on with the word, so that
    endings ("soccer" in "soccerrrs") do not hide it.

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
        ids = _ids(tokenizer, prompt)
        # One more is needed for the end-of-text token.
        if len(ids) >= limit:
            raise InputError(
                f"prompt = {prompt!r} has {len(ids) + 1} tokens, over the limit of {limit}: "
                "shorten it"
            )
        pieces = tokenizer.convert_ids_to_tokens(list(ids))
        for sequence in token_sequences(tokenizer, word, prompt):
            for start in range(len(ids) - len(sequence) + 1):
                stop = start + len(sequence)
                if ids[start:stop] == sequence and _word_starts(pieces, start):
                    row[start:stop] = 1
    return masks


def token_sequences(
    tokenizer: PreTrainedTokenizerBase, word: str, prompt: str = ""
) -> set[tuple[int, ...]]:
    """The ways in which a tokenizer may cut a concept.

    Args:
        tokenizer: T5's.
        word: the concept, of one word or several.
        prompt: the spellings that occur here count too ("SOCCER Ball").

    Raises:
        InputError: the concept is empty or has characters that the vocabulary lacks.
    """
    word = " ".join(word.split())
    if not word:
        raise InputError("concept = '' is empty: name what is to be erased")
    spellings = {word, word.lower(), word.upper(), word.capitalize(), word.title()}
    spellings |= set(re.findall(re.escape(word), prompt, flags=re.IGNORECASE))
    sequences = set()
    for spelling in spellings:
        sequences.add(_ids(tokenizer, spelling))
        for anchor in ANCHORS:
            before, both = _ids(tokenizer, anchor), _ids(tokenizer, anchor + spelling)
            if both[: len(before)] == before:
                sequences.add(both[len(before) :])
    known = {s for s in sequences if s and tokenizer.unk_token_id not in s}
    if not known:
        raise InputError(
            f"concept = {word!r} has characters that the tokenizer's vocabulary lacks; "
            "write it in letters that it knows"
        )
    return known


@functools.lru_cache(maxsize=10_000)
def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _word_starts(pieces: Sequence[str], index: int) -> bool:
    """Whether no letter or digit precedes the piece without a space."""
    return index == 0 or pieces[index].startswith(SPACE) or not pieces[index - 1][-1].isalnum()
