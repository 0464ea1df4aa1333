"""Sampling: names, adapters with strengths, and pictures that do not depend on their batch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import warm
from PIL import Image

from convert.adapters.files import write_lora
from erase.model.adapters import parse_adapter
from erase.model.draw import draw, picture_size
from erase.model.sample import file_names, sample
from erase.runtime.files import write
from flux_jax import load, lora
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline
from flux_jax.settings import SamplingOptions
from flux_jax.weights.loading import Weights

ROOT = Path(__file__).resolve().parents[1]
SIZE = SamplingOptions(height=16, width=16)


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def adapter_folder(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = lora.init(jax.random.key(0), pipe.params["transformer"], rank=2)
    tree = jax.tree.map(lambda leaf: leaf + 0.5, tree)
    folder = tmp_path_factory.mktemp("run") / "adapter"
    write_lora(folder, tree, 2.0)
    return folder


def test_adapter_is_read_from_file_folder_or_run_with_its_strength(adapter_folder: Path):
    for text in (adapter_folder.parent, adapter_folder, *adapter_folder.iterdir()):
        adapter, strength = parse_adapter(str(text))
        assert (adapter.rank, strength) == (2, 1.0)
        assert parse_adapter(f"{text}:0.25")[1] == 0.25


@pytest.mark.parametrize("text", ["nowhere", "nowhere:0.5", "{folder}:strong"])
def test_unusable_adapter_is_named(adapter_folder: Path, text: str):
    text = text.format(folder=adapter_folder)
    with pytest.raises(InputError, match=text.split(":")[0]):
        parse_adapter(text)


@pytest.mark.slow
def test_pictures_do_not_depend_on_their_batch(pipe: Pipeline):
    prompts, seeds = ["a cat", "a dog", "", "two cats", "a tree"], [4, 5, 6, 7, 8]
    options = replace(SIZE, steps=2, batch=2)
    there = draw(pipe, prompts, seeds, options)
    back = draw(pipe, prompts[::-1], seeds[::-1], options)
    assert there.shape == (5, 16, 16, 3)
    assert there.dtype == np.uint8
    # Rows of a product may be rounded differently, by one grey level.
    np.testing.assert_allclose(there.astype(int), back[::-1].astype(int), atol=1)
    assert not np.array_equal(there[0], there[1])


def test_pictures_have_the_models_size_unless_another_is_given(pipe: Pipeline):
    own = pipe.vae.config.sample_size
    assert picture_size(pipe, SamplingOptions()) == (own, own)
    assert picture_size(pipe, SamplingOptions(height=2 * own)) == (2 * own, own)
    assert picture_size(pipe, SamplingOptions(width=0)) == (own, 0)


@pytest.mark.slow
def test_sample_writes_every_pair_and_adapters_change_pictures(
    tiny_folder: Path, adapter_folder: Path, tmp_path: Path
):
    prompts, seeds = ["A cat, on a mat!", "a dog"], [0, 3]
    options = replace(SIZE, steps=2, batch=4)
    names = {
        strength: sample(
            tiny_folder,
            prompts,
            seeds,
            [f"{adapter_folder}:{strength}"],
            tmp_path / strength,
            options=options,
        )
        for strength in ("0", "1")
    }
    assert [path.name for path in names["1"]] == [
        "000-a-cat-on-a-mat-seed0.png",
        "000-a-cat-on-a-mat-seed3.png",
        "001-a-dog-seed0.png",
        "001-a-dog-seed3.png",
    ]
    base = sample(tiny_folder, prompts, seeds, [], tmp_path / "base", options=options)
    for without, off, on in zip(base, names["0"], names["1"], strict=True):
        assert np.array_equal(np.asarray(Image.open(without)), np.asarray(Image.open(off)))
        assert not np.array_equal(np.asarray(Image.open(without)), np.asarray(Image.open(on)))
    with Image.open(names["1"][1]) as picture:
        assert picture.size == (16, 16)
        assert (picture.info["prompt"], picture.info["seed"]) == (prompts[0], "3")


@pytest.mark.slow
def test_a_silenced_word_changes_the_prompts_that_hold_it(tiny_folder: Path, tmp_path: Path):
    prompts, options = ["a red ball", "a rde ball"], replace(SIZE, steps=2)
    base = sample(tiny_folder, prompts, [0], [], tmp_path / "base", options=options)
    off = tmp_path / "off"
    silenced = sample(tiny_folder, prompts, [0], [], off, silenced="red", options=options)
    pairs = zip(base, silenced, strict=True)
    red, rde = (np.abs(np.subtract(*(np.asarray(Image.open(p), int) for p in q))) for q in pairs)
    assert red.max() > 1
    # Two programs may round differently, by one grey level.
    assert rde.max() <= 1
    with Image.open(silenced[0]) as picture:
        assert json.loads(picture.info["settings"])["silenced"] == "red"


@pytest.mark.parametrize(("word", "told"), [("blue", True), ("ball", False), ("Balls", True)])
def test_a_word_that_silences_nothing_is_told_of_once(
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    told: bool,
):
    monkeypatch.setattr(
        "erase.model.sample.draw", lambda *_, **__: np.zeros((4, 16, 16, 3), np.uint8)
    )
    prompts = ["a red ball", "a dog"]
    sample(tiny_folder, prompts, [0, 1], [], tmp_path, silenced=word, options=SIZE)
    note = f"silence = {word!r} is in none of the prompts: nothing is silenced\n"
    assert capsys.readouterr().err == (note if told else "")


def test_names_of_prompts_without_words():
    assert list(file_names(["", "!!"], [1])) == ["000-empty-seed1.png", "001-empty-seed1.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompt is missing"),
        ({"seeds": []}, "seed is missing"),
        ({"options": replace(SIZE, height=17)}, "height = 17"),
        ({"options": replace(SIZE, height=0)}, "height = 0"),
        ({"options": replace(SIZE, steps=0)}, "steps = 0"),
        (
            {"options": replace(SIZE, guidance=float("nan"))},
            "guidance = nan must be a finite number",
        ),
        ({"options": replace(SIZE, guidance=float("inf"))}, "guidance = inf"),
        ({"options": replace(SIZE, guidance=-1.0)}, "guidance = -1.0"),
        ({"options": replace(SIZE, batch=0)}, "batch = 0"),
        ({"model": "no-such-folder"}, "no-such-folder"),
        ({"prompts": ["cat " * 40]}, "limit"),
        ({"silenced": " "}, "is empty"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict,
    message: str,
):
    arguments: dict[str, Any] = {
        "model": tiny_folder, "prompts": ["a cat"], "seeds": [0], "adapters": [], "options": SIZE
    }  # fmt: skip
    # No weights may be read before the check.
    monkeypatch.setattr(Weights, "__getitem__", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(InputError, match=message) as raised:
        sample(out=tmp_path / "out", **arguments | changes)
    assert len(str(raised.value)) < 400
    assert not (tmp_path / "out").exists()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "picture.png"
    write(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_command_ends_with_code_2_on_bad_input(tmp_path: Path):
    command = ("-m", "erase.cli.sample", "--model", tmp_path / "none", "--prompt", "a")
    ended = warm.run(*command)
    assert ended.returncode == 2
    assert "error: model = " in ended.stderr
    assert "Traceback" not in ended.stderr
