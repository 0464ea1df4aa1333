"""FID: what the package is asked, and what is refused; and judges of concepts as judges of tables.

Equality with the package's own command is measured by `benchmarks.parity.fid`: torchvision needs a
PyTorch of its own, which is too large for these tests.
"""

import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erase.evaluation import judge as judges
from erase.judges.fid import FID
from erase.judges.found import FoundConcepts
from erase.judges.protocol import PictureJudge
from flux_jax.errors import InputError


class Package:
    """Stands in for torch-fidelity; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def calculate_metrics(self, **asked: Any) -> dict[str, float]:
        self.asked = asked
        if "broken" in asked["input1"]:
            raise OSError("cannot identify image file 'a.png'\nmore")
        return {"frechet_inception_distance": np.float64(12.5)}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    made = Package()
    monkeypatch.setitem(sys.modules, "torch_fidelity", made)
    version = importlib.metadata.version
    known = {"torch-fidelity": "0.4.0"}
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: known.get(name) or version(name)
    )
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fid")
    for name, count in (("ours", 3), ("theirs", 2), ("one", 1), ("broken", 2)):
        (root / name).mkdir()
        for index in range(count):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(root / name / f"{index}.png")
        (root / name / "notes.txt").touch()
    torch.save({"x": torch.ones(2)}, root / "weights.pth")
    torch.save(SimpleNamespace(x=1), root / "program.pth")
    return root


def test_the_package_is_asked_for_all_that_the_description_says(
    package: Package, folders: Path, capsys: pytest.CaptureFixture[str]
):
    fid = FID(folders / "weights.pth", layer=192)
    figure = fid.between(folders / "ours", folders / "theirs")
    assert (figure.name, figure.value, figure.pictures, figure.low) == ("FID", 12.5, 2, None)
    assert package.asked["feature_layer_fid"] == "192"
    assert package.asked["feature_extractor"] == fid.description["network"]
    assert package.asked["feature_extractor_weights_path"].endswith("weights.pth")
    assert package.asked["cache"] is False
    assert package.asked["save_cpu_ram"] is True
    assert fid.description["backend"] == "torch-fidelity 0.4.0"
    assert fid.description["layer"] == 192
    assert fid.description["weights"] == "weights.pth"
    said = capsys.readouterr().err
    assert "3 pictures and 2 reference pictures, fewer than the 192 features" in said
    assert FID().description["weights"] == "the package's"


def test_unusable_folders_layers_and_weights_are_named(package: Package, folders: Path):
    fid, ours = FID(), folders / "ours"
    for asked, said in [
        (lambda: fid.between(ours, folders / "none"), "none: no such folder"),
        (lambda: fid.between(folders / "one", ours), r"one: 1 pictures .* at least two"),
        (lambda: fid.between(folders / "broken", ours), r"cannot identify .*; without a network"),
        (lambda: FID(layer=100), "layer = 100 must be one of 64, 192, 768, 2048"),
        (lambda: FID(folders / "none.pth"), r"no such file; FID needs weights-inception"),
        (lambda: FID(folders / "program.pth"), "does not hold tensors only"),
    ]:
        with pytest.raises(InputError, match=said) as error:
            asked()
        assert len(str(error.value)) <= 400


def test_missing_and_unfitting_packages_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"FID needs the package torch_fidelity .*\[fid\]"):
        FID()

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("erase.judges.fid.importlib.import_module", broken)
    with pytest.raises(InputError, match="versions of torch and torchvision that belong together"):
        FID()


class Colours:
    """A judge of concepts that finds a colour where its channel is the brightest."""

    size = None

    @classmethod
    def load(cls, folder: Any) -> "Colours":
        return cls()

    def label(self, concept: str) -> str:
        if concept not in ("red", "green", "on"):
            raise InputError(f"concept = {concept!r} is unknown")
        return concept

    def kind(self, concept: str) -> str:
        return "relation" if self.label(concept) == "on" else "entity"

    def labels(self, kind: str) -> Sequence[str]:
        return ("red", "green") if kind == "entity" else ()

    def check_prompt(self, label: str, prompt: str) -> None:
        pass

    def finds(
        self, pictures: np.ndarray, labels: Sequence[str], prompts: Sequence[str]
    ) -> np.ndarray:
        brightest = pictures.mean((1, 2)).argmax(-1)
        return brightest == np.array([("red", "green").index(label) for label in labels])

    def features(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.mean((1, 2))


def test_a_judge_of_concepts_counts_them_as_columns():
    judge = FoundConcepts(Colours(), "colours", ("red", "green"))
    assert isinstance(judge, PictureJudge)
    pictures = np.zeros((5, 2, 2, 3), np.uint8)
    pictures[range(5), ..., [0, 0, 1, 2, 2]] = 200
    scores = judge.scores(pictures, [""] * 5)
    assert scores[0] == {"red": 1, "green": 0}
    values = {figure.name: (figure.value, figure.unit) for figure in judge.figures(scores)}
    assert values == {
        "red": (2, "pictures"),
        "green": (1, "pictures"),
        "Total": (3, "pictures"),
        "Any": (60, "%"),
    }
    for concepts, said in [
        (("on",), "concept = 'on': a relation"),
        (("zebra",), "concept = 'zebra' is unknown"),
        ((), "concepts is empty"),
    ]:
        with pytest.raises(InputError, match=said):
            FoundConcepts(Colours(), "colours", concepts)


def test_a_judges_folder_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(judges.JUDGES, "colours", f"{__name__}:Colours")
    (tmp_path / "config.json").write_text('{"type": "colours"}')
    judge = FoundConcepts.load(tmp_path, ["red"])
    assert judge.description == {"judge": tmp_path.name, "concepts": "red"}
