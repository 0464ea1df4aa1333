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

from flux_jax.errors import InputError, shortened
from flux_jax.models.clip.text import CLIPTextConfig
from flux_jax.models.t5 import T5Config
from flux_jax.system.files import read_bytes
from flux_jax.system.json_files import parse_json

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
    if name not in ("CLIPTokenizer", "PreTrainedTokenizerBase", "Qwen2Tokenizer", "T5Tokenizer"):
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
# FLUX.2's; transformers has one class for Qwen2 and Qwen3.
CHAT = Kind("Qwen2Tokenizer", (("tokenizer.json",), ("vocab.json", "merges.txt")), 512)
# Longer than any input: transformers sets an unspecified length to 1e30.
UNSAID = 1 << 20
# Limit on each of its files, several times those of FLUX.1.
MOST_BYTES = 64 << 20
# Class of Rust's panics, which no module exports.
PANIC = "PanicException"
CONFIG = "tokenizer_config.json"
# Limits on numbers in it, and on the tokens that T5's adds to its vocabulary: it adds 100.
MOST_NUMBER, MOST_ADDED = 1 << 20, 1 << 13
# The prompt that a tokenizer is tried with.
TRIED = "a photo of a cat"


def read_tokenizer(
    root: Path, name: str, encoder: CLIPTextConfig | T5Config, *, alone: bool = False
) -> "PreTrainedTokenizerBase":
    """Reads a tokenizer.

    Args:
        root: the pipeline's folder.
        name: a key of `KINDS`.
        encoder: configuration of the encoder of the ids.
        alone: whether `root` itself has the tokenizer's files, as the folder of a single model.

    Returns:
        The tokenizer, whose `model_max_length` is the length of the encoder's input.

    Raises:
        InputError: it is missing or damaged, or has more tokens than the encoder.
    """
    kind, folder = KINDS[name], root if alone else root / name
    wanted = " or ".join(" with ".join(files) for files in kind.files)
    if not any(all((folder / file).is_file() for file in files) for files in kind.files):
        where = "no vocabulary in it" if folder.is_dir() else "no such folder"
        raise InputError(
            f"{folder}: {where}; it must hold {wanted}: copy "
            f"{'them from the same model' if alone else f'{name} of FLUX.1 [dev]'} there"
        )
    read = _tried(folder, kind, encoder.vocab_size)
    if read.vocab_size > encoder.vocab_size:
        raise InputError(
            f"{folder}: {read.vocab_size} tokens, more than the text encoder's vocab_size = "
            f"{encoder.vocab_size}; take the tokenizer of the same model"
        )
    said = read.model_max_length
    most = encoder.max_position_embeddings if isinstance(encoder, CLIPTextConfig) else UNSAID
    read.model_max_length = min(said if 0 < said < UNSAID else kind.tokens, most)
    return read


def read_chat_tokenizer(root: Path, name: str, most: int) -> "PreTrainedTokenizerBase":
    """Reads FLUX.2's tokenizer, which has a chat template.

    Args:
        root: the pipeline's folder.
        name: the tokenizer's folder in it.
        most: the text encoder's number of tokens.

    Raises:
        InputError: it is missing or damaged, has no chat template, or more tokens than the encoder.
    """
    folder = root / name
    if not any(all((folder / file).is_file() for file in files) for files in CHAT.files):
        raise InputError(
            f"{folder}: no vocabulary; it must hold tokenizer.json or vocab.json with merges.txt: "
            f"copy {name} of FLUX.2 [klein] there"
        )
    read = _tried(folder, CHAT, most)
    if len(read) > most:
        raise InputError(
            f"{folder}: {len(read)} tokens, more than the text encoder's vocab_size = {most}; take "
            "the tokenizer of the same model"
        )
    if not read.chat_template:
        raise InputError(
            f"{folder}: no chat template, which FLUX.2's prompts stand in; copy {name} of FLUX.2 "
            "[klein] there"
        )
    return read


