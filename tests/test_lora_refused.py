"""Adapter files that are refused: a one-line message about the fault, and nothing is written."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import tiny
from helpers.adapters import WIDTH, only, random_layers, small_shapes
from safetensors.numpy import load_file, save_file

from convert.adapters.files import named_file, read_layers, write_layers
from convert.adapters.layers import Pair
from convert.adapters.names import LAYOUTS
from convert.lora import main
from flux_jax.errors import InputError

QKV = "lora_unet_double_blocks_{}_txt_attn_qkv"
TEXT = ("add_q_proj", "add_k_proj")


def written(folder, layout):
    file = write_layers(folder, layout, only(random_layers(small_shapes()), TEXT))
    return file, dict(load_file(file))


def refused(file, capsys):
    """The command's message about a file; it must write nothing."""
    out = file.parent / "out"
    with pytest.raises(SystemExit) as caught:
        main([str(file), str(out), "--to", "diffusers"])
    assert caught.value.code == 2
    assert not out.exists()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    # Without the folder, which is long in tests.
    assert len(message.replace(str(file.parent), "")) <= 400
    return message


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".ckpt"])
def test_pickles_are_refused_by_name(tmp_path, capsys, suffix):
    file = tmp_path / f"adapter{suffix}"
    file.touch()
    message = refused(file, capsys)
    assert f"adapter{suffix}" in message
    assert "safetensors.torch.save_file" in message
    with pytest.raises(InputError, match="pickle"):
        named_file(file, "kohya")


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "original"])
def test_offenders_are_counted_and_three_shown(tmp_path, capsys, layout):
    file = write_layers(tmp_path, layout, only(random_layers(small_shapes()), ("attn",)))
    tensors = dict(load_file(file))
    for name in (name for name in tensors if "lora_up" in name or "lora_B" in name):
        tensors[name][0, 0] = np.nan
    save_file(tensors, file)
    message = refused(file, capsys)
    layers = sum("lora_up" in name or "lora_B" in name for name in tensors)
    assert layers > 3
    assert f"{layers} layers cannot be used" in message
    shown = message.count("has infinities or NaN in up")
    assert 1 <= shown <= 3
    assert f"and {layers - shown} more" in message
    assert message.endswith("saved with NaN or infinities in it: fetch it again\n")


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_alphas_that_mean_no_change_are_refused(tmp_path, capsys, layout, value):
    file, tensors = written(tmp_path, layout)
    alphas = [name for name in tensors if name.endswith("alpha")]
    for name in alphas:
        tensors[name] = np.array(value, np.float32)
    save_file(tensors, file, {"alpha": str(value)})
    message = refused(file, capsys)
    if value == 0:
        assert "changes nothing" in message
    else:
        assert f"has alpha = {float(value)}; it must be a finite number" in message
        assert "fetch it again" in message


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "original"])
def test_incomplete_and_misshapen_pairs_are_refused(tmp_path, capsys, layout):
    file, tensors = written(tmp_path, layout)
    downs = [name for name in tensors if "lora_down" in name or "lora_A" in name]
    del tensors[downs[0]]
    tensors[downs[1]] = np.ones((3, WIDTH), np.float32)
    save_file(tensors, file)
    message = refused(file, capsys)
    assert "2 layers cannot be used" in message
    assert f"{downs[0].split('.lora')[0]} has no down matrix" in message
    assert "is [3, 8] down" in message


def test_a_joined_pair_of_another_width_is_refused(tmp_path, capsys):
    file, tensors = written(tmp_path, "kohya")
    name = f"{QKV.format(1)}.lora_up.weight"
    tensors[name] = tensors[name][1:]
    save_file(tensors, file)
    assert f"{QKV.format(1)} has 23 outputs, expected 24" in refused(file, capsys)


@pytest.mark.parametrize("other", ["diffusers", "original", "flax", "parts"])
def test_mixed_layouts_are_refused(tmp_path, capsys, other):
    file, tensors = written(tmp_path, "kohya")
    if other == "parts":
        names = [name for name in tensors if QKV.format(1) in name]
        more = {n.replace("down", "A").replace("up", "B"): tensors.pop(n) for n in names}
    else:
        more = written(tmp_path / "other", other)[1]
    save_file(tensors | more, file)
    message = refused(file, capsys)
    told = f"{len(tensors)} keys belong to an adapter but these do not: dual_blocks/attn"
    assert (told if other == "flax" else "mixed layouts") in message


