"""The five axes that a judge measures: by hand on made-up pictures, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny

from erase.cli.flags import folders
from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge import Judge, Kind
from erase.model.draw import png
from erase.survey.axes import all_things, labels_in, write_axes
from flux_jax.errors import InputError

THINGS = ("cat", "dog", "ice", "ice cream")


class Bits:
    """A judge whose pictures say what they show: bit i of the first value is the i-th label."""

    size = 2

    def label(self, concept: str) -> str:
        return concept

    def kind(self, concept: str) -> Kind:
        return "style" if concept == "flat" else "relation" if concept == "on" else "entity"

    def labels(self, kind: Kind) -> Sequence[str]:
        return {"entity": THINGS, "style": ("flat",), "relation": ("on",)}[kind]

    def check_prompt(self, label: str, prompt: str) -> None:
        pass

    def finds(
        self, pictures: np.ndarray, labels: Sequence[str], prompts: Sequence[str]
    ) -> np.ndarray:
        assert len(pictures) == len(labels) == len(prompts)
        places = [(*THINGS, "flat").index(label) for label in labels]
        return (
            np.array([each[0, 0, 0] >> p & 1 for each, p in zip(pictures, places, strict=True)]) > 0
        )

    def features(self, pictures: np.ndarray) -> np.ndarray:
        return pictures[:, 0, 0, 1:2].astype(float)


CAT, DOG, ICE, CREAM, FLAT = (1 << n for n in range(5))
# What each prompt's two pictures show, with their features.
SHOWS = {
    "base": {
        "a cat": [(CAT, 0), (CAT, 0)],
        "a dog, flat": [(DOG + FLAT, 0), (DOG + FLAT, 8)],
        "ice cream": [(CREAM, 0), (CREAM, 4)],
    },
    "ours": {
        # One of two is erased.
        "a cat": [(DOG, 0), (CAT, 0)],
        # A dog each, of which one is not flat and one has an ice beside it.
        "a dog, flat": [(DOG, 0), (DOG + FLAT + ICE, 2)],
        # One shows nothing.
        "ice cream": [(CREAM, 0), (0, 4)],
    },
}


def drawn(folder: Path, shows: dict[str, list[tuple[int, int]]]) -> Path:
    """A method's pictures, as `erase-anything sample` writes them."""
    folder.mkdir()
    for number, (prompt, pictures) in enumerate(shows.items()):
        for seed, (bits, feature) in enumerate(pictures):
            picture = np.full((2, 2, 3), (bits, feature, 0), np.uint8)
            content = png(picture, {"prompt": prompt, "seed": str(seed)})
            (folder / f"{number}-{seed}.png").write_bytes(content)
    return folder


@pytest.fixture
def methods(tmp_path: Path) -> dict[str, Path]:
    return {name: drawn(tmp_path / name, shows) for name, shows in SHOWS.items()}


def test_the_axes_are_those_counted_by_hand(
    methods: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert isinstance(Bits(), Judge)
    found = write_axes(methods, "cat", "base", Bits(), tmp_path / "out")
    assert json.loads((tmp_path / "out/axes.json").read_text()) == found
    values = {m: {a: v["value"] for a, v in axes.items()} for m, axes in found["methods"].items()}
    assert values["base"] == {
        **{"erasing": 0, "preservation": 1, "quality": 1, "adherence": 1, "diversity": 1}
    }
    assert values["ours"] == {
        "erasing": 1 / 2,
        # Two dogs and one of two ice creams; the style is of another kind.
        "preservation": 3 / 4,
        # Not the dog with an ice, nor the picture of nothing.
        "quality": 2 / 4,
        # Not the dog that is not flat, nor the picture of nothing.
        "adherence": 2 / 4,
        # Distances 2 and 4 instead of 8 and 4.
        "diversity": 6 / 12,
    }
    assert found["prompts"] == {"concept": 1, "other": 2}
    assert [axis["of"] for axis in found["methods"]["ours"].values()] == [2, 4, 4, 4, 4]
    shown = capsys.readouterr().out
    assert "not by people" in " ".join(shown.split())
    assert "no person was asked" in found["measured_by"]
    page = (tmp_path / "out/radar.svg").read_text()
    for text in ("measured by programs, not by people", "base", "ours", "Diversity"):
        assert text in page
    assert (tmp_path / "out/radar.png").read_bytes().startswith(b"\x89PNG")


def test_a_longer_name_hides_those_within_it():
    assert labels_in("an ice cream and two dogs, flat", [*THINGS, "flat"]) == [
        *("ice cream", "flat", "dog")
    ]
    assert labels_in("ice beside an ice cream", THINGS) == ["ice cream", "ice"]
    assert labels_in("a catalogue", THINGS) == []


@pytest.mark.slow
def test_one_pass_of_the_network_finds_what_a_pass_for_each_thing_does(tmp_path: Path):
    judge = NetworkJudge.load(tiny.judge(tmp_path))
    pictures = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
    things, prompts = judge.labels("entity"), [""] * len(pictures)
    found = all_things(judge, pictures, things, prompts)
    assert found.shape == (40, len(things))
    assert 0 < found.mean() < 1
    backwards = all_things(judge, pictures, things[::-1], prompts)
    np.testing.assert_array_equal(found, backwards[:, ::-1])


def refused(methods: dict[str, Path], out: Path, concept: str = "cat", base: str = "base") -> str:
    with pytest.raises(InputError) as error:
        write_axes(methods, concept, base, Bits(), out)
    assert not out.exists()
    text = str(error.value)
    assert "\n" not in text
    assert len(text) <= 400
    return text


def test_what_cannot_be_measured_is_said_in_a_line(methods: dict[str, Path], tmp_path: Path):
    out = tmp_path / "out"
    assert "did you mean base?" in refused(methods, out, base="bass")
    assert "'on' is a relation" in refused(methods, out, "on")
    assert "'cow' is in none of the prompts" in refused(methods, out, "cow")
    single = {"base": drawn(tmp_path / "single", {p: v[:1] for p, v in SHOWS["ours"].items()})}
    assert "diversity needs two or more" in refused(single, out)
    alike = {"base": drawn(tmp_path / "alike", {p: [(1, 0)] * 2 for p in SHOWS["ours"]})}
    assert "all seeds of a prompt give one picture" in refused(alike, out)
    alone = {"base": drawn(tmp_path / "alone", {"a cat": [(1, 0)] * 2, "a tree": [(0, 1)] * 2})}
    assert "no other prompt names a thing" in refused(alone, out)
    (methods["ours"] / "0-0.png").unlink()
    assert "is of base or ours alone" in refused(methods, out)
    with pytest.raises(InputError, match="write METHOD=FOLDER"):
        folders(["base"])
