"""Common file layouts: the models in a file are identified by its tensors' names."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from helpers import tiny
from safetensors.numpy import save_file

import flux_jax
from convert.pipeline import convert
from flux_jax.errors import InputError
from flux_jax.models.clip.text import CLIPTextConfig
from flux_jax.models.t5 import T5Config
from flux_jax.tree import flatten
from flux_jax.weights import original, sizes
from flux_jax.weights.loading import abstract_params
from flux_jax.weights.mapping import to_flax, to_torch
from flux_jax.weights.rules import Table
from flux_jax.weights.safetensors_files import find_weights
from flux_jax.weights.source import open_source, root_of
from flux_jax.weights.tables import CLIP, COMPONENTS, T5, TRANSFORMER, VAE

MODELS: dict[str, Any] = {
    "transformer": tiny.transformer(axes=sizes.ROPE_AXES, heads=1, pooled_width=128),
    "vae": tiny.vae(widths=(32, 64)),
    "text_encoder": tiny.clip(1026, width=128),
    "text_encoder_2": tiny.t5(640),
}
# Prefixes of each model in ComfyUI's checkpoints.
PREFIXES = {
    "transformer": "model.diffusion_model.",
    "vae": "vae.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
}
Tensors = dict[str, np.ndarray]


def tree(name: str) -> Tensors:
    """A model's leaves, by their paths."""
    state = {key: value.numpy() for key, value in MODELS[name].state_dict().items()}
    config = MODELS[name].config
    shapes = abstract_params(name, config if isinstance(config, dict) else config.to_dict())
    return to_flax(COMPONENTS[name], state, shapes)


def tensors(name: str, table: Table, prefix: str = "") -> Tensors:
    """A model's tensors under a table's names."""
    named = to_torch(table, tree(name))
    return {prefix + key: np.ascontiguousarray(value) for key, value in named.items()}


def single(name: str, prefix: str = "") -> Tensors:
    """A model's tensors under the names of its single file."""
    tables = {
        "transformer": original.TRANSFORMER,
        "vae": original.vae_table(2),
        "text_encoder": CLIP,
    }
    return tensors(name, tables.get(name, T5), prefix)


def together(*names: str) -> Tensors:
    """The tensors of a file that holds several models."""
    return {k: v for name in names for k, v in single(name, PREFIXES[name]).items()}


def changed(given: Tensors) -> Tensors:
    """Other weights of the same model."""
    return {name: tensor + 1 for name, tensor in given.items()}


def assert_reads(path: Path, *names: str, file: Path | None = None):
    """Assert that the models are found, with every value."""
    for name in names:
        source = open_source(path, name)
        assert file in (None, source.where)
        read = to_flax(source.table, source.tensors, abstract_params(name, source.config))
        wanted = flatten(tree(name))
        assert flatten(read).keys() == wanted.keys()
        for leaf, value in flatten(read).items():
            np.testing.assert_array_equal(value, wanted[leaf], err_msg=leaf)


def refusal(path: Path, name: str = "transformer") -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, name)
    said = str(caught.value)
    assert len(said) <= 400
    assert "\n" not in said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "model."])
@pytest.mark.parametrize("table", [original.TRANSFORMER, TRANSFORMER], ids=["bfl", "diffusers"])
def test_transformers_are_read_behind_any_prefix(tmp_path: Path, prefix: str, table: Table):
    file = tmp_path / "my_finetune.safetensors"
    save_file(tensors("transformer", table, prefix), file)
    assert_reads(file, "transformer", file=file)
    assert_reads(tmp_path, "transformer", file=file)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize("table", [original.vae_table(2), VAE], ids=["bfl", "diffusers"])
def test_autoencoders_are_read_behind_any_prefix(tmp_path: Path, prefix: str, table: Table):
    save_file(tensors("vae", table, prefix), tmp_path / "ae.sft")
    assert_reads(tmp_path, "vae")