def test_integers_are_no_weights(tmp_path, capsys):
    file, tensors = written(tmp_path, "diffusers")
    name = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {name: np.ones((4, WIDTH), np.int8)}, file)
    assert "has down of int8, expected floats" in refused(file, capsys)


def test_a_damaged_word_about_joined_layers_is_refused(tmp_path, capsys):
    file, tensors = written(tmp_path, "kohya")
    for told in (
        "[",
        "[]",
        '{"a": [{"rank": 1}]}',
        '{"a": [{"rank": 1, "alpha": 1, "types": [1]}]}',
    ):
        save_file(tensors, file, {"joined_layers": told})
        assert "joined_layers in the header is damaged" in refused(file, capsys)


def test_layers_that_cannot_be_joined_are_refused(tmp_path):
    layers = only(random_layers(small_shapes(), alphas=(8, 10), types=(np.float64,)), TEXT)
    with pytest.raises(InputError, match="no type is wide enough"):
        write_layers(tmp_path / "new", "kohya", layers)
    place = "dual_blocks/attn/add_q_proj", 0
    narrow = Pair(layers[place].down[:, 1:], layers[place].up, layers[place].alpha)
    with pytest.raises(InputError, match=r"double_blocks\.0\.txt_attn\.qkv has a part of"):
        write_layers(tmp_path / "new", "kohya", layers | {place: narrow})
    assert not (tmp_path / "new").exists()


def test_the_command_writes_every_layout_and_knows_no_other(tmp_path):
    file, _ = written(tmp_path, "diffusers")

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "convert.lora", *map(str, arguments)],
            cwd=tiny.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    done = command(file, tmp_path / "new", "--to", "kohya")
    assert done.stdout.strip() == str(tmp_path / "new" / "kohya_lora.safetensors")
    assert read_layers(tmp_path / "new").layout == "kohya"
    other = command(file, tmp_path / "other", "--to", "xlabs")
    assert other.returncode == 2
    assert "to = 'xlabs' is unknown; choose from diffusers, kohya, original, flax" in other.stderr


