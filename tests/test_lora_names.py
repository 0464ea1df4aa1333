"""Names and parts of changes as written by other programs: each file means what its parts mean."""

import json

import ml_dtypes
import numpy as np
import pytest
from helpers.adapters import QUERY, WIDTH, square_tensors
from safetensors.numpy import save_file

from convert.adapters.files import read_layers
from convert.adapters.layers import Full
from convert.lora import main

RNG = np.random.default_rng(0)
SQUARE = (WIDTH, WIDTH)
QKV = ("attn/to_q", "attn/to_k", "attn/to_v")
TEXT_QKV = ("attn/add_q_proj", "attn/add_k_proj", "attn/add_v_proj")
# Names in the original model with their widths, and the layers of the Flax tree.
ORIGINAL = {
    "img_in": ((WIDTH, 4), ("x_embedder",)),
    "txt_in": ((WIDTH, 6), ("context_embedder",)),
    "time_in.in_layer": (SQUARE, ("time_embedder/linear_1",)),
    "time_in.out_layer": (SQUARE, ("time_embedder/linear_2",)),
    "vector_in.in_layer": (SQUARE, ("pooled_embedder/linear_1",)),
    "vector_in.out_layer": (SQUARE, ("pooled_embedder/linear_2",)),
    "guidance_in.in_layer": (SQUARE, ("guidance_embedder/linear_1",)),
    "guidance_in.out_layer": (SQUARE, ("guidance_embedder/linear_2",)),
    "final_layer.linear": ((4, WIDTH), ("proj_out",)),
    "final_layer.adaLN_modulation.1": ((2 * WIDTH, WIDTH), ("norm_out/linear",)),
    "double_blocks.1.img_mod.lin": ((6 * WIDTH, WIDTH), ("dual_blocks/norm1/linear",)),
    "double_blocks.1.txt_mod.lin": ((6 * WIDTH, WIDTH), ("dual_blocks/norm1_context/linear",)),
    "double_blocks.1.img_attn.qkv": ((24, WIDTH), [f"dual_blocks/{name}" for name in QKV]),
    "double_blocks.1.txt_attn.qkv": ((24, WIDTH), [f"dual_blocks/{name}" for name in TEXT_QKV]),
    "double_blocks.1.img_attn.proj": (SQUARE, ("dual_blocks/attn/to_out",)),
    "double_blocks.1.txt_attn.proj": (SQUARE, ("dual_blocks/attn/to_add_out",)),
    "double_blocks.1.img_mlp.0": ((32, WIDTH), ("dual_blocks/ff/linear_1",)),
    "double_blocks.1.img_mlp.2": ((WIDTH, 32), ("dual_blocks/ff/linear_2",)),
    "double_blocks.1.txt_mlp.0": ((32, WIDTH), ("dual_blocks/ff_context/linear_1",)),
    "double_blocks.1.txt_mlp.2": ((WIDTH, 32), ("dual_blocks/ff_context/linear_2",)),
    "single_blocks.1.modulation.lin": ((24, WIDTH), ("single_blocks/norm/linear",)),
    "single_blocks.1.linear1": (
        (56, WIDTH),
        [f"single_blocks/{name}" for name in (*QKV, "proj_mlp")],
    ),
    "single_blocks.1.linear2": ((WIDTH, 40), ("single_blocks/proj_out",)),
}
DIFFUSERS = {
    "x_embedder": ((WIDTH, 4), "x_embedder"),
    "context_embedder": ((WIDTH, 6), "context_embedder"),
    "time_text_embed.timestep_embedder.linear_1": (SQUARE, "time_embedder/linear_1"),
    "time_text_embed.text_embedder.linear_2": (SQUARE, "pooled_embedder/linear_2"),
    "time_text_embed.guidance_embedder.linear_1": (SQUARE, "guidance_embedder/linear_1"),
    "norm_out.linear": ((2 * WIDTH, WIDTH), "norm_out/linear"),
    "proj_out": ((4, WIDTH), "proj_out"),
    "transformer_blocks.1.norm1.linear": ((6 * WIDTH, WIDTH), "dual_blocks/norm1/linear"),
    "transformer_blocks.1.attn.to_q": (SQUARE, "dual_blocks/attn/to_q"),
    "transformer_blocks.1.attn.to_out.0": (SQUARE, "dual_blocks/attn/to_out"),
    "transformer_blocks.1.attn.add_v_proj": (SQUARE, "dual_blocks/attn/add_v_proj"),
    "transformer_blocks.1.ff.net.0.proj": ((32, WIDTH), "dual_blocks/ff/linear_1"),
    "transformer_blocks.1.ff_context.net.2": ((WIDTH, 32), "dual_blocks/ff_context/linear_2"),
    "single_transformer_blocks.1.attn.to_k": (SQUARE, "single_blocks/attn/to_k"),
    "single_transformer_blocks.1.norm.linear": ((24, WIDTH), "single_blocks/norm/linear"),
    "single_transformer_blocks.1.proj_mlp": ((32, WIDTH), "single_blocks/proj_mlp"),
    "single_transformer_blocks.1.proj_out": ((WIDTH, 40), "single_blocks/proj_out"),
}
PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")


