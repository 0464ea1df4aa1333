"""Token masks: exactly the concept's tokens, at every occurrence, however it is written."""

import itertools
from pathlib import Path

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerBase, T5Tokenizer

from convert.errors import InputError
from erase.tokens import SPACE, concept_masks, marks, token_sequences

TEXT = (
    "a photo of a soccer ball on the grass",
    "two soccer balls and an ice cream, in the style of Vincent van Gogh",
    "a denuded hill (a soccer-ball) near the police station",
    "the soccer ball; the van; a girl with a hat",
    "NUDE Nude SOCCER BALL Soccer Ball é",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """T5's kind of tokenizer, trained here; "nude" is no piece of it."""
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
    """The marked stretches of a prompt, as text."""
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
    ],
)
def test_marks_are_the_concept_and_nothing_else(
    tokenizer: PreTrainedTokenizerBase, prompt: str, concept: str, expected: list[str]
):
    assert marked(tokenizer, prompt, concept) == expected


def test_nude_is_several_pieces(tokenizer: PreTrainedTokenizerBase):
    ids = tokenizer("a nude girl", add_special_tokens=False).input_ids
    assert min(map(len, token_sequences(tokenizer, "nude"))) >= 2
    assert concept_masks(tokenizer, ["a nude girl"], "nude").sum() >= 2
    assert tokenizer.unk_token_id not in ids


def test_a_word_may_go_on_after_the_concept_but_not_before(tokenizer: PreTrainedTokenizerBase):
    # "nude" and then "r": an ending may not hide the concept.
    assert concept_masks(tokenizer, ["a nuderrr girl"], "nude").any()
    for prompt in ("a denuded hill", "the police"):
        with pytest.raises(InputError, match="does not hold"):
            concept_masks(tokenizer, [prompt], "nude" if "nude" in prompt else "ice")


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
