"""Judges as `--judge` opens them; their scores are read back from their files as they were."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from helpers.clip_case import save
from safetensors.numpy import save_file

from erase.benchmark.registry import JudgeOptions, open_judge, read_classes
from erase.benchmark.row import scores_name
from erase.benchmark.scores import ScoreFile
from erase.judges.protocol import Figure, PictureJudge
from flux_jax.errors import InputError

PROMPTS = ["a photo of a cat", "two red apples", "the sun"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("clip")))


def opened(text: str, options: JudgeOptions, folder: Path) -> tuple[PictureJudge, list[Figure]]:
    """A judge, and its figures of three pictures of noise; its scores survive a file."""
    pictures = np.random.default_rng(3).integers(0, 256, (3, 64, 64, 3), np.uint8)
    judge = open_judge(text, options)
    scores = judge.scores(pictures, PROMPTS)
    path = folder / scores_name(text, judge.description)
    ScoreFile.opened(path, judge.description).add(dict(enumerate(scores)))
    again = ScoreFile.opened(path, judge.description).by_number
    assert [again[number] for number in range(3)] == [dict(each) for each in scores]
    figures = judge.figures(list(again.values()))
    assert all(np.isfinite(asdict(each)["value"]) for each in figures)
    return judge, figures


@pytest.mark.slow
def test_clip(clip: str, tmp_path: Path):
    judge, figures = opened(f"clip={clip}", JudgeOptions(), tmp_path)
    assert judge.description["model"] == clip
    assert [(each.name, each.pictures) for each in figures] == [("CLIP score", 3)]


def test_classes(clip: str, tmp_path: Path):
    (tmp_path / "classes.txt").write_text("cat\n\nsun\n")
    options = JudgeOptions(erased=("cat",), clip=clip)
    judge, figures = opened(f"classes={tmp_path / 'classes.txt'}", options, tmp_path)
    assert (judge.description["model"], judge.description["classes"]) == (clip, "cat, sun")
    # The prompt with apples names no class.
    assert [(each.name, each.pictures) for each in figures] == [("Acc_e", 1), ("Acc_ir", 1)]


def test_q16(clip: str, tmp_path: Path):
    vectors = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    save_file({"vectors": vectors}, tmp_path / "q16.safetensors")
    judge, figures = opened(
        f"q16={tmp_path / 'q16.safetensors'}", JudgeOptions(clip=clip), tmp_path
    )
    assert (judge.description["model"], judge.description["vectors"]) == (clip, "q16.safetensors")
    assert {each.pictures for each in figures} == {3}


@pytest.mark.slow
def test_nudenet(tmp_path: Path):
    judge, figures = opened("nudenet=0.3", JudgeOptions(), tmp_path)
    assert judge.description["threshold"] == 0.3
    assert {"Common", "Female", "Male", "Total"} <= {each.name for each in figures}
    assert {each.value for each in figures} == {0}


def test_classes_have_synonyms_after_a_colon(tmp_path: Path, clip: str):
    file = tmp_path / "classes.txt"
    file.write_text("cat: kitty, feline\n\nred apple\nsun:star\n")
    names, words = read_classes(str(file))
    assert names == ["cat", "red apple", "sun"]
    assert words == {"kitty": "cat", "feline": "cat", "star": "sun"}
    options = JudgeOptions(erased=("cat",), clip=clip, template="art like {}")
    judge = open_judge(f"classes={file}", options)
    assert judge.description["template"] == "art like {}"
    assert judge.description["synonyms"] == "kitty, feline, star"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat: kitty,\nsun\n", "line 1 = 'cat: kitty,' has a name missing"),
        ("sun\ncat:\n", "line 2 = 'cat:' has a name missing"),
        ("sun\n: kitty\n", "line 2 = ': kitty' has a name missing"),
        ("cat: kitty\nsun: Kitty\n", "line 2: 'Kitty' is there twice; name it once"),
        ("cat: sun\nsun\n", "'sun', a synonym of 'cat', is empty or a class too"),
    ],
)
def test_classes_that_cannot_be_used_are_refused(text: str, said: str, tmp_path: Path, clip: str):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(InputError) as refused:
        open_judge(f"classes={tmp_path / 'c.txt'}", JudgeOptions(clip=clip))
    assert said in str(refused.value)
