"""The tokenizers of a pipeline's folder, as transformers of any version saves them; ids of prompts.

All modules take transformers from here, which is imported once a tokenizer is asked for. On import
it advises to install PyTorch; tokenizers do without it, so here it does not.
Axis letters: B prompts, K and T tokens for CLIP and T5.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from flux_jax.errors import InputError
from flux_jax.models.clip import CLIPTextConfig
from flux_jax.models.t5 import T5Config

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerBase, T5Tokenizer

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


def __getattr__(name: str) -> Any:
    if name not in ("CLIPTokenizer", "PreTrainedTokenizerBase", "T5Tokenizer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _without_advice():
        import transformers

        return getattr(transformers, name)


__all__ = ["CLIPTokenizer", "PreTrainedTokenizerBase", "T5Tokenizer", "read_tokenizer"]


@dataclass(frozen=True)
class Kind:
    """What is known of a tokenizer before it is read.

    Attributes:
        reader: name of transformers' class.
        files: sets of files, of which one must be there: else transformers makes a vocabulary of
            the special tokens alone.
        tokens: length of the encoder's input where the folder does not say.
    """

    reader: str
    files: tuple[tuple[str, ...], ...]
    tokens: int


KINDS = {
    "tokenizer": Kind("CLIPTokenizer", (("tokenizer.json",), ("vocab.json", "merges.txt")), 77),
    "tokenizer_2": Kind("T5Tokenizer", (("tokenizer.json",), ("spiece.model",)), 512),
}
# Longer than any input: transformers' number for "not said" is 1e30.
UNSAID = 1 << 20


def read_tokenizer(
    root: Path, name: str, encoder: CLIPTextConfig | T5Config
) -> "PreTrainedTokenizerBase":
    """Reads a tokenizer.

    Args:
        root: the pipeline's folder.
        name: a key of `KINDS`.
        encoder: of the ids.

    Returns:
        The tokenizer, whose `model_max_length` is the length of the encoder's input.

    Raises:
        InputError: it is missing, damaged, or has more tokens than the encoder.
    """
    kind, folder = KINDS[name], root / name
    wanted = " or ".join(" with ".join(files) for files in kind.files)
    if not any(all((folder / file).is_file() for file in files) for files in kind.files):
        where = "no vocabulary in it" if folder.is_dir() else "no such folder"
        raise InputError(
            f"{folder}: {where}; it must hold {wanted}: copy {name} of FLUX.1 [dev] there"
        )
    reader = __getattr__(kind.reader)
    try:
        # A folder by now: the hub is not asked for what has its name.
        read = reader.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # The library that parses the files names no class of its own.
        said = " ".join(str(error).split())[:120]
        raise InputError(
            f"{folder}: damaged ({type(error).__name__}: {said}); copy or download {wanted} again"
        ) from error
    if read.vocab_size > encoder.vocab_size:
        raise InputError(
            f"{folder}: {read.vocab_size} tokens, more than the text encoder's vocab_size = "
            f"{encoder.vocab_size}; take the tokenizer of the same model"
        )
    said = read.model_max_length
    most = encoder.max_position_embeddings if isinstance(encoder, CLIPTextConfig) else UNSAID
    read.model_max_length = min(said if 0 < said < UNSAID else kind.tokens, most)
    return read


def clip_ids(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]
) -> Int[np.ndarray, "B K"]:
    """Token ids for CLIP, padded to `model_max_length` and cut there, as FLUX does."""
    encoded = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
    )
    return np.array(encoded.input_ids, np.int32)


def t5_ids(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> Int[np.ndarray, "B T"]:
    """Token ids for T5, padded to `model_max_length`.

    Raises:
        InputError: a prompt has more tokens.
    """
    limit = tokenizer.model_max_length
    rows = tokenizer(list(prompts)).input_ids
    for prompt, ids in zip(prompts, rows, strict=True):
        if len(ids) > limit:
            raise InputError(
                f"prompt = {prompt!r} has {len(ids)} tokens, over the limit of {limit}: shorten it"
            )
    return np.array([ids + [tokenizer.pad_token_id] * (limit - len(ids)) for ids in rows], np.int32)
