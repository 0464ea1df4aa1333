"""CLIP with both towers: features, logits, preparation of pictures and loading, by transformers."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from helpers.clip_case import SHAPES, reference, save
from safetensors.numpy import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from flux_jax.errors import InputError
from flux_jax.models.clip.joint import CLIP, CLIPConfig
from flux_jax.models.clip.load import load
from flux_jax.models.clip.pixels import PixelConfig, prepare
from flux_jax.weights.mapping import to_flax
from flux_jax.weights.tables import CLIP_MODEL


def close(got: Any, wanted: torch.Tensor) -> None:
    theirs = wanted.detach().numpy()
    np.testing.assert_allclose(np.asarray(got), theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_logits_equal_transformers(shape: str):
    model = reference(SHAPES[shape])
    module = CLIP(CLIPConfig.from_dict(model.config.to_dict(), "config.json"))
    side = module.config.vision.image_size
    random = np.random.default_rng(0)
    pixels = random.normal(size=(3, side, side, 3)).astype(np.float32)
    ids = random.integers(3, 40, (2, 9)).astype(np.int32)
    ids[0, 4:], ids[1, 8:] = 49, 49
    shapes = jax.eval_shape(module.init, jax.random.key(0), pixels, ids)["params"]
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = {"params": to_flax(CLIP_MODEL, tensors, shapes)}
    theirs = torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids).long(), pixel_values=theirs)
        image = model.get_image_features(theirs).pooler_output
        text = model.get_text_features(torch.from_numpy(ids).long()).pooler_output

    def ours(params: Any, pixels: Any, ids: Any) -> Any:
        return (
            module.apply(params, pixels, ids),
            module.apply(params, pixels, method="image_features"),
            module.apply(params, ids, method="text_features"),
        )

    for got, wanted in zip(
        jax.jit(ours)(params, pixels, ids), (out.logits_per_image, image, text), strict=True
    ):
        close(got, wanted)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 32), (20, 31), (45, 33), (97, 40)])
def test_pictures_are_prepared_as_by_transformers(height: int, width: int):
    side = 32
    pictures = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), np.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    theirs = np.asarray(processor(list(pictures), return_tensors="np")["pixel_values"])
    ours = prepare(pictures, PixelConfig.from_dict(processor.to_dict(), side, "file"))
    np.testing.assert_array_equal(np.moveaxis(ours, -1, 1), theirs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("clip"))


@pytest.mark.slow
def test_a_folder_gives_the_vectors_of_transformers(folder: Path):
    clip = load(str(folder))
    texts = ["a red apple", "two cats " * 60, "a dog"]
    pictures = np.random.default_rng(2).integers(0, 256, (17, 40, 50, 3), np.uint8)
    model: Any = transformers.CLIPModel.from_pretrained(folder)
    pixels = np.moveaxis(prepare(pictures, clip.pixels), -1, 1).copy()
    ids = torch.tensor(
        clip.tokenizer(texts, padding="max_length", max_length=20, truncation=True).input_ids
    )
    with torch.no_grad():
        image = model.get_image_features(torch.from_numpy(pixels)).pooler_output
        text = model.get_text_features(ids).pooler_output
    close(clip.pictures(pictures), image / image.norm(dim=-1, keepdim=True))
    close(clip.texts(texts), text / text.norm(dim=-1, keepdim=True))
    assert clip.cut(texts) == [1]
    assert clip.pictures(pictures[:0]).shape == (0, clip.module.config.projection_dim)


def test_the_text_tower_of_a_pipeline_is_no_clip(tiny_folder: Path):
    with pytest.raises(InputError, match=r"config.json: no CLIP with text and image tower") as said:
        load(str(tiny_folder / "text_encoder"))
    assert len(str(said.value)) <= 400
    with pytest.raises(InputError, match=r"config.json is missing: give the folder of a CLIP"):
        load(str(tiny_folder))


def test_tensors_are_checked_one_by_one(folder: Path, tmp_path: Path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    name = "vision_model.post_layernorm.bias"
    save_file({k: v for k, v in tensors.items() if k != name}, broken / "model.safetensors")
    with pytest.raises(InputError, match=rf"1 tensor does not fit: missing: {name} \[16\]"):
        load(str(broken))
    for file in ("vocab.json", "tokenizer.json"):
        (broken / file).unlink(missing_ok=True)
    with pytest.raises(InputError, match="copy them from the same model there"):
        load(str(broken))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resample": 2}, "resample = 2 is not supported, only 3"),
        ({"size": {"shortest_edge": 48}}, "size = .*48.* is not supported"),
        ({"do_center_crop": False}, "do_center_crop = False is not supported"),
        ({"image_std": [1.0, 0, 1.0]}, "image_std = .* must be three numbers other than 0"),
    ],
)
def test_other_preparations_of_pictures_are_refused(settings: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        PixelConfig.from_dict(settings, 32, "preprocessor_config.json")
