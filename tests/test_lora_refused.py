"""Adapter files that are refused: one error that lists every offender, and nothing written."""

import subprocess
import sys

import numpy as np
import pytest
import tiny
from adapters import WIDTH, only, random_layers, small_shapes
from safetensors.numpy import load_file, save_file

from convert.errors import InputError
from convert.lora import main, named_file, read_layers, write_layers
from convert.lora_layers import Pair
from convert.lora_tables import LAYOUTS

QKV = "lora_unet_double_blocks_{}_txt_attn_qkv"
TEXT = ("add_q_proj", "add_k_proj")


def written(folder, layout):
    file = write_layers(folder, layout, only(random_layers(small_shapes()), TEXT))
    return file, dict(load_file(file))


def refused(file, capsys):
    """What the command says of a file; it must write nothing."""
    out = file.parent / "out"
    with pytest.raises(SystemExit) as caught:
        main([str(file), str(out), "--to", "diffusers"])
    assert caught.value.code == 2
    assert not out.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".ckpt"])
def test_pickles_are_refused_by_name(tmp_path, capsys, suffix):
    file = tmp_path / f"adapter{suffix}"
    message = refused(file, capsys)
    assert f"adapter{suffix}" in message
    assert "safetensors.torch.save_file" in message
    with pytest.raises(InputError, match="pickle"):
        named_file(file, "kohya")


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "original"])
def test_offenders_are_counted_and_shown(tmp_path, capsys, layout):
    file, tensors = written(tmp_path, layout)
    ups = [name for name in tensors if "lora_up" in name or "lora_B" in name]
    alphas = [name for name in tensors if name.endswith("alpha")]
    stems = [name.rsplit(".", 1)[0] for name in alphas]
    tensors[ups[0]][0, 0] = np.nan
    tensors[ups[1]][0, 0] = np.inf
    extra = ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", f"{stems[0]}.dora_scale")
    tensors |= dict.fromkeys(extra, np.ones(1, np.float32))
    save_file(tensors, file)
    message = refused(file, capsys)
    assert "4 tensors" in message
    assert any(f"unknown: {name} [1]" in message for name in extra)
    assert "not finite: " in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_alphas_that_mean_no_change_are_refused(tmp_path, capsys, layout, value):
    file, tensors = written(tmp_path, layout)
    alphas = [name for name in tensors if name.endswith("alpha")]
    for name in alphas:
        tensors[name] = np.array(value, np.float32)
    save_file(tensors, file, {"alpha": str(value)})
    message = refused(file, capsys)
    assert f"{len(alphas) or 4} tensors" in message
    assert "it must be a finite number above 0" in message


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "original"])
def test_incomplete_and_misshapen_pairs_are_refused(tmp_path, capsys, layout):
    file, tensors = written(tmp_path, layout)
    downs = [name for name in tensors if "lora_down" in name or "lora_A" in name]
    del tensors[downs[0]]
    tensors[downs[1]] = np.ones((3, WIDTH), np.float32)
    save_file(tensors, file)
    message = refused(file, capsys)
    assert f"missing: {downs[0]}" in message
    assert "misshapen: " in message
    assert "[3, 8] down" in message


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
    assert ("unknown: dual_blocks/attn" if other == "flax" else "mixed layouts") in message


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
    with pytest.raises(InputError, match=r"double_blocks\.0\.txt_attn\.qkv: has a part of"):
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
