"""Full differences, biases and DoRA in each layout, and the notes about unsupported ones."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.adapters import WIDTH, assert_same, only, random_layers, small_shapes
from safetensors.numpy import load_file

from convert.adapters.files import read_layers, write_layers
from convert.adapters.layers import Full, Pair
from convert.lora import main
from flux_jax.errors import InputError

RNG = np.random.default_rng(0)
QKV = ("dual_blocks/attn/to_q", "dual_blocks/attn/to_k", "dual_blocks/attn/to_v")
OUT = "dual_blocks/attn/to_out"


def noise(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def pair(bias=None, magnitude=None):
    return Pair(noise(2, WIDTH), noise(WIDTH, 2), np.array(3, np.float32), bias, magnitude)


def product(layer):
    if isinstance(layer, Full):
        return layer.delta
    return float(layer.alpha) / layer.rank * layer.up @ layer.down


def assert_same_changes(one, other):
    """Assert equal changes, in whatever form."""
    for place in one.keys() | other.keys():
        if place not in one:
            assert not product(other[place]).any()
            continue
        np.testing.assert_allclose(product(one[place]), product(other[place]), rtol=1e-5, atol=1e-6)
        for name in ("bias", "magnitude"):
            first, second = (getattr(layers[place], name, None) for layers in (one, other))
            zeros = np.zeros(WIDTH)
            first, second = (zeros if each is None else each for each in (first, second))
            np.testing.assert_allclose(first, second, rtol=1e-6, err_msg=f"{place} {name}")


def test_the_original_layout_holds_differences_and_biases(tmp_path):
    layers = {
        (QKV[0], 0): Full(noise(WIDTH, WIDTH)),
        (QKV[1], 0): pair(bias=noise(WIDTH)),
        (OUT, 0): Full(noise(WIDTH, WIDTH), noise(WIDTH)),
        (OUT, 1): pair(bias=noise(WIDTH)),
        ("norm_out/linear", None): Full(noise(2 * WIDTH, WIDTH), noise(2 * WIDTH)),
    }
    file = write_layers(tmp_path / "a.safetensors", "original", layers)
    tensors = load_file(file)
    stem = "diffusion_model.double_blocks.0.img_attn"
    assert tensors[f"{stem}.qkv.diff"].shape == (3 * WIDTH, WIDTH)
    np.testing.assert_array_equal(tensors[f"{stem}.proj.diff"], layers[OUT, 0].delta)
    np.testing.assert_array_equal(tensors[f"{stem}.proj.diff_b"], layers[OUT, 0].bias)
    last = tensors["diffusion_model.final_layer.adaLN_modulation.1.diff"]
    delta = layers["norm_out/linear", None].delta
    np.testing.assert_array_equal(last, np.concatenate([delta[WIDTH:], delta[:WIDTH]]))
    found = read_layers(file).layers
    assert_same_changes(layers, found)
    again = write_layers(tmp_path / "b.safetensors", "original", found)
    assert again.read_bytes() == file.read_bytes()


def test_biases_of_joined_pairs_come_back(tmp_path):
    layers = {(QKV[0], 0): pair(), (QKV[2], 0): pair(bias=noise(WIDTH)), (OUT, 0): pair()}
    file = write_layers(tmp_path / "a.safetensors", "original", layers)
    assert_same_changes(layers, read_layers(file).layers)
    file = write_layers(tmp_path / "b.safetensors", "diffusers", layers)
    assert_same_changes(layers, read_layers(file).layers)


DORA = {(QKV[0], 0): pair(magnitude=noise(WIDTH))}
FULL = {(QKV[0], 0): Full(noise(WIDTH, WIDTH))}
BIAS = {(QKV[0], 0): pair(bias=noise(WIDTH))}
REFUSED = {
    "dora in kohya": ("kohya", DORA, "use --to diffusers"),
    "dora in original": ("original", DORA, "use --to diffusers"),
    "dora on some": ("diffusers", DORA | {(OUT, 0): pair()}, "on some layers only"),
    "full in kohya": ("kohya", FULL, "use --to original"),
    "full in diffusers": ("diffusers", FULL, "use --to original"),
    "bias in kohya": ("kohya", BIAS, "use --to original (ComfyUI) or --to diffusers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_layouts_refuse_what_they_do_not_hold(tmp_path, kind):
    layout, layers, told = REFUSED[kind]
    with pytest.raises(InputError) as caught:
        write_layers(tmp_path / "new", layout, layers)
    message = str(caught.value)
    assert told in message
    assert f"layout {layout} does not support" in message
    assert "convert.merge" in message
    assert len(message.replace(str(tmp_path), "")) <= 400
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layout", ["kohya", "original"])
def test_a_line_says_what_diffusers_will_not_apply(tmp_path, capsys, layout):
    layers = only(random_layers(small_shapes()), ("embedder", "to_q", "proj_out"))
    lost = [place for place in layers if place[1] is None]
    source = write_layers(tmp_path / "a.safetensors", "diffusers", layers)
    main([str(source), str(tmp_path / "b.sft"), "--to", layout])
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "b.sft")
    assert said.err.count("\n") == 1
    assert f"diffusers does not apply {len(lost)} layers of this file" in said.err
    assert "use --to diffusers" in said.err
    assert len(said.err.replace(str(tmp_path), "")) <= 400
    assert_same(read_layers(tmp_path / "b.sft").layers, layers)
    inner = write_layers(tmp_path / "c.safetensors", "diffusers", only(layers, ("to_q",)))
    main([str(inner), str(tmp_path / "d.safetensors"), "--to", layout])
    assert not capsys.readouterr().err


def test_a_line_says_where_diffusers_takes_another_alpha(tmp_path, capsys):
    layers = only(random_layers(small_shapes()), ("proj_out",))
    last = layers["proj_out", None]
    for alpha, lines in ((8, 0), (5, 1)):
        given = layers | {("proj_out", None): replace(last, alpha=np.array(alpha, np.float32))}
        source = write_layers(tmp_path / f"{alpha}.safetensors", "original", given)
        main([str(source), str(tmp_path / f"new-{alpha}.safetensors")])
        said = capsys.readouterr().err
        assert said.count("\n") == lines
        assert ("may give the alpha of proj_out, 5.0" in said) == bool(lines)
