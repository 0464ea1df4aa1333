"""Quantised checkpoints as models: their outputs equal PyTorch's with the same values."""

import functools
import json
import shutil
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from helpers import tiny
from helpers.flux_case import run
from helpers.merging import write_adapter
from helpers.quantising import FP8, is_large, nf4, scaled, write_gguf
from safetensors.numpy import load_file, save_file

import flux_jax
from convert.merge import merge
from convert.pipeline import convert
from flux_jax.errors import InputError
from flux_jax.models.transformer import FluxConfig
from flux_jax.sharding import make
from flux_jax.weights import original
from flux_jax.weights.loading import abstract_params, read_params
from flux_jax.weights.mapping import to_flax, to_torch
from flux_jax.weights.quantized.formats import quantisation
from flux_jax.weights.quantized.lazy import Lazy
from flux_jax.weights.source import open_source
from flux_jax.weights.tables import T5, TRANSFORMER

AXES = (16, 56, 56)
BUNDLED = "model.diffusion_model."
MODEL = tiny.transformer(axes=AXES, heads=2)
WEIGHTS = {name: value.numpy() for name, value in MODEL.state_dict().items()}
FILE = "flux1-dev.safetensors"


def renamed(tensors: dict[str, np.ndarray], old, new) -> dict[str, np.ndarray]:
    params = to_flax(old, tensors, abstract_params("transformer", MODEL.config))
    return {name: np.ascontiguousarray(each) for name, each in to_torch(new, params).items()}


BFL = renamed(WEIGHTS, TRANSFORMER, original.TRANSFORMER)


@functools.cache
def unquantised_velocity() -> np.ndarray:
    return torch_velocity(BFL)


@torch.no_grad()
def torch_velocity(numbers: dict[str, np.ndarray]) -> np.ndarray:
    """Velocity of diffusers' model with these weights, under Black Forest Labs' names."""
    plain = {name: each.astype(np.float32) for name, each in numbers.items()}
    renamed_back = renamed(plain, original.TRANSFORMER, TRANSFORMER)
    state = {name: torch.from_numpy(each) for name, each in renamed_back.items()}
    assert state.keys() == WEIGHTS.keys()
    latents, text, pooled, time, ids, guidance = map(torch.tensor, INPUTS)
    arguments = (latents, text, pooled, time, ids, torch.zeros(text.shape[1], 3), guidance)
    return torch.func.functional_call(MODEL, state, arguments).sample.numpy()


RANDOM = np.random.default_rng(0)
INPUTS = (
    RANDOM.normal(size=(2, 6, 16)).astype(np.float32),
    RANDOM.normal(size=(2, 5, 24)).astype(np.float32),
    RANDOM.normal(size=(2, 16)).astype(np.float32),
    np.float32([0.3, 0.9]),
    np.float32([[0, row, column] for row in range(2) for column in range(3)]),
    np.float32([3.5, 1.0]),
)


def velocity(path: Path) -> np.ndarray:
    """Velocity of our model with a file's weights."""
    source = open_source(path, "transformer")
    params = read_params(source, "transformer", jnp.float32, make({}))
    velocity, _ = run(FluxConfig.from_dict(source.config), {"params": params}, INPUTS, None)
    return np.asarray(velocity)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def gguf_kind(name: str, tensor: np.ndarray) -> Kind:
    if not is_large(name, tensor):
        return Kind.F32 if tensor.ndim == 1 else Kind.BF16
    return [Kind.Q4_K, Kind.Q8_0, Kind.Q5_1, Kind.Q6_K][len(name) % 4]


def first_blocks_wider(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], ...]:
    stored = {}
    for name, tensor in tensors.items():
        wide = tensor.ndim == 1 or ".0." in name
        stored[name] = tensor.astype(ml_dtypes.bfloat16 if wide else FP8)
    stored["single_blocks.2.linear2.weight"] = tensors["single_blocks.2.linear2.weight"]
    return stored, {name: each.astype(np.float32) for name, each in stored.items()}


