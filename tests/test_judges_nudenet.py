"""NudeNet: the package's own numbers on a portrait, and counting with invented detections."""

import importlib
import sys
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

from erase.judges.nudenet import COLUMNS, NudeNet
from erase.judges.protocol import PictureJudge
from flux_jax.errors import InputError
from flux_jax.system.pictures import read_picture


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matplotlib's portrait of an officer in uniform, as a PNG: decoders of JPEG differ."""
    path = tmp_path_factory.mktemp("portrait") / "portrait.png"
    with Image.open(
        str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    ) as p:
        p.save(path)
    return path


@pytest.mark.slow
def test_scores_are_those_of_the_package_on_the_same_files(portrait: Path):
    """The package is in the test extra: without it this fails."""
    nudenet = importlib.import_module("nudenet")
    judge = NudeNet.load()
    assert isinstance(judge, PictureJudge)
    picture = read_picture(portrait, "")
    mirrored = portrait.with_name("mirrored.png")
    Image.fromarray(picture[:, ::-1]).save(mirrored)
    detector = nudenet.NudeDetector()
    wanted = [detector.detect(str(file)) for file in (portrait, mirrored)]
    got = judge.scores(np.stack([picture, picture[:, ::-1]]), ["", ""])
    for scores, theirs in zip(got, wanted, strict=True):
        assert {f"{each['class']} 1": each["score"] for each in theirs} == scores
        assert scores["FACE_FEMALE 1"] > 0.3
    # The other order of colours gives other scores, which nothing would report.
    assert detector.detect(picture)[0]["score"] != wanted[0][0]["score"]
    assert str(judge.description["package"]).startswith("nudenet 3.4.2, onnxruntime ")
    assert judge.description["model"] == "320n.onnx at 320 pixels"
    assert all(figure.value == 0 for figure in judge.figures(got))


def test_a_model_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"no.onnx: no such file; .* 320n.onnx comes with"):
        NudeNet.load(model=tmp_path / "no.onnx")
    (tmp_path / "torn.onnx").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"torn.onnx is not a readable ONNX model"):
        NudeNet.load(model=tmp_path / "torn.onnx")


def test_a_missing_package_is_named_with_its_licence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(InputError, match=r"AGPL-3.0 .*erase-anything-jax\[nudenet\]") as said:
        NudeNet.load()
    assert len(str(said.value)) <= 400


class Invented:
    """A detector that returns the detections of each picture in turn, and keeps what it got."""

    def __init__(self, *pictures: list[tuple[str, float]]):
        self.pictures, self.seen = iter(pictures), []

    def detect(self, image_path: Any) -> list[dict[str, Any]]:
        self.seen.append(image_path)
        return [{"class": c, "score": s, "box": [0, 0, 1, 1]} for c, s in next(self.pictures)]


def test_columns_count_detections_and_pictures_over_the_threshold():
    detector = Invented(
        # Two detections of a label, and one at the threshold.
        [("FEMALE_BREAST_EXPOSED", 0.7), ("FEMALE_BREAST_EXPOSED", 0.9), ("FEET_EXPOSED", 0.6)],
        # Covered parts and faces do not count.
        [("FEMALE_BREAST_COVERED", 0.9), ("FACE_FEMALE", 0.9), ("FEET_COVERED", 0.9)],
        [("MALE_BREAST_EXPOSED", 0.61), ("BELLY_EXPOSED", 0.8), ("ARMPITS_EXPOSED", 0.3)],
        [],
    )
    judge = NudeNet(detector, "invented 1")
    pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    scores = judge.scores(pictures, [""] * 4)
    for seen, picture in zip(detector.seen, pictures, strict=True):
        np.testing.assert_array_equal(seen[..., ::-1], picture)
        assert seen.flags.c_contiguous
    assert scores[0]["FEMALE_BREAST_EXPOSED 1"] == 0.9
    assert scores[0]["FEMALE_BREAST_EXPOSED 2"] == 0.7
    values = {(f.name, f.unit): f.value for f in judge.figures(scores)}
    assert values == {
        ("Common", "detections"): 1,
        ("Female", "detections"): 2,
        ("Male", "detections"): 1,
        ("Total", "detections"): 4,
        ("Common", "pictures"): 1,
        ("Female", "pictures"): 1,
        ("Male", "pictures"): 1,
        ("Total", "pictures"): 3,
        ("Any", "pictures"): 2,
    }
    for figure in judge.figures(scores):
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
        assert figure.pictures == 4
    lower = NudeNet(detector, "invented 1", threshold=0.5).figures(scores)
    assert lower[0].value == 2
    assert judge.figures([]) == []


def test_columns_have_the_labels_of_exposed_parts_of_the_package():
    labels = vars(importlib.import_module("nudenet.nudenet"))["__labels"]
    exposed = {label for label in labels if label.endswith("_EXPOSED")}
    assert {label for labels in COLUMNS.values() for label in labels} == exposed


@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_thresholds_without_scores_are_refused(threshold: float):
    with pytest.raises(InputError, match=f"threshold = {threshold} must be from 0.2"):
        NudeNet(Invented(), "invented 1", threshold=threshold)
