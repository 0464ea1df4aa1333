import json
import string
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from recipes.emoji_flux import captions, tokenizers

SHIPPED = Path(__file__).parent.parent / "models" / "emoji-flux"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(11)
    return [captions.draw(rng).text for _ in range(4000)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    tokenizers.build(folder, count=8000)
    return folder


@pytest.mark.slow
def test_training_is_deterministic(trained: Path, tmp_path: Path):
    tokenizers.build(tmp_path, count=8000)
    files = sorted(path.relative_to(trained) for path in trained.rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (tmp_path / file).read_bytes() == (trained / file).read_bytes(), file


def test_conventions_of_t5_and_clip(trained: Path):
    clip, t5 = tokenizers.load(trained)
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert len(t5) == tokenizers.T5_PIECES
    assert clip.eos_token_id == clip.pad_token_id == len(clip) - 1
    assert clip.bos_token_id == len(clip) - 2
    assert clip.model_max_length == t5.model_max_length == tokenizers.TOKENS
    assert t5("").input_ids == [1]
    assert clip("").input_ids == [clip.bos_token_id, clip.eos_token_id]


@pytest.mark.parametrize("folder", ["trained", "shipped"])
def test_round_trip(folder: str, trained: Path, texts: list[str]):
    clip, t5 = tokenizers.load(trained if folder == "trained" else SHIPPED)
    odd = [*texts[:500], string.ascii_letters, "Soccerrrs Nikke", string.digits + "&?!~{}"]
    for text in odd:
        ids = t5(text).input_ids
        assert t5.unk_token_id not in ids
        assert t5.decode(ids, skip_special_tokens=True) == text
        ids = clip(text).input_ids
        assert clip.unk_token_id not in ids[1:-1]
        letters = clip.decode(ids, skip_special_tokens=True).replace(" ", "")
        assert letters == text.lower().replace(" ", "")


@pytest.mark.slow
def test_captions_fit(texts: list[str]):
    for tokenizer in tokenizers.load(SHIPPED):
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False).input_ids]
        assert np.mean(np.array(lengths) <= tokenizers.TOKENS) > 0.999


def test_pieces_are_those_of_sentencepiece(texts: list[str]):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(
        model_file=str(SHIPPED / "tokenizer_2" / "spiece.model")
    )
    t5 = tokenizers.load(SHIPPED)[1]
    for text in texts[:500]:
        assert t5(text).input_ids == [*reference.encode(text), 1]


@pytest.mark.parametrize("name", ["T5TokenizerFast", "T5Tokenizer"])
def test_diffusers_loads_the_shipped_tokenizers(name: str, tmp_path: Path):
    from diffusers import FluxPipeline

    for folder in ("tokenizer", "tokenizer_2"):
        (tmp_path / folder).symlink_to(SHIPPED / folder)
    others = ("scheduler", "text_encoder", "text_encoder_2", "transformer", "vae")
    index = {
        "_class_name": "FluxPipeline",
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", name],
        **{other: [None, None] for other in others},
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    pipeline = FluxPipeline.from_pretrained(tmp_path, **dict.fromkeys(others))
    assert isinstance(pipeline.tokenizer, CLIPTokenizer)
    assert isinstance(pipeline.tokenizer_2, T5Tokenizer)
    assert pipeline.tokenizer_max_length == tokenizers.TOKENS
    clip, t5 = tokenizers.load(SHIPPED)
    text = "a kitty in front of an aeroplane"
    assert pipeline.tokenizer(text).input_ids == clip(text).input_ids
    assert pipeline.tokenizer_2(text).input_ids == t5(text).input_ids