FORMATS = {
    "scaled fp8": ("", lambda: scaled(BFL)),
    "scaled fp8, rows": (BUNDLED, lambda: scaled(BFL, "weight_scale", rows=True)),
    "NF4": (BUNDLED, lambda: nf4(BFL)),
    "mixed": ("", lambda: first_blocks_wider(BFL)),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.slow
def test_velocities_are_those_of_the_numbers_that_are_stored(name: str, tmp_path: Path):
    prefix, quantise = FORMATS[name]
    stored, plain = quantise()
    save_file({prefix + key: each for key, each in stored.items()}, tmp_path / FILE)
    theirs = torch_velocity(plain)
    assert relative(velocity(tmp_path / FILE), theirs) <= 1e-5
    # The stored values differ from the model that was quantised.
    assert relative(theirs, unquantised_velocity()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("given", ["file", "folder"])
def test_gguf_computes_what_its_numbers_do(given: str, tmp_path: Path):
    file = tmp_path / "flux1-dev-Q4_K_S.gguf"
    plain = write_gguf(file, BFL, gguf_kind)
    assert {each.tensor_type.name for each in gguf.GGUFReader(file).tensors} >= {"Q4_K", "Q8_0"}
    ours = velocity(file if given == "file" else tmp_path)
    assert relative(ours, torch_velocity(plain)) <= 1e-5


def test_sft_is_short_for_safetensors(tmp_path: Path):
    save_file(BFL, tmp_path / "flux1-dev.sft")
    assert relative(velocity(tmp_path), unquantised_velocity()) <= 1e-5


@pytest.fixture
def nf4_folder(tmp_path: Path, tiny_folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A pipeline as saved by diffusers with a transformer in NF4, and the transformer's values."""
    made = tmp_path / "nf4"
    shutil.copytree(tiny_folder, made)
    stored, plain = nf4(WEIGHTS)
    save_file(stored, made / "transformer/diffusion_pytorch_model.safetensors", {"format": "pt"})
    config = {key: value for key, value in MODEL.config.items() if not key.startswith("_")}
    config["_class_name"] = "FluxTransformer2DModel"
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (made / "transformer/config.json").write_text(json.dumps(config))
    return made, plain


@pytest.mark.slow
def test_a_folder_of_diffusers_in_nf4_is_read_and_written_without_it(nf4_folder, tmp_path: Path):
    folder, plain = nf4_folder
    wanted = torch_velocity(renamed(plain, TRANSFORMER, original.TRANSFORMER))
    assert relative(velocity(folder), wanted) <= 1e-5

    convert(folder, tmp_path / "flax")
    convert(tmp_path / "flax", tmp_path / "plain")
    written = tmp_path / "plain/transformer"
    assert "quantization_config" not in json.loads((written / "config.json").read_text())
    tensors = load_file(written / "diffusion_pytorch_model.safetensors")
    assert tensors.keys() == plain.keys()
    for name, expected in plain.items():
        np.testing.assert_array_equal(tensors[name].astype(np.float32), expected)


def t5_in_fp8(folder: Path, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    plain, stored = {}, {"scaled_fp8": np.zeros(0, FP8)}
    for name, value in state.items():
        scale = np.float32(np.abs(value).max() / 448)
        dense = value.ndim == 2 and "SelfAttention.q" in name
        stored[name] = (value / scale).astype(FP8) if dense else value
        if dense:
            stored[f"{name.removesuffix('weight')}scale_weight"] = np.asarray(scale)
        plain[name] = stored[name].astype(np.float32) * (scale if dense else 1)
    save_file(stored, folder / "model.safetensors")
    return plain


def t5_in_gguf(folder: Path, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)
    names = {table.get_name(name, (".weight",)): name for name in state}
    (folder / "model.safetensors").unlink()
    plain = write_gguf(
        folder / "t5-encoder-Q8_0.gguf",
        {theirs: state[name] for theirs, name in names.items()},
        lambda _, each: Kind.Q8_0 if each.shape[-1] % 32 == 0 and each.ndim == 2 else Kind.F32,
        "t5encoder",
    )
    return {names[theirs]: each for theirs, each in plain.items()}


@pytest.mark.parametrize("write", [t5_in_fp8, t5_in_gguf])
def test_text_encoders_are_read_too(write, tiny_folder: Path, tmp_path: Path):
    folder = tmp_path / "text_encoder_2"
    shutil.copytree(tiny_folder / folder.name, folder)
    plain = write(folder, load_file(folder / "model.safetensors"))
    source = open_source(tmp_path, folder.name)
    assert quantisation(source.tensors) in ("scaled fp8 (ComfyUI)", "GGUF")
    params = read_params(source, folder.name, jnp.float32, make({}))
    wanted = to_flax(T5, plain, abstract_params(folder.name, source.config))
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.mark.slow
def test_a_part_is_computed_once_and_alone(tmp_path: Path):
    stored, plain = scaled(BFL)
    save_file(stored, tmp_path / FILE)
    source = open_source(tmp_path / FILE, "transformer")
    asked: dict[str, list[int]] = {}

    def watched(name: str, lazy: Lazy) -> Lazy:
        def rows(wanted: slice) -> np.ndarray:
            asked.setdefault(name, []).extend(range(wanted.start, wanted.stop))
            return lazy.rows(wanted)

        return Lazy(lazy.shape, lazy.dtype, lazy.nbytes, lazy.stored_as, rows)

    lazies = {name: each for name, each in source.tensors.items() if isinstance(each, Lazy)}
    tensors = {**source.tensors, **{name: watched(name, lazies[name]) for name in lazies}}
    read: list[int] = []
    params = to_flax(
        source.table,
        tensors,
        abstract_params("transformer", source.config),
        advance=read.append,
    )
    assert len(lazies) == sum(is_large(name, each) for name, each in BFL.items())
    for name, lazy in lazies.items():
        assert sorted(asked[name]) == list(range(lazy.shape[0])), name
    # The progress bar counts the bytes in the file.
    assert abs(sum(read) - source.nbytes) <= 4 * len(lazies)
    expected = renamed(plain, original.TRANSFORMER, TRANSFORMER)
    found = to_torch(TRANSFORMER, params)
    for name, each in expected.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), each)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "scaled", "infinite scale"])