def noise(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def flat(name):
    return name.replace(".", "_")


def old_processor(name):
    """Diffusers' names of attention processors, before PEFT."""
    return name.replace("attn.to_", "attn.processor.to_").replace("to_out.0", "to_out")


def changes(layers):
    """Each layer's change of its weight, by place."""
    return {
        place: layer.delta
        if isinstance(layer, Full)
        else float(layer.alpha) / layer.rank * layer.up.astype(float) @ layer.down
        for place, layer in layers.items()
    }


def placed(targets, name, whole):
    """A change of the file's layer, as changes of the model's layers."""
    if "adaLN" in name:
        whole = np.concatenate([whole[WIDTH:], whole[:WIDTH]])
    block = 1 if "blocks" in targets[0] else None
    widths = [4 * WIDTH if target.endswith("mlp") else WIDTH for target in targets]
    parts = np.split(whole, np.cumsum(widths)[:-1]) if len(targets) > 1 else [whole]
    return {(target, block): part for target, part in zip(targets, parts, strict=True)}


def assert_changes(file, wanted):
    found = changes(read_layers(file).layers)
    assert found.keys() == wanted.keys()
    for place, change in wanted.items():
        np.testing.assert_allclose(found[place], change, rtol=1e-5, atol=1e-5, err_msg=str(place))


@pytest.mark.parametrize("ends", [PEFT, KOHYA], ids=["A and B", "down and up"])
@pytest.mark.parametrize(
    ("prefix", "spelled"),
    [
        ("lora_unet_", flat),
        ("lycoris_", flat),
        ("lora_transformer_", flat),
        ("diffusion_model.", str),
        ("model.diffusion_model.", str),
        ("base_model.model.", str),
        ("transformer.", str),
        ("", str),
    ],
)
def test_every_layer_of_the_original_model(tmp_path, prefix, spelled, ends):
    tensors, wanted = {}, {}
    for number, (name, ((outputs, inputs), targets)) in enumerate(ORIGINAL.items()):
        rank, alpha = 1 + number % 3, 1 + number % 4
        down, up = noise(rank, inputs), noise(outputs, rank)
        stem = prefix + spelled(name)
        tensors |= {stem + ends[0]: down, stem + ends[1]: up}
        tensors[f"{stem}.alpha"] = np.array(alpha, np.float32)
        wanted |= placed(targets, name, alpha / rank * up @ down)
    save_file(tensors, tmp_path / "a.safetensors")
    assert_changes(tmp_path / "a.safetensors", wanted)


@pytest.mark.parametrize(
    ("prefix", "spelled", "ends"),
    [
        ("transformer.", str, PEFT),
        ("transformer.", str, KOHYA),
        ("transformer.", str, (".lora.down.weight", ".lora.up.weight")),
        ("transformer.", old_processor, ("_lora.down.weight", "_lora.up.weight")),
        ("", str, (".lora_A.default.weight", ".lora_B.default.weight")),
        ("", str, (".lora_A", ".lora_B")),
        ("base_model.model.", str, (".lora_A.cat.weight", ".lora_B.cat.weight")),
        ("base_model.model.transformer.", str, PEFT),
        ("diffusion_model.", str, PEFT),
        ("lora_unet_", flat, KOHYA),
        ("lora_transformer_", flat, KOHYA),
        ("lycoris_", flat, KOHYA),
    ],
)
def test_layers_by_diffusers_names(tmp_path, prefix, spelled, ends):
    tensors, wanted = {}, {}
    for name, ((outputs, inputs), target) in DIFFUSERS.items():
        down, up = noise(3, inputs), noise(outputs, 3)
        stem = prefix + spelled(name)
        tensors |= {stem + ends[0]: down, stem + ends[1]: up}
        wanted |= placed([target], name, up @ down)
    save_file(tensors, tmp_path / "a.safetensors")
    assert_changes(tmp_path / "a.safetensors", wanted)


def test_onetrainers_numbers_of_joined_layers(tmp_path):
    tensors, wanted = {}, {}
    for joined, targets in (
        ("double_blocks.1.txt_attn.qkv", [f"dual_blocks/{name}" for name in TEXT_QKV]),
        ("single_blocks.1.linear1", ["single_blocks/attn/to_q", "single_blocks/attn/to_k"]),
    ):
        for number, target in enumerate(targets):
            down, up = noise(2, WIDTH), noise(WIDTH, 2)
            stem = f"transformer.{joined}.{number}"
            tensors |= {stem + KOHYA[0]: down, stem + KOHYA[1]: up}
            wanted[target, 1] = up @ down
    save_file(tensors, tmp_path / "a.safetensors")
    assert_changes(tmp_path / "a.safetensors", wanted)


def kron(left, right):
    """The Kronecker product, written out."""
    rows = [np.concatenate([entry * right for entry in row], axis=1) for row in left]
    return np.concatenate(rows)


def lokr(whole_1, whole_2, alpha, rank=2):
    """Factors of a change of [24, 8], and the change."""
    tensors, factors = {}, []
    shapes = ((whole_1, "lokr_w1", (6, 2)), (whole_2, "lokr_w2", (4, 4)))
    for whole, name, (rows, columns) in shapes:
        if whole:
            tensors[name] = factor = noise(rows, columns)
        else:
            left, right = noise(rows, rank), noise(rank, columns)
            tensors |= {f"{name}_a": left, f"{name}_b": right}
            factor = left @ right
        factors.append(factor)
    scale = 1 if whole_1 and whole_2 else alpha / rank
    return tensors, scale * kron(*factors)


def loha(alpha):
    """Factors and change for the entrywise product of two products."""
    a, b, c, d = noise(24, 3), noise(3, WIDTH), noise(24, 3), noise(3, WIDTH)
    named = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    return named, alpha / 3 * (a @ b) * (c @ d)


@pytest.mark.parametrize(
    ("stem", "targets"),
    [
        ("lycoris_single_transformer_blocks_1_norm_linear", ["single_blocks/norm/linear"]),
        ("lora_unet_double_blocks_1_img_attn_qkv", [f"dual_blocks/{name}" for name in QKV]),
        ("lora_transformer_single_transformer_blocks_1_norm_linear", ["single_blocks/norm/linear"]),
        ("transformer.single_transformer_blocks.1.norm.linear", ["single_blocks/norm/linear"]),
        ("diffusion_model.double_blocks.1.img_attn.qkv", [f"dual_blocks/{name}" for name in QKV]),
    ],
)
@pytest.mark.parametrize(
    "kind", ["whole", "second a product", "first a product", "products", "loha", "diff"]
)
def test_lycoris_changes(tmp_path, stem, targets, kind):
    parts, change = {
        "whole": lambda: lokr(True, True, 5),
        "second a product": lambda: lokr(True, False, 5),
        "first a product": lambda: lokr(False, True, 5),
        "products": lambda: lokr(False, False, 5),
        "loha": lambda: loha(5),
        "diff": lambda: (lambda delta: ({"diff": delta}, delta))(noise(24, WIDTH)),
    }[kind]()
    tensors = {f"{stem}.{name}": part for name, part in parts.items()}
    if kind != "diff":
        tensors[f"{stem}.alpha"] = np.array(5, np.float32)
    save_file(tensors, tmp_path / "a.safetensors")
    assert_changes(tmp_path / "a.safetensors", placed(targets, stem, change))


def test_biases_and_magnitudes_go_with_their_rows(tmp_path):
    stems = ("lora_unet_double_blocks_1_img_attn_qkv", "lora_unet_final_layer_adaLN_modulation_1")
    bias, length = noise(24), noise(24, 1)
    swapped = noise(16)
    tensors = {
        f"{stems[0]}.lora_down.weight": noise(2, WIDTH),
        f"{stems[0]}.lora_up.weight": noise(24, 2),
        f"{stems[0]}.diff_b": bias,
        f"{stems[0]}.dora_scale": length,
        f"{stems[1]}.diff": noise(16, WIDTH),
        f"{stems[1]}.diff_b": swapped,
        f"{stems[1]}.dora_scale": swapped[:, None],
        **{
            f"lora_unet_double_blocks_1_txt_attn_qkv.{k}": v
            for k, v in lokr(True, True, 1)[0].items()
        },
        "lora_unet_double_blocks_1_txt_attn_qkv.dora_scale": length,
    }
    save_file(tensors, tmp_path / "a.safetensors")
    layers = read_layers(tmp_path / "a.safetensors").layers
    for number, name in enumerate(QKV):
        layer = layers[f"dual_blocks/{name}", 1]
        rows = slice(WIDTH * number, WIDTH * (number + 1))
        np.testing.assert_array_equal(layer.bias, bias[rows])
        np.testing.assert_array_equal(layer.magnitude, length[rows, 0])
    for number, name in enumerate(TEXT_QKV):
        rows = slice(WIDTH * number, WIDTH * (number + 1))
        np.testing.assert_array_equal(layers[f"dual_blocks/{name}", 1].magnitude, length[rows, 0])
    expected = np.concatenate([swapped[WIDTH:], swapped[:WIDTH]])
    np.testing.assert_array_equal(layers["norm_out/linear", None].bias, expected)
    np.testing.assert_array_equal(layers["norm_out/linear", None].magnitude, expected)


@pytest.mark.parametrize(
    ("stem", "outputs", "inputs"),
    [
        ("diffusion_model.double_blocks.1.img_mlp.2", WIDTH, 4 * WIDTH),
        ("diffusion_model.double_blocks.1.txt_mod.lin", 6 * WIDTH, WIDTH),
        ("diffusion_model.double_blocks.1.img_attn.proj", WIDTH, WIDTH),
        ("diffusion_model.single_blocks.1.linear2", WIDTH, 5 * WIDTH),
        ("transformer.single_transformer_blocks.1.proj_mlp", 4 * WIDTH, WIDTH),
        ("transformer.norm_out.linear", 2 * WIDTH, WIDTH),
    ],
)
def test_a_bias_alone_is_a_change(tmp_path, stem, outputs, inputs):
    bias = noise(outputs)
    save_file({f"{stem}.diff_b": bias}, tmp_path / "a.safetensors")
    (layer,) = read_layers(tmp_path / "a.safetensors").layers.values()
    assert (len(layer.up), layer.down.shape[1]) == (outputs, inputs)
    assert not layer.up.any()
    np.testing.assert_array_equal(layer.bias, bias)


def test_a_joined_bias_alone_comes_apart(tmp_path):
    bias = noise(7 * WIDTH)
    save_file({"diffusion_model.single_blocks.1.linear1.diff_b": bias}, tmp_path / "a.safetensors")
    layers = read_layers(tmp_path / "a.safetensors").layers
    assert {layer.down.shape[1] for layer in layers.values()} == {WIDTH}
    np.testing.assert_array_equal(layers["single_blocks/proj_mlp", 1].bias, bias[3 * WIDTH :])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_an_alpha_below_0_is_a_change_the_other_way(tmp_path, dtype):
    tensors = {name: each.astype(dtype) for name, each in square_tensors(RNG, alpha=-3).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    down, up = (tensors[f"{QUERY.format(0)}.lora_{x}.weight"].astype(float) for x in "AB")
    assert_changes(tmp_path / "a.safetensors", {("dual_blocks/attn/to_q", 0): -1.5 * up @ down})
    # Diffusers' reader of kohya's layout does not terminate for an alpha below 0.
    main([str(tmp_path / "a.safetensors"), str(tmp_path / "k.sft"), "--to", "kohya"])
    (layer,) = read_layers(tmp_path / "k.sft").layers.values()
    assert layer.alpha == 3
    np.testing.assert_array_equal(layer.up.astype(float), -up)


def test_dora_at_alpha_0_still_sets_lengths(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(
        square_tensors(RNG, alpha=0) | {f"{QUERY.format(0)}.dora_scale": noise(WIDTH, 1)}, file
    )
    (layer,) = read_layers(file).layers.values()
    assert not layer.up.any()
    assert layer.magnitude is not None
    assert layer.magnitude.shape == (WIDTH,)


def test_rslora_is_written_as_an_alpha(tmp_path):
    file = tmp_path / "a.safetensors"
    config = {"r": 2, "lora_alpha": 3, "use_rslora": True}
    save_file(square_tensors(RNG), file, {"lora_adapter_metadata": json.dumps(config)})
    before = changes(read_layers(file).layers)
    main([str(file), str(tmp_path / "k.safetensors"), "--to", "kohya"])
    assert_changes(tmp_path / "k.safetensors", before)
    assert before["dual_blocks/attn/to_q", 0] == pytest.approx(
        3
        / 2**0.5
        * read_layers(file).layers["dual_blocks/attn/to_q", 0].up
        @ read_layers(file).layers["dual_blocks/attn/to_q", 0].down,
        rel=1e-6,
    )


def test_a_folder_with_one_file_of_any_name_is_read(tmp_path):
    save_file(square_tensors(RNG), tmp_path / "my-lora.sft")
    assert len(read_layers(tmp_path).layers) == 1