def _tried(folder: Path, kind: Kind, most: int) -> "PreTrainedTokenizerBase":
    """Reads a tokenizer, and computes the ids of a prompt, where some damages show first.

    Args:
        folder: its folder.
        kind: what it should be.
        most: the encoder's number of tokens.

    Raises:
        InputError: it is damaged; the message names the file.
    """
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            raise InputError(
                f"{file} has more than {MOST_BYTES:,} bytes, the limit for a tokenizer's file; "
                "copy or download it again"
            )
    reader = __getattr__(kind.reader)
    try:
        _check_numbers(folder / CONFIG)
        # The folder exists here, so the hub is not asked for a repository of that name.
        read = reader.from_pretrained(folder, local_files_only=True)
        ids = read([TRIED], padding="max_length", max_length=len(TRIED), truncation=True).input_ids
        over = [each for each in (*ids[0], read.pad_token_id) if not 0 <= each < most]
        if read.vocab_size <= most and over:
            raise ValueError(f"token id {over[0]}, and the text encoder has {most} tokens")
        if not isinstance(read.model_max_length, int | float):
            raise TypeError(f"model_max_length = {read.model_max_length!r:.40} is not a number")
    # The libraries that parse the files document no exception class, and panics of those in Rust
    # are no `Exception`.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        names, problem = _damage(folder, kind, error)
        raise InputError(
            f"{folder}: damaged ({problem}); copy or download {names} again"
        ) from error
    return read


def _check_numbers(path: Path) -> None:
    """Checks the numbers in a tokenizer's configuration; some of them are tokens to add.

    Raises:
        ValueError: one is too large.
    """
    config = parse_json(read_bytes(path)) if path.is_file() else {}
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} is not a JSON object")
    for name, value in config.items():
        most = MOST_ADDED if name == "extra_ids" else MOST_NUMBER
        if name != "model_max_length" and isinstance(value, int) and value > most:
            raise ValueError(f"{shortened(name)} = {value} is over the limit of {most:,}")


def _damage(folder: Path, kind: Kind, error: BaseException) -> tuple[str, str]:
    """The file of a tokenizer that is damaged, or those with its vocabulary; and the problem."""
    for file in sorted(folder.glob("*.json")):
        try:
            parse_json(read_bytes(file, most=MOST_BYTES))
        except (ValueError, OSError) as damage:
            return file.name, f"{file.name} is not JSON: {shortened(str(damage), 120)}"
    files = next(files for files in kind.files if all((folder / f).is_file() for f in files))
    said = " ".join(str(error).split())
    return " with ".join(files), f"{type(error).__name__}: {shortened(said, 120)}"


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


def t5_ids(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], cut: bool = False
) -> Int[np.ndarray, "B T"]:
    """Token ids for T5, padded to `model_max_length`.

    Args:
        tokenizer: T5's.
        prompts: the texts.
        cut: whether longer prompts lose their end, as in diffusers, instead of being refused.

    Raises:
        InputError: a prompt has more tokens.
    """
    limit = tokenizer.model_max_length
    settings = {"truncation": True, "max_length": limit} if cut else {}
    rows = tokenizer(list(prompts), **settings).input_ids
    for prompt, ids in zip(prompts, rows, strict=True):
        if len(ids) > limit:
            raise InputError(
                f"prompt = {prompt!r} has {len(ids)} tokens, over the limit of {limit}: shorten it"
            )
    return np.array([ids + [tokenizer.pad_token_id] * (limit - len(ids)) for ids in rows], np.int32)


def chat_ids(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], limit: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]]:
    """Token ids of prompts as a user's message without thinking, padded; and 0 where padded.

    Args:
        tokenizer: FLUX.2's.
        prompts: the texts.
        limit: T, the length that all are padded to.

    Raises:
        InputError: a prompt has more tokens with its template, whose end would be cut off.
    """
    rows = []
    for prompt in prompts:
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        rows.append(str(text))
    for prompt, ids in zip(prompts, tokenizer(rows).input_ids, strict=True):
        if len(ids) > limit:
            raise InputError(
                f"prompt = {prompt!r} has {len(ids)} tokens with its template, over the limit of "
                f"{limit}: shorten it"
            )
    encoded = tokenizer(rows, padding="max_length", max_length=limit)
    return np.array(encoded.input_ids, np.int32), np.array(encoded.attention_mask, np.int32)