def test_no_number_in_fp8_is_refused(dtype: str, tmp_path: Path):
    name = "double_blocks.1.img_attn.qkv.weight"
    if dtype in ("scaled", "infinite scale"):
        tensors, _ = scaled(BFL)
    else:
        kind = np.dtype(getattr(ml_dtypes, dtype))
        tensors = {key: each.astype(kind) for key, each in BFL.items()}
    if dtype == "infinite scale":
        tensors[name.replace("weight", "scale_weight")] = np.asarray(np.float32(np.inf))
    else:
        tensors[name][200, 3] = np.nan
    save_file(tensors, tmp_path / FILE)
    source = open_source(tmp_path / FILE, "transformer")
    with pytest.raises(InputError, match=f"not finite: {name} "):
        read_params(source, "transformer", jnp.float32, make({}))


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_nothing_is_merged_into_quantised_weights(suffix: str, tmp_path: Path):
    file = tmp_path / f"flux1-dev{suffix}"
    if suffix == ".gguf":
        # Plain floats, but in a format that is not written.
        write_gguf(file, BFL, lambda *_: Kind.F32)
    else:
        save_file(scaled(BFL)[0], file)
    adapter = write_adapter(tmp_path / "adapter", file, ("single_blocks/proj_out",))
    with pytest.raises(InputError, match=r"is quantised \((scaled fp8|GGUF)") as caught:
        merge(str(file), [str(adapter)], tmp_path / "out.safetensors")
    assert str(caught.value).startswith(str(file))
    assert "convert pipeline" in str(caught.value)
    assert len(str(caught.value)) <= 400
    assert not (tmp_path / "out.safetensors").exists()


def test_files_of_other_formats_say_which(tmp_path: Path):
    names = [f"transformer_blocks.{block}.qkv_proj" for block in range(19)]
    tensors = {f"{name}.qweight": np.zeros((8, 8), np.int8) for name in names}
    tensors |= {f"{name}.smooth_factor": np.ones(8, np.float32) for name in names}
    save_file(tensors, tmp_path / "svdq-int4_r32-flux.1-dev.safetensors")
    for path in (tmp_path, tmp_path / "svdq-int4_r32-flux.1-dev.safetensors"):
        with pytest.raises(InputError, match="SVDQuant") as caught:
            open_source(path, "transformer")
        assert len(str(caught.value)) <= 400
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_pipeline_has_its_transformer_in_a_gguf_file(tiny_folder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("transformer"))
    plain = write_gguf(folder / "flux1-dev-Q8_0.gguf", BFL, gguf_kind)
    expected = to_flax(original.TRANSFORMER, plain, abstract_params("transformer", MODEL.config))
    params = flux_jax.load(folder).params["transformer"]
    jax.tree.map(np.testing.assert_array_equal, params, expected)
