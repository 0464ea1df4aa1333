"""FID: what the package is asked, and what is refused.

Equality with the package's own command is measured by `benchmarks.parity.fid`: torchvision needs a
PyTorch of its own, which is too large for these tests.
"""

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erase.judges.fid import FID
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
