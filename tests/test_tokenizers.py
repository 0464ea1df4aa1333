"""Tokenizers as saved by different programs, and folders without them."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import tiny

from flux_jax.errors import InputError
from flux_jax.models.clip.text import CLIPTextConfig
from flux_jax.models.t5 import T5Config
from flux_jax.models.tokenizers import read_tokenizer

ENCODERS = {
    "tokenizer": CLIPTextConfig(),
    "tokenizer_2": T5Config(),
}
PROMPTS = ["a photo of a cat", "two dogs, one  CAR"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with both tokenizers of the shipped model."""
    for name in ENCODERS:
        shutil.copytree(tiny.SHIPPED / name, tmp_path / name)
    return tmp_path


def edit(root: Path, name: str, **changes: object) -> None:
    file = root / name / "tokenizer_config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(("name", "tokens"), [("tokenizer", 77), ("tokenizer_2", 512)])
@pytest.mark.parametrize("said", [None, 10**30, int(1e30)])
def test_lengths_that_are_not_said_are_flux_s(root: Path, name: str, tokens: int, said):
    assert read_tokenizer(root, name, ENCODERS[name]).model_max_length == 32
    edit(root, name, model_max_length=said)
    assert read_tokenizer(root, name, ENCODERS[name]).model_max_length == tokens


def test_clip_has_no_more_tokens_than_positions(root: Path):
    edit(root, "tokenizer", model_max_length=77)
    encoder = CLIPTextConfig(max_position_embeddings=40)
    assert read_tokenizer(root, "tokenizer", encoder).model_max_length == 40


@pytest.mark.parametrize("name", ENCODERS)
def test_a_single_file_of_transformers_5_gives_the_same_ids(root: Path, name: str):
    wanted = read_tokenizer(root, name, ENCODERS[name])
    shutil.rmtree(root / name)
    wanted.save_pretrained(root / name)
    assert (root / name / "tokenizer.json").is_file()
    for file in ("spiece.model", "vocab.json", "merges.txt"):
        (root / name / file).unlink(missing_ok=True)
    read = read_tokenizer(root, name, ENCODERS[name])
    assert read(PROMPTS).input_ids == wanted(PROMPTS).input_ids
    assert (read.model_max_length, read.pad_token_id) == (32, wanted.pad_token_id)
    assert len(set(read(PROMPTS).input_ids[0])) > 4


@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("tokenizer", "vocab.json", "no vocabulary in it; it must hold tokenizer.json or vocab.j"),
        ("tokenizer", "merges.txt", "no vocabulary in it"),
        ("tokenizer_2", "spiece.model", "it must hold tokenizer.json or spiece.model: copy"),
        ("tokenizer", "", "no such folder; it must hold tokenizer.json or vocab.json with merges"),
        ("tokenizer_2", "", "no such folder"),
    ],
)
def test_what_is_missing_is_named(root: Path, name: str, lost: str, said: str):
    if lost:
        (root / name / lost).unlink()
    else:
        shutil.rmtree(root / name)
    with pytest.raises(InputError) as caught:
        read_tokenizer(root, name, ENCODERS[name])
    assert str(caught.value).startswith(f"{root / name}: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) <= 400


@pytest.mark.parametrize(
    ("name", "file"),
    [("tokenizer", "vocab.json"), ("tokenizer", "tokenizer.json"), ("tokenizer_2", "spiece.model")],
)
def test_damaged_files_are_named(root: Path, name: str, file: str):
    (root / name / file).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=f"{name}: damaged .*copy or download") as caught:
        read_tokenizer(root, name, ENCODERS[name])
    assert len(str(caught.value).splitlines()) == 1


def test_tokenizers_of_larger_models_are_refused(root: Path):
    with pytest.raises(InputError, match=r"640 tokens, more than the text .* vocab_size = 600"):
        read_tokenizer(root, "tokenizer_2", T5Config(vocab_size=600))