@pytest.mark.slow
def test_a_file_of_all_models_is_read_and_goes_before_what_is_beside(tmp_path: Path):
    file = tmp_path / "flux1-dev-fp8.safetensors"
    more = {
        "text_encoders.clip_l.logit_scale": np.ones((), "f4"),
        "text_encoders.clip_l.transformer.text_projection.weight": np.eye(128, dtype="f4"),
        "text_encoders.t5xxl.transformer.spiece_model": np.ones(3, "u1"),
    }
    save_file(together(*MODELS) | more, file)
    save_file(changed(single("vae")), tmp_path / "ae.safetensors")
    (tmp_path / "text_encoder").mkdir()
    save_file(changed(single("text_encoder")), tmp_path / "text_encoder" / "model.safetensors")
    assert_reads(file, *MODELS, file=file)
    assert_reads(tmp_path, *MODELS, file=file)
    clip, t5 = (open_source(file, name).config for name in ("text_encoder", "text_encoder_2"))
    wanted = MODELS["text_encoder"].config.to_dict() | {"eos_token_id": 2}
    assert CLIPTextConfig.from_dict(clip) == CLIPTextConfig.from_dict(wanted)
    wanted = MODELS["text_encoder_2"].config.to_dict()
    assert T5Config.from_dict(t5) == T5Config.from_dict(wanted)


@pytest.mark.slow
def test_commands_take_a_file_of_all_models(tmp_path: Path):
    file = tmp_path / "given" / "flux1-dev-fp8.safetensors"
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tiny.SHIPPED / name, tmp_path / "given" / name)
    save_file(together(*MODELS), file)
    pipe = flux_jax.load(file)
    assert pipe.schedule.use_dynamic_shifting
    assert pipe.tokenizer_2.model_max_length == 32
    convert(file, tmp_path / "diffusers", to="diffusers")
    theirs = FluxPipeline.from_pretrained(tmp_path / "diffusers")
    for name, model in MODELS.items():
        state = getattr(theirs, name).state_dict()
        assert state.keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            assert torch.equal(state[key], value), key
    assert not list((tmp_path / "diffusers").glob("*.safetensors"))


def test_models_of_other_widths_are_refused(tmp_path: Path):
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tiny.SHIPPED / name, tmp_path / name)
    save_file(together("transformer", "vae", "text_encoder"), tmp_path / "flux.safetensors")
    state = {key: value.numpy() for key, value in tiny.t5(640, width=32).state_dict().items()}
    save_file(state, tmp_path / "t5.safetensors")
    with pytest.raises(InputError, match=r"d_model = 32 and the transformer's joint_attention_dim"):
        flux_jax.load(tmp_path)


@pytest.mark.slow
def test_a_folder_of_a_file_for_each_model_is_read(tmp_path: Path):
    names = ("flux1-dev.sft", "ae.sft", "clip_l.safetensors", "t5xxl_fp16.safetensors")
    for model, file in zip(MODELS, names, strict=True):
        save_file(single(model), tmp_path / file)
    # Of Stable Diffusion, whose text encoder and autoencoder differ.
    other = {"model.diffusion_model.input_blocks.0.0.weight": np.ones(1, "f4")}
    foreign = changed(together("vae", "text_encoder"))
    save_file(foreign | other, tmp_path / "sd15.safetensors")
    assert_reads(tmp_path, *MODELS)
    # Without its own file, a model is found in a file that holds several.
    (tmp_path / "ae.sft").unlink()
    assert "no weights of the vae" in refusal(tmp_path, "vae")
    (tmp_path / "flux1-dev.sft").unlink()
    save_file(together("transformer", "vae"), tmp_path / "both.safetensors")
    assert_reads(tmp_path, *MODELS)


