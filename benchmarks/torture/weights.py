"""Small valid files of weights, and their readers: GGUF, bitsandbytes, fp8, Orbax, runs' states."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Kind

from erase.config.schema import Checkpoints
from erase.methods.parts.step import State
from erase.runtime.run_folder import CHECKPOINTS
from erase.training import checkpoints
from flux_jax.errors import EraseError
from flux_jax.models.transformer import FluxConfig
from flux_jax.weights import checkpoint, original
from flux_jax.weights.loading import abstract_params
from flux_jax.weights.mapping import check, to_torch
from flux_jax.weights.quantized.bitsandbytes import STATES
from flux_jax.weights.quantized.formats import LAYER_FORMAT, dequantised
from flux_jax.weights.quantized.gguf_files import SHAPE_KEY
from flux_jax.weights.safetensors_files import read_file, write_file
from flux_jax.weights.source import TorchSource, open_source

# Names of one layer of FLUX.1 and one of T5.
LAYER, T5_LAYER = "double_blocks.0.img_mlp.0.weight", "enc.blk.0.attn_q.weight"
# Blocks of 32 and of 256 numbers, and types without blocks.
KINDS = (Kind.Q8_0, Kind.Q5_1, Kind.Q4_K, Kind.Q3_K, Kind.F16, Kind.BF16, Kind.F32)
MODEL_FILE = "model.safetensors"
CONFIG = {
    **{"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8},
    **{"num_attention_heads": 1, "joint_attention_dim": 4, "pooled_projection_dim": 4},
    **{"axes_dims_rope": [2, 2, 4], "guidance_embeds": True},
}
SETTINGS = Checkpoints(every=2, last=2, adapter="best")
KEYS = [[0, 1]]
TREE = {"a": {"kernel": np.ones((4, 8), np.float32)}, "b": np.zeros(3, np.float32)}


def write_gguf(folder: Path) -> None:
    """Two files in GGUF, of a FLUX.1 and a T5, with a tensor of each of `KINDS`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for architecture, name in (("flux", LAYER), ("t5encoder", T5_LAYER)):
        writer = gguf.GGUFWriter(folder / f"{architecture}.gguf", architecture)
        writer.add_array(f"{SHAPE_KEY}{name}", [8, 64])
        for number, kind in enumerate(KINDS):
            block, size = gguf.GGML_QUANT_SIZES[kind]
            content = random.integers(0, 255, (2, 256 // block * size), np.uint8)
            each = name if number == 0 else f"{kind.name}.{name}"
            writer.add_tensor(each, content, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_gguf(folder: Path) -> None:
    """Reads all tensors of the folder's files, whole and in parts."""
    for file in sorted(folder.glob("*.gguf")):
        with contextlib.suppress(EraseError):
            _compute(dequantised(read_file(file), source=file))


def _compute(tensors: dict[str, Any]) -> None:
    for tensor in tensors.values():
        np.asarray(tensor)
        assert tensor.shape is not None
        if len(tensor.shape):
            np.asarray(tensor[:1])


def write_quantised(folder: Path) -> None:
    """Layers in NF4 (double quantised too), FP4, int8 and fp8; their descriptions lie beside."""
    folder.mkdir(parents=True, exist_ok=True)
    nf4, fp4 = STATES
    table = np.linspace(-1, 1, 16, dtype=np.float32)
    codes = np.arange(256, dtype=np.uint8)[:, None]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 64]}
    nested = {"nested_blocksize": 4, "nested_offset": 0.1, "nested_dtype": "float32"}
    tensors = {
        **{"a.weight": codes, "a.weight.absmax": np.ones(8, np.float32)},
        **{"a.weight.quant_map": table, "b.weight": codes, "b.weight.quant_map": table},
        "b.weight.absmax": np.arange(8, dtype=np.uint8),
        "b.weight.nested_absmax": np.ones(2, np.float32),
        "b.weight.nested_quant_map": np.linspace(-1, 1, 256, dtype=np.float32),
        **{"c.weight": codes.view(np.int8).reshape(8, 32), "c.SCB": np.ones(8, np.float32)},
        "d.weight": np.ones((8, 4), ml_dtypes.float8_e4m3fn),
        "d.weight_scale": np.ones((), np.float32),
    }
    write_file(folder / MODEL_FILE, tensors, {"format": "pt"})
    described = {
        f"a.weight{nf4}": state,
        f"b.weight{fp4}": state | nested,
        f"d{LAYER_FORMAT}": {"format": "float8_e4m3fn"},
    }
    for name, content in described.items():
        (folder / name).write_text(json.dumps(content))


def read_quantised(folder: Path) -> None:
    """Reads the tensors, with the files beside as tensors of bytes."""
    tensors = read_file(folder / MODEL_FILE)
    for file in sorted(folder.iterdir()):
        if file.name != MODEL_FILE:
            tensors[file.name] = np.frombuffer(file.read_bytes(), np.uint8)
    _compute(dequantised(tensors, source=folder))


def write_single(folder: Path) -> None:
    """A transformer in one file with Black Forest Labs' names."""
    shapes = abstract_params("transformer", CONFIG)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    tensors = to_torch(original.TRANSFORMER, params)
    write_file(folder / "flux1-dev.safetensors", tensors, {"format": "pt"})


def read_single(folder: Path) -> None:
    """Finds the transformer and its sizes, and checks all shapes."""
    source = open_source(folder, "transformer")
    assert isinstance(source, TorchSource)
    FluxConfig.from_dict(source.config)
    check(source.table, source.tensors, abstract_params("transformer", source.config))


def write_orbax(folder: Path) -> None:
    """A model's weights in this project's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_params(folder, TREE)


def read_orbax(folder: Path) -> None:
    """Reads all leaves as they are stored, then those of the model."""
    with contextlib.suppress(EraseError):
        checkpoint.read_params(folder)
    checkpoint.stored_bytes(folder)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), TREE)
    checkpoint.read_params(folder, shapes)


def _state() -> State:
    return State(jax.tree.map(jnp.asarray, TREE), {"lower": {"count": jnp.ones(1)}}, jnp.ones(1))


def write_checkpoints(folder: Path) -> None:
    """A run's folder with two checkpoints."""
    (folder / CHECKPOINTS).mkdir(parents=True)
    with checkpoints.opened(folder, SETTINGS) as manager:
        for step in (2, 4):
            _save(manager, step)


def _save(manager: Any, step: int) -> None:
    record: checkpoints.Record = {
        "keys": KEYS,
        "configs": {"": {"concept": "cat"}},
        "skipped": {"": 0},
        "lost": [],
        "place": checkpoints.place(),
        "losses": [],
    }
    checkpoints.save(manager, step, _state(), record, 1 / step)


def resume(folder: Path, seal: bool = False) -> None:
    """Resumes in a copy of the run's folder, writes a checkpoint and takes the best.

    Args:
        folder: the run's folder, which is left as it is.
        seal: whether the checkpoints get new manifests first, so that the damage is not found.
    """
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    for step in checkpoints.steps_in(copy / CHECKPOINTS) if seal else ():
        checkpoints.seal(copy / CHECKPOINTS / str(step))
    done = checkpoints.usable(copy)
    with checkpoints.opened(copy, SETTINGS) as manager:
        if done:
            _, record = checkpoints.restore(manager, done, _state())
            checkpoints.moved(record, checkpoints.place())
            # As other runs, which are refused.
            if record["keys"] != KEYS:
                return
        _save(manager, 6)
        manager.wait_until_finished()
        best = checkpoints.best(manager, 6)
        checkpoints.check_intact(copy, best)
        checkpoints.restore(manager, best, _state())


def resume_sealed(folder: Path) -> None:
    """Resumes from damaged checkpoints with manifests that fit the damage."""
    resume(folder, seal=True)
