"""Reads a pipeline's tokenizers, as any version of transformers saves them; computes token ids.

All modules import transformers through this one, which imports it on first use. On import,
transformers advises to install PyTorch; tokenizers do not need it, so the advice is silenced.
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

# Silences advice, but neither warnings nor errors.
NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
# Users who set this have chosen what transformers prints.
VERBOSITY = "TRANSFORMERS_VERBOSITY"


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silences transformers' advice, unless the user has set a verbosity."""
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
    """What is known about a tokenizer before it is read.

    Attributes:
        reader: name of transformers' class.
        files: sets of files, one of which must exist: otherwise transformers creates a vocabulary
            of the special tokens only.
        tokens: length of the encoder's input if the folder does not specify it.
    """

    reader: str
    files: tuple[tuple[str, ...], ...]
    tokens: int


KINDS = {
    "tokenizer": Kind("CLIPTokenizer", (("tokenizer.json",), ("vocab.json", "merges.txt")), 77),
    "tokenizer_2": Kind("T5Tokenizer", (("tokenizer.json",), ("spiece.model",)), 512),
}
# Longer than any input: transformers sets an unspecified length to 1e30.
UNSAID = 1 << 20


def read_tokenizer(
    root: Path, name: str, encoder: CLIPTextConfig | T5Config
) -> "PreTrainedTokenizerBase":
    """Reads a tokenizer.

    Args:
        root: the pipeline's folder.
        name: a key of `KINDS`.
        encoder: configuration of the encoder of the ids.

    Returns:
        The tokenizer, whose `model_max_length` is the length of the encoder's input.

    Raises:
        InputError: it is missing or damaged, or has more tokens than the encoder.
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
        # The folder exists here, so the hub is not asked for a repository of that name.
        read = reader.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # The library that parses the files documents no exception class.
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
    """Token ids for CLIP, padded and truncated to `model_max_length`, as in FLUX."""
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