def test_a_clip_of_a_width_of_its_own_needs_its_configuration(tmp_path: Path):
    state = {k: v.numpy() for k, v in tiny.clip(50).state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    assert "CLIP's width 16 does not determine its" in refusal(tmp_path, "text_encoder")
    (tmp_path / "text_encoder").mkdir()
    tiny.clip(50).config.save_pretrained(tmp_path / "text_encoder")
    assert open_source(tmp_path, "text_encoder").config["num_attention_heads"] == 2


def test_head_norms_may_be_called_weights(tmp_path: Path):
    renamed = {
        k.replace("_norm.scale", "_norm.weight"): v for k, v in single("transformer").items()
    }
    assert renamed.keys() != single("transformer").keys()
    save_file(renamed, tmp_path / "flux.safetensors")
    assert_reads(tmp_path, "transformer")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The transformer's folder of a pipeline, in diffusers' layout and shards."""
    MODELS["transformer"].save_pretrained(tmp_path / "transformer", max_shard_size="1MB")
    return tmp_path / "transformer"


@pytest.mark.slow
def test_the_transformers_folder_and_files_in_it_are_the_pipeline(folder: Path, monkeypatch):
    shard = next(folder.glob("*-00002-of-*.safetensors"))
    for path in (folder, shard, folder.parent):
        assert_reads(path, "transformer", file=folder)
        assert root_of(path) == folder.parent
    whole = tensors("transformer", TRANSFORMER)
    save_file(whole, folder / "mine.safetensors")
    assert_reads(folder / "mine.safetensors", "transformer", file=folder / "mine.safetensors")
    monkeypatch.chdir(folder)
    assert_reads(Path(), "transformer")
    assert "config.json holds no weights; give its folder" in refusal(folder / "config.json")
    (folder / "x.ckpt").touch()
    assert "x.ckpt is not a supported weight file (.safetensors, " in refusal(folder / "x.ckpt")


def test_an_index_goes_before_a_stale_file(folder: Path):
    stale = changed(tensors("transformer", TRANSFORMER))
    save_file(stale, folder / "diffusion_pytorch_model.safetensors")
    assert_reads(folder.parent, "transformer")
    shutil.copy(next(folder.glob("*-00001-of-*")), folder / "other.safetensors")
    assert_reads(folder.parent, "transformer")


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.bf16.safetensors",
        "diffusion_pytorch_model.sft",
        "flux_dev.safetensors",
        "model.fp16.safetensors",
    ],
)
def test_variants_are_found(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    (tmp_path / "README.md").touch()
    (tmp_path / f"._{name}").touch()
    assert find_weights(tmp_path) == tmp_path / name
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(InputError, match=r"other\.safetensors could each be the weights; keep"):
        find_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("model.fp16.safetensors.index.json", "model-0000{}-of-00002.fp16.safetensors"),
    ],
)
def test_variants_in_shards_are_found(tmp_path: Path, index: str, shard: str):
    for number in (1, 2):
        (tmp_path / shard.format(number)).touch()
    with pytest.raises(InputError, match="are shards without their index; copy or download"):
        find_weights(tmp_path)
    (tmp_path / index).touch()
    assert find_weights(tmp_path) == tmp_path / index


def test_transformers_reads_a_file_before_an_index(tmp_path: Path):
    for name in ("model.safetensors.index.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert find_weights(tmp_path).name == "model.safetensors"


FAMILIES = {
    "distilled_guidance_layer.in_proj.weight": "this is Chroma",
    "double_stream_modulation_img.lin.weight": r"this is FLUX.2",
    "redux_up.weight": "this is FLUX.1 Redux",
    "controlnet_blocks.0.weight": "this is a ControlNet",
    "joint_blocks.0.x_block.attn.qkv.weight": "this is Stable Diffusion 3",
    "input_blocks.0.0.weight": "this is Stable Diffusion",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "this is an adapter (LoRA)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_files_of_other_families_are_named_and_do_not_disturb(
    tmp_path: Path, name: str, prefix: str
):
    other = tmp_path / "other.safetensors"
    save_file({f"{prefix}{name}": np.ones(2, "f4")} | single("transformer", prefix), other)
    for path in (other, tmp_path):
        said = refusal(path)
        assert said.startswith(f"{other}: {FAMILIES[name]}")
        assert "use [dev], [schnell], Kontext" in said
    save_file(single("transformer"), tmp_path / "flux1-dev.safetensors")
    assert_reads(tmp_path, "transformer", file=tmp_path / "flux1-dev.safetensors")


@pytest.mark.parametrize(("times", "kind"), [(6, "FLUX.1 Fill"), (2, "FLUX.1 Depth or Canny")])
def test_transformers_that_take_pictures_are_named(tmp_path: Path, times: int, kind: str):
    given = single("transformer")
    given["img_in.weight"] = np.tile(given["img_in.weight"], times)
    fill = tmp_path / "flux1-fill-dev.safetensors"
    save_file(given, fill)
    for path in (fill, tmp_path):
        assert refusal(path).startswith(f"{fill}: this is {kind}, which ")
    assert f"(in_channels = {16 * times}, out_channels = 16)" in refusal(fill)
    save_file(single("transformer"), tmp_path / "flux1-dev.safetensors")
    assert_reads(tmp_path, "transformer")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"_class_name": "ChromaTransformer2DModel"}, "this is Chroma (_class_name 'Chroma"),
        ({"_class_name": "Flux2Transformer2DModel"}, "this is FLUX.2 "),
        ({"_class_name": "SD3Transformer2DModel"}, "this is Stable Diffusion 3 "),
        ({"_class_name": "FluxControlNetModel"}, "this is a ControlNet of FLUX.1 "),
        ({"_class_name": "Unheard"}, "this is another model (_class_name 'Unheard')"),
        ({"in_channels": 384, "out_channels": 64}, "this is FLUX.1 Fill"),
        ({"in_channels": 128, "out_channels": 64}, "this is FLUX.1 Depth or Canny"),
        ({"in_channels": 196, "out_channels": 64}, "this is a model with inputs besides noise"),
        ({"in_channels": "x", "out_channels": []}, "this is a model with inputs besides noise"),
    ],
)
def test_configurations_of_other_families_are_named(folder: Path, change: dict, kind: str):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for path in (folder.parent, folder):
        assert refusal(path).startswith(f"{folder}: {kind}")


@pytest.mark.parametrize(
    ("pipeline", "kind"),
    [
        ("FluxFillPipeline", "FLUX.1 Fill"),
        ("FluxControlPipeline", "FLUX.1 Depth or Canny"),
        ("FluxControlNetPipeline", "a ControlNet of FLUX.1"),
        ("FluxPriorReduxPipeline", "FLUX.1 Redux"),
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("ChromaPipeline", "Chroma"),
        (["x"] * 500, "another model"),
    ],
)
def test_pipelines_of_other_families_are_named(folder: Path, pipeline: str, kind: str):
    (folder.parent / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    assert refusal(folder.parent).startswith(f"{folder.parent}: this is {kind}")


def test_kontext_and_models_with_masks_are_read(folder: Path):
    (folder.parent / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline"}')
    config = json.loads((folder / "config.json").read_text())
    config["_class_name"] = "FluxTransformer2DModelWithMasking"
    (folder / "config.json").write_text(json.dumps(config))
    assert_reads(folder.parent, "transformer")


def test_formats_that_are_not_read_do_not_disturb(tmp_path: Path):
    other = single("transformer") | {"img_in.weight_scale_2": np.ones(1, "f4")}
    save_file(other, tmp_path / "flux1-dev-nvfp4.safetensors")
    for path in (tmp_path, tmp_path / "flux1-dev-nvfp4.safetensors"):
        assert "nvfp4.safetensors: quantised by NVFP4, which is not supported" in refusal(path)
    save_file(single("transformer"), tmp_path / "flux1-dev.safetensors")
    assert_reads(tmp_path, "transformer", file=tmp_path / "flux1-dev.safetensors")


def test_two_models_in_a_file_are_named(tmp_path: Path):
    twice = single("transformer", "model.") | single("transformer", "model_ema.")
    save_file(twice, tmp_path / "twice.safetensors")
    assert "begin with 'model.' and 'model_ema.'" in refusal(tmp_path / "twice.safetensors")


def test_what_takes_the_same_name_twice_is_surplus(tmp_path: Path):
    name = "single_blocks.0.norm.query_norm"
    given = single("transformer")
    save_file(given | {f"{name}.weight": given[f"{name}.scale"]}, tmp_path / "a.safetensors")
    source = open_source(tmp_path, "transformer")
    with pytest.raises(InputError, match=f"1 tensor does not fit: surplus: {name}"):
        to_flax(source.table, source.tensors, abstract_params("transformer", source.config))


def test_shapes_that_tell_no_size_are_named(tmp_path: Path):
    for shape in ((), (0, 4), (3,)):
        given = single("transformer") | {"txt_in.weight": np.ones(shape, "f4")}
        save_file(given, tmp_path / "flux.safetensors")
        assert "txt_in.weight is [" in refusal(tmp_path / "flux.safetensors")


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 100_000, '"' + "9" * 5000, "\xff"])
def test_configurations_that_are_no_objects_are_refused(folder: Path, text: str):
    (folder / "config.json").write_text(text, "latin-1")
    assert "config.json" in refusal(folder.parent)
