"""The report of `convert.inspect` on an adapter agrees with its full product."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import tiny
from helpers.adapters import WIDTH, only, random_layers, small_shapes
from rich.console import Console
from safetensors.numpy import save_file

from convert.adapters.files import LayerFile, read_layers, write_layers
from convert.adapters.layers import Full, Pair
from convert.inspect import header_table, lines, singular_values, target_table, unknown_blocks

TEXT = ("add_q_proj", "add_k_proj")


def product(pair):
    scale = float(pair.alpha) / pair.rank
    return scale * pair.up.astype(np.float64) @ pair.down.astype(np.float64)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_norms_and_singular_values_are_those_of_the_product(dtype):
    layers = random_layers(small_shapes(), ranks=(1, 3), alphas=(1, 6), types=(dtype,))
    for pair in layers.values():
        wanted = np.linalg.svd(product(pair), compute_uv=False)[: pair.rank]
        np.testing.assert_allclose(singular_values(pair), wanted, rtol=1e-6)
    for line in lines(LayerFile("diffusers", layers, {})):
        pairs = [pair for (target, _), pair in layers.items() if target == line.target]
        wanted = np.sqrt(sum((product(pair) ** 2).sum() for pair in pairs))
        np.testing.assert_allclose(line.norm, wanted, rtol=1e-6)
        assert line.blocks == len(pairs)
        assert line.types == (np.dtype(dtype).name,)
        assert line.ranks == tuple(sorted({pair.rank for pair in pairs}))


def test_rank_in_use_leaves_out_what_is_under_a_hundredth():
    directions = np.eye(WIDTH, dtype=np.float32)

    def pair(*sizes):
        return Pair(
            directions[: len(sizes)],
            directions[:, : len(sizes)] * np.array(sizes, np.float32),
            np.array(3, np.float32),
        )

    target = "dual_blocks/attn/to_q"
    layers = {
        (target, 0): pair(5, 0.06, 0.04, 0),
        (target, 1): pair(1, 1, 1, 0.5),
        ("single_blocks/proj_out", 0): pair(0, 0),
    }
    first, second = lines(LayerFile("diffusers", layers, {}))
    assert (first.used, second.used) == ((2, 4), (0, 0))
    assert second.norm == 0


def inspect(file):
    return subprocess.run(
        [sys.executable, "-m", "convert.inspect", str(file)],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "160", "PATH": "", "JAX_PLATFORMS": "cpu"},
    )


def test_the_command_shows_header_and_targets(tmp_path):
    layers = only(random_layers(small_shapes(), alphas=(6,)), TEXT)
    metadata = {"concept": "cat [b]", "base_model": "models/tiny", "method": "EraseAnything"}
    file = write_layers(tmp_path, "kohya", layers, metadata)
    shown = inspect(file)
    assert shown.returncode == 0, shown.stderr
    for word in (*metadata, *metadata.values(), "kohya", "float32"):
        assert word in shown.stdout
    norms = {line.target: f"{line.norm:.4g}" for line in lines(read_layers(file))}
    for name in TEXT:
        (row,) = (row for row in shown.stdout.splitlines() if f"attn/{name} " in row)
        cells = [cell.strip() for cell in row.split("│")[1:-1]]
        target = f"dual_blocks/attn/{name}"
        assert cells == [target, "8 -> 8", "2", "4", "6.0", norms[target], "4"]


def test_nothing_is_cut_off_on_a_narrow_screen():
    rows = lines(LayerFile("diffusers", random_layers(small_shapes(), ranks=(1, 3)), {}))
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(target_table(rows))
    assert "…" not in console.export_text()


def test_the_command_on_a_missing_file_exits_with_2(tmp_path):
    shown = inspect(tmp_path / "nowhere.safetensors")
    assert shown.returncode == 2
    assert "nowhere.safetensors' does not exist; check the path" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_differences_biases_and_dora_have_lines_of_their_own():
    rng = np.random.default_rng(0)
    delta, bias = rng.normal(size=(WIDTH, WIDTH)).astype("f4"), np.ones(WIDTH, np.float32)
    (pair,) = only(random_layers({("dual_blocks/attn/to_k", 0): (WIDTH, WIDTH)}), ("",)).values()
    layers = {
        ("dual_blocks/attn/to_q", 0): Full(delta, bias),
        ("dual_blocks/attn/to_q", 1): pair,
        ("dual_blocks/attn/to_k", 0): replace(pair, magnitude=bias),
        ("dual_blocks/attn/to_v", 0): pair,
    }
    first, second, third = rows = lines(LayerFile("original", layers, {}))
    wanted = np.sqrt((product(pair) ** 2).sum() + (delta.astype(float) ** 2).sum())
    np.testing.assert_allclose(first.norm, wanted, rtol=1e-6)
    assert (first.ranks, first.used, first.blocks) == ((4,), (4, 4), 2)
    assert first.besides == ("full", "bias")
    assert (second.besides, third.besides) == (("DoRA",), ())
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(target_table(rows))
    shown = {
        row.split("│")[1].strip(): row for row in console.export_text().splitlines() if "│" in row
    }
    cells = [cell.strip() for cell in shown["dual_blocks/attn/to_q"].split("│")[1:-1]]
    assert cells[3] == "4, full"
    assert cells[-1] == "bias"
    assert shown["dual_blocks/attn/to_k"].split("│")[-2].strip() == "DoRA"


def test_a_file_of_differences_alone_is_shown():
    layers = {("dual_blocks/attn/to_q", 0): Full(np.ones((WIDTH, WIDTH), np.float32))}
    found = LayerFile("original", layers, {})
    (row,) = lines(found)
    assert (row.norm, row.ranks, row.used) == (WIDTH, (), None)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(header_table(Path("a.safetensors"), found, [row]), target_table([row]))
    assert "full" in console.export_text()


def test_long_entries_of_the_header_are_cut():
    found = LayerFile("kohya", {}, {"ss_tag_frequency": '{"cat": 1}' * 3000, "short": "word"})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(header_table(Path("a.safetensors"), found, []))
    shown = console.export_text()
    assert shown.count("\n") < 20
    assert "ss_tag_frequency" in shown
    assert "…" in shown
    assert "word" in shown


RNG = np.random.default_rng(0)
QUERY = "transformer_blocks_0_attn_to_q"
HALVES = {"lora_down.weight": (2, WIDTH), "lora_up.weight": (WIDTH, 2)}
LOKR = {"lokr_w1": (2, 2), "lokr_w2": (4, 4)}
HADA = {f"hada_w{n}_{half}": shape for n in "12" for half, shape in (("a", (8, 2)), ("b", (2, 8)))}


def saved(file, stem, parts, **more):
    tensors = {f"{stem}.{part}": RNG.normal(size=shape) for part, shape in parts.items()}
    tensors |= {f"{stem}.{part}": np.array(value) for part, value in more.items()}
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, file)
    return file


def cells_of(shown, name):
    row = next(row for row in shown.stdout.splitlines() if "│" in row and f"{name} " in row)
    return [cell.strip() for cell in row.split("│")[1:-1]]


@pytest.mark.parametrize("alpha", [-4.0, 4.0])
def test_an_alpha_has_the_files_sign(tmp_path, alpha):
    shown = inspect(saved(tmp_path / "a.safetensors", f"lora_unet_{QUERY}", HALVES, alpha=alpha))
    assert cells_of(shown, "alpha") == ["alpha", str(alpha)]
    assert cells_of(shown, "dual_blocks/attn/to_q")[4] == str(alpha)


def test_an_alpha_of_the_flax_layout_has_its_sign(tmp_path):
    layers = only(random_layers(small_shapes(), alphas=(6,)), TEXT)
    negative = {
        place: replace(pair, alpha=np.asarray(-pair.alpha)) for place, pair in layers.items()
    }
    (row, _) = lines(read_layers(write_layers(tmp_path, "flax", negative)))
    assert row.alphas == ("-6.0",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefix", "parts", "layout"),
    [
        (
            "lycoris_",
            LOKR,
            "LyCORIS (LoKr), layers named as in diffusers, with underscores",
        ),
        ("lora_unet_", HADA, "LyCORIS (LoHa), layers named as in diffusers, with underscores"),
        ("lycoris_", HALVES, "LyCORIS (LoRA), layers named as in diffusers, with underscores"),
        ("lora_unet_", HALVES, "diffusers, with underscores for dots"),
    ],
)
def test_lycoris_is_called_so(tmp_path, prefix, parts, layout):
    shown = inspect(saved(tmp_path / "a.safetensors", prefix + QUERY, parts))
    assert cells_of(shown, "layout")[1].startswith(layout)


def test_dora_does_not_hide_what_it_is_of(tmp_path):
    parts = {"dora_scale": (WIDTH,), **LOKR}
    found = read_layers(saved(tmp_path / "a.safetensors", f"lycoris_{QUERY}", parts))
    assert found.described.startswith("LyCORIS (LoKr)")


def test_titles_stay_on_one_line_and_columns_are_explained(tmp_path):
    folder = tmp_path / "a-folder-with-a-long-name"
    folder.mkdir()
    shown = inspect(saved(folder / "a.safetensors", f"lora_unet_{QUERY}", HALVES)).stdout
    first, *rest = shown.splitlines()
    assert first.startswith("┌")
    assert next(line.strip() for line in rest if line.startswith(" ")) == "Changes"
    assert "in use" not in shown
    assert "effective rank" in shown
    assert "effective rank: singular values over 1% of the layer's largest" in shown


def test_blocks_that_flux_1_has_not_are_noted(tmp_path):
    file = tmp_path / "a.safetensors"
    shown = inspect(saved(file, "transformer.transformer_blocks.99.attn.to_q", HALVES))
    assert shown.returncode == 0
    assert shown.stderr == f"note: {file}: block 99: FLUX.1 has 19 double blocks, 0 to 18\n"
    pair = next(iter(random_layers(small_shapes()).values()))
    assert unknown_blocks({("single_blocks/proj_mlp", 38): pair}) == [
        "block 38: FLUX.1 has 38 single blocks, 0 to 37"
    ]
    last = {("single_blocks/proj_mlp", 37): pair, ("dual_blocks/attn/to_q", 18): pair}
    assert unknown_blocks(last | {("proj_out", None): pair}) == []