SDXL = ("input_blocks_4_1", "output_blocks_3_1", "middle_block_1")
KINDS = {
    "sdxl": (
        [f"lora_unet_{a}_transformer_blocks_{i}_attn2_to_q" for a in SDXL for i in range(10)],
        "another model, SDXL or Stable Diffusion 1.5",
    ),
    "sd 1.5 of peft": (["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], "SDXL or Stable"),
    "sd3": (["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"], "another model, SD3"),
    "wan": (["diffusion_model.blocks.0.cross_attn.k.lora_A.weight"], "another model, Wan"),
    "wan of musubi": (["lora_unet_blocks_0_self_attn_q.lora_down.weight"], "another model, Wan"),
    "qwen": (
        ["transformer.transformer_blocks.0.img_mlp.net.0.proj.lora_A.weight"],
        "another model, Qwen-Image",
    ),
    "hunyuan": (
        ["lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight"],
        "another model, Hunyuan Video",
    ),
    "chroma": (
        ["diffusion_model.distilled_guidance_layer.in_proj.lora_A.weight"],
        "another model, Chroma",
    ),
    "flux 2": (
        ["transformer.double_stream_modulation_img.linear.lora_A.weight"],
        "another model, FLUX.2",
    ),
    "flux 2, single": (
        ["transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight"],
        "another model, FLUX.2",
    ),
    "language model": (
        ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"],
        "of a language model",
    ),
    "ip adapter": (
        ["double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight", "image_proj.weight"],
        "an IP adapter",
    ),
    "controlnet": (["controlnet_blocks.0.weight", "transformer_blocks.0.x.weight"], "a ControlNet"),
    "model": (["double_blocks.0.img_attn.qkv.weight", "img_in.bias"], "a whole model"),
    "diffusers' model": (["transformer_blocks.0.attn.to_q.weight"], "a whole model"),
    "vae": (["encoder.mid_block.attentions.0.to_k.weight"], "a VAE"),
    "textual inversion": (["clip_l", "t5"], "a textual inversion"),
    "gibberish": (["a.b.c"], "no known adapter layout"),
    "text encoder": (["lora_te1_text_model_x.alpha"], "contains only 1 tensor of the text encoder"),
    "none": ([], "holds no tensor"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_adapter_of_flux_1_is_named(tmp_path, capsys, kind):
    names, told = KINDS[kind]
    file = tmp_path / "a.safetensors"
    save_file({name: np.ones((2, 2), np.float32) for name in names}, file)
    message = refused(file, capsys)
    assert told in message
    if len(names) > 3:
        shown = sum(name in message for name in names)
        assert 1 <= shown <= 3
        assert f"and {len(names) - shown} more" in message
    elif names and "text_model" not in names[0]:
        assert names[0] in message


STEM = "diffusion_model.double_blocks.0.img_attn.proj"
MLP = STEM.replace("img", "txt")
BESIDES = {
    f"{STEM}.set_weight": "weights that replace the model's",
    f"{STEM}.lora_mid.weight": "convolutions' factors",
    f"{STEM}.oft_blocks": "OFT, BOFT or VeRA",
    f"{STEM}.a1.weight": "GLoRA or IA3",
    f"{STEM}.lora_A.bias": "biases between the matrices",
    f"{STEM}.weight": "full weights",
    "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": "one that changes norms",
    "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale": "a control LoRA of FLUX.1",
    "diffusion_model.double_blocks.0.nothing.lora_A.weight": "2 keys belong to an adapter but",
}


@pytest.mark.parametrize("name", BESIDES)
def test_what_is_not_read_of_an_adapter_is_named(tmp_path, capsys, name):
    ones = np.ones((WIDTH, WIDTH), np.float32)
    pair = {f"{STEM}.lora_A.weight": ones, f"{STEM}.lora_B.weight": ones}
    save_file(pair | {name: ones}, tmp_path / "a.safetensors")
    message = refused(tmp_path / "a.safetensors", capsys)
    assert BESIDES[name] in message
    assert name in message


def test_one_key_and_one_layer_are_no_plurals(tmp_path, capsys):
    file, ones = tmp_path / "a.safetensors", np.ones((WIDTH, WIDTH), np.float32)
    save_file({f"{STEM}.lora_A.weight": ones, "other": ones}, file)
    assert "1 key belongs to an adapter but these do not: other" in refused(file, capsys)
    pair = {f"{STEM}.lora_A.weight": ones, f"{STEM}.lora_B.weight": ones}
    save_file(pair | {f"{STEM}.alpha": np.zeros((), np.float32)}, file)
    assert "changes nothing: its only layer has an alpha of 0" in refused(file, capsys)
    zero = {f"{stem}.alpha": np.zeros((), np.float32) for stem in (STEM, MLP)}
    other = {name.replace(STEM, MLP): tensor for name, tensor in pair.items()}
    save_file(pair | other | zero, file)
    assert "changes nothing: all 2 layers have an alpha of 0" in refused(file, capsys)


PARTS = {
    "both": ({"lora_A.weight": (2, 8), "lora_B.weight": (8, 2), "diff": (8, 8)}, "has both diff"),
    "half a lokr": ({"lokr_w1": (2, 2)}, "(LoKr) has no lokr_w2"),
    "ranks of a lokr": (
        {"lokr_w1_a": (2, 3), "lokr_w1_b": (3, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)},
        "has factors of rank 3 and 2",
    ),
    "no product": ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 4)}, "no product"),
    "a loha of two shapes": (
        {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 4)},
        "has products of [8, 8] and [8, 4]",
    ),
    "a convolution": ({"lokr_w1": (2, 2), "lokr_w2": (4, 4, 3, 3)}, "of shape [4, 4, 3, 3]"),
    "lengths of inputs": (
        {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2), "dora_scale": (1, 8)},
        "(DoRA) has DoRA's magnitudes as [1, 8]",
    ),
    "lengths alone": ({"dora_scale": (8, 1)}, "has magnitude and no matrices"),
    "a short bias": (
        {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2), "lora_B.bias": (7,)},
        "has a bias of 7 for 8 outputs",
    ),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_that_make_no_change_are_refused(tmp_path, capsys, kind):
    shapes, told = PARTS[kind]
    tensors = {f"{STEM}.{part}": np.ones(shape, np.float32) for part, shape in shapes.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert told in refused(tmp_path / "a.safetensors", capsys)


@pytest.mark.parametrize(("name", "outputs"), [("single_blocks.0.linear1", 72), ("img_mlp.0", 48)])
def test_flux_2_is_known_by_its_widths(tmp_path, capsys, name, outputs):
    stem = name if "single" in name else f"double_blocks.0.{name}"
    ones = {"lora_A": np.ones((2, WIDTH), "f4"), "lora_B": np.ones((outputs, 2), "f4")}
    tensors = {f"diffusion_model.{stem}.{part}.weight": each for part, each in ones.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert f"FLUX.2: diffusion_model.{stem} has {outputs}" in refused(
        tmp_path / "a.safetensors", capsys
    )


def test_two_adapters_and_a_layer_changed_twice_are_refused(tmp_path, capsys):
    stem = "transformer_blocks.0.attn.to_q"
    ones = np.ones((WIDTH, WIDTH), np.float32)
    two = {f"{stem}.lora_{x}.{name}.weight": ones for x in "AB" for name in ("cat", "dog")}
    save_file(two, tmp_path / "a.safetensors")
    assert "mixed adapters" in refused(tmp_path / "a.safetensors", capsys)
    twice = {}
    for name, rows in (("qkv", 3 * WIDTH), ("qkv.0", WIDTH)):
        layer = f"diffusion_model.double_blocks.0.img_attn.{name}"
        twice[f"{layer}.lora_A.weight"] = ones
        twice[f"{layer}.lora_B.weight"] = np.ones((rows, WIDTH), np.float32)
    save_file(twice, tmp_path / "a.safetensors")
    assert "is changed twice" in refused(tmp_path / "a.safetensors", capsys)


CONFIGS = {
    "peft_type": ({"peft_type": "OFT"}, "peft_type = 'OFT' is not supported"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
    "dora": ({"use_dora": True}, "use_dora is set but no layer has magnitudes"),
    "damaged": ({"lora_alpha": "x"}, "is damaged"),
}


@pytest.mark.parametrize("where", ["header", "folder"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations_that_cannot_be_followed_are_refused(tmp_path, capsys, kind, where):
    config, told = CONFIGS[kind]
    ones = np.ones((WIDTH, WIDTH), np.float32)
    tensors = {f"transformer_blocks.0.attn.to_q.lora_{x}.weight": ones for x in "AB"}
    file = tmp_path / "adapter_model.safetensors"
    text = json.dumps(config)
    save_file(tensors, file, {"lora_adapter_metadata": text} if where == "header" else {})
    if where == "folder":
        (tmp_path / "adapter_config.json").write_text(text)
    assert told in refused(file, capsys)


CONTENTS = {
    "empty": (b"", "is empty"),
    "pickle": (b"PK\x03\x04" + bytes(80), "is a pickle"),
    "old pickle": (b"\x80\x02\x8a\nl\xfc\x9cF" + bytes(80), "is a pickle"),
    "gguf": (b"GGUF\x03" + bytes(80), "is a GGUF file"),
    "page": (b"<!DOCTYPE html><html>" + bytes(80), "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    "cut": (b"\x80" + bytes(7) + b"{", "truncated"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_contents_that_are_no_safetensors_are_named(tmp_path, capsys, kind):
    content, told = CONTENTS[kind]
    (tmp_path / "a.safetensors").write_bytes(content)
    assert told in refused(tmp_path / "a.safetensors", capsys)


def test_folders_with_several_files_or_with_pickles_are_refused(tmp_path, capsys):
    (tmp_path / "several").mkdir()
    for name in ("one.safetensors", "two.safetensors"):
        save_file({"a": np.ones(1, np.float32)}, tmp_path / "several" / name)
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "adapter_model.bin").write_bytes(b"PK")
    assert "contains several files: one.safetensors, two.safetensors" in refused(
        tmp_path / "several", capsys
    )
    assert "adapter_model.bin: a .bin file is a pickle" in refused(tmp_path / "pickles", capsys)
