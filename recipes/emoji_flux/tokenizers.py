"""Train the two tokenizers: sentencepiece for T5, byte-pair encoding for CLIP.

Both are trained on captions and include every printable ASCII character, so that no misspelling
is out of vocabulary.
"""

import io
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from flux_jax.models.tokenizers import CLIPTokenizer, T5Tokenizer
from recipes.emoji_flux import captions

CAPTIONS = 200_000
TOKENS = 32
# Small, so that rarer words are split into several pieces, as in T5.
T5_PIECES = 640
CLIP_MERGES = 512
START, END = "<|startoftext|>", "<|endoftext|>"


def build(out: Path, count: int = CAPTIONS, seed: int = 0) -> None:
    """Train both tokenizers and write `tokenizer/` (CLIP) and `tokenizer_2/` (T5) under `out`.

    Args:
        out: the pipeline's folder.
        count: number of training captions.
        seed: of the captions; the same seed gives the same files.
    """
    rng = np.random.default_rng(seed)
    texts = [captions.draw(rng).text for _ in range(count)]
    build_t5(texts, out / "tokenizer_2")
    build_clip(texts, out / "tokenizer")


def load(folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Load the tokenizers written by `build`."""
    # Local folders; the hub, which would need a revision, is not used.
    return (
        CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        T5Tokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True),
    )


def build_t5(texts: list[str], folder: Path) -> None:
    """Train a unigram model with T5's conventions: pad 0, end of sequence 1, unknown 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=T5_PIECES,
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        # More threads sum in another order and give other scores.
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5Tokenizer",
            "model_max_length": TOKENS,
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "extra_ids": 0,
            "additional_special_tokens": [],
        },
    )


def build_clip(texts: list[str], folder: Path) -> None:
    """Train byte pairs with CLIP's conventions: lower case, `</w>` ends a word, padded by the end.

    As in CLIP's vocabulary, single bytes come first, then bytes that end a word, then merges,
    then the two special tokens, so that the end of text has the highest id.
    """
    reference = CLIPTokenizer()
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = reference.backend_tokenizer.normalizer
    trained.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + CLIP_MERGES,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    learnt = json.loads(trained.to_str())["model"]["merges"]
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in learnt]
    merges = merges[:CLIP_MERGES]
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    pieces += [first + second for first, second in merges]
    pieces = [*dict.fromkeys(pieces), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {piece: index for index, piece in enumerate(pieces)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": TOKENS,
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
        },
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, formatted for readable diffs."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
