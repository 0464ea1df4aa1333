"""Weight files, mainly safetensors: single or sharded, memory-mapped; written atomically."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from flux_jax.errors import InputError, counted, names_file
from flux_jax.system.files import open_regular, read_bytes
from flux_jax.system.json_files import parse_json
from flux_jax.weights.quantized.gguf_files import SUFFIX as GGUF
from flux_jax.weights.quantized.gguf_files import read_gguf

# Suffixes of weight files; the second is short for the first.
SUFFIXES = (".safetensors", ".sft", GGUF)
# File names without suffix: diffusers, transformers.
STEMS = ("diffusion_pytorch_model", "model")
SHARD = re.compile(r"-\d{5}-of-\d{5}\b")
SHARD_BYTES = 5_000_000_000
# Limits of a file's header, in bytes and tensors: many times those of any FLUX.1. A header is
# parsed to objects of several times its size.
MOST_HEADER, MOST_TENSORS = 16 << 20, 1 << 15
# Safetensors' names of NumPy's types.
TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
# NumPy knows the names of ml_dtypes' types once that is imported.
NUMPY = {theirs: np.dtype(ours) for ours, theirs in TYPES.items()}


def is_float(dtype: Any) -> bool:
    """Whether a type is a floating-point type of NumPy or ml_dtypes; needs no JAX."""
    try:
        return ml_dtypes.finfo(dtype).dtype == np.dtype(dtype)
    except ValueError:
        return False


def open_safetensors(path: Path) -> Any:
    """Opens a safetensors file for lazy reading.

    Raises:
        InputError: the file is missing, truncated or not safetensors, or its header is over the
            limits.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        _check_header(path)
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: truncated or not a safetensors file ({error}); copy or download it again"
        ) from error


def _check_header(path: Path) -> None:
    """Checks a header's size before it is parsed.

    Raises:
        ValueError: it is over the limits.
    """
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER:
            raise ValueError(f"a header of {length:,} bytes, over the limit of {MOST_HEADER:,}")
        count = file.read(length).count(b'"data_offsets"')
    if count > MOST_TENSORS:
        raise ValueError(f"{count:,} tensors, over the limit of {MOST_TENSORS:,}")


def read_file(path: Path) -> dict[str, Any]:
    """Opens all tensors of one file; they are read on access.

    Args:
        path: GGUF by its suffix (see `flux_jax.weights.quantized.gguf_files`), else safetensors.

    Returns:
        Views of the memory-mapped file; for GGUF, array-likes that are decoded on access.

    Raises:
        InputError: see `open_safetensors` and `read_gguf`; or NumPy does not support a type or a
            shape.
    """
    if path.suffix == GGUF:
        return read_gguf(path)
    # The library validates the header; its own reader holds the GIL and copies.
    open_safetensors(path)
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    size = path.stat().st_size - 8 - length
    data = np.memmap(path, np.uint8, "r", 8 + length) if size else np.empty(0, np.uint8)
    tensors = {}
    for name in sorted(header.keys() - {"__metadata__"}):
        entry = header[name]
        if entry["dtype"] not in NUMPY:
            raise InputError(f"{path}: {name} is {entry['dtype']}; save it in another type")
        begin, end = entry["data_offsets"]
        flat = np.asarray(data[begin:end]).view(NUMPY[entry["dtype"]])
        try:
            tensors[name] = flat.reshape(entry["shape"])
        except ValueError as error:
            raise InputError(
                f"{path}: {name} has an invalid shape ({error}); copy or download the file again"
            ) from error
    return tensors


def read_component(folder: Path) -> dict[str, Any]:
    """Opens all tensors of a model's folder: one file, or the shards of an index.

    Raises:
        InputError: no weights, a shard or one of its tensors is missing, a file is damaged.
    """
    return read_weights(find_weights(folder))


def read_weights(found: Path) -> dict[str, Any]:
    """Opens all tensors of a file, or of the shards of an index; they are read on access.

    Raises:
        InputError: a shard or one of its tensors is missing, or a file is damaged.
    """
    return _read_shards(found) if found.suffix == ".json" else read_file(found)


def weight_files(found: Path) -> list[Path]:
    """The weight files: one, or the shards that an index lists.

    Raises:
        InputError: shards are missing, or the index is invalid.
    """
    if found.suffix != ".json":
        return [found]
    return [found.parent / name for name in sorted(set(places_of(found).values()))]


def find_weights(folder: Path) -> Path:
    """The file of a model's weights, or the index of its shards.

    If both exist, diffusers reads the index and transformers the file. Files with other names
    (`model.fp16.safetensors`, `t5xxl_fp16.safetensors`) are read if there is only one.

    Raises:
        InputError: there is neither, or several files match.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    diffusers, transformers = STEMS
    index = ".safetensors.index.json"
    for name in (
        f"{diffusers}{index}",
        f"{diffusers}.safetensors",
        f"{transformers}.safetensors",
        f"{transformers}{index}",
    ):
        if (folder / name).is_file():
            return folder / name
    there = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    whole = [file for file in there if file.suffix in SUFFIXES and not SHARD.search(file.name)]
    files = whole + [file for file in there if re.search(r"\.index\b.*\.json$", file.name)]
    if len(files) == 1:
        return files[0]
    if files:
        raise InputError(
            f"{folder}: {shown([file.name for file in files])} could each be the weights; keep one"
        )
    shards = [file.name for file in there if SHARD.search(file.name)]
    if shards:
        raise InputError(
            f"{folder}: {shown(shards)} are shards without their index; copy or download "
            f"{diffusers}{index} or {transformers}{index} beside them"
        )
    names = " or ".join(f"{stem}.safetensors" for stem in STEMS)
    raise InputError(
        f"{folder}: no weights; expected {names}, or the like with .index.json and its shards "
        "(.bin files: save the model again with safe_serialization=True)"
    )


def shown(names: Sequence[str]) -> str:
    """Lists names for a message: at most three of them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(name[:80] for name in names[:3])}{more}"


def places_of(index: Path) -> dict[str, str]:
    """File names of shards by the names of their tensors.

    Raises:
        InputError: the index is invalid, or shards are missing.
    """
    folder = index.parent
    try:
        places: dict[str, str] = parse_json(read_bytes(index))["weight_map"]
        if not all(isinstance(file, str) for file in places.values()):
            raise TypeError("shard names must be strings")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index}: not an index of shards ({error!r}); copy or download it again"
        ) from error
    files = sorted(set(places.values()))
    absent = [file for file in files if not _beside(folder, file)]
    if absent:
        raise InputError(
            f"{index}: missing shards {shown(absent)}; copy or download them beside the index"
        )
    return places


def _beside(folder: Path, file: str) -> bool:
    """Whether this is a plain file name, and the file is in the folder."""
    # Unlike `Path.is_file`, this returns False for names that no file can have.
    return file == Path(file).name and os.path.isfile(folder / file)


def _read_shards(index: Path) -> dict[str, Any]:
    places = places_of(index)
    shards = {file: read_file(index.parent / file) for file in sorted(set(places.values()))}
    lost = [f"{name} ({file})" for name, file in places.items() if name not in shards[file]]
    if lost:
        are = "is not in its shard" if len(lost) == 1 else "are not in their shards"
        raise InputError(
            f"{index}: {counted(len(lost), 'tensor')} {are}: {shown(lost)}; copy or download index "
            "and shards again"
        )
    return {name: shards[file][name] for name, file in places.items()}


def write_file(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes one safetensors file, which appears under its name only when complete.

    One tensor at a time is made contiguous; the library would need all of them at once.

    Args:
        path: path of the file; missing folders are created.
        tensors: arrays, or objects with `.shape` and `.dtype` that `np.asarray` can read.
        metadata: entries of the file's header.

    Raises:
        InputError: safetensors has no name for a tensor's type.
    """
    # Wider types first, so that every tensor is aligned to its own width.
    order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        shape, dtype = tensors[name].shape, np.dtype(tensors[name].dtype)
        if dtype.name not in TYPES:
            raise InputError(
                f"{path}: {name} is {dtype.name}, which safetensors files cannot store"
            )
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": TYPES[dtype.name],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            contiguous = np.ascontiguousarray(tensors[name])
            file.write(contiguous.reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that gets its name when it is complete and on disk.

    So there is a whole file under the name at any time, also after a power cut. Its folder is
    created if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with names_file(path), partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Writes a file's content, or the names in a folder, from the system's memory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems refuse it for folders.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_component(
    folder: Path,
    tensors: Mapping[str, Any],
    stem: str,
    metadata: Mapping[str, str],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model's weights as one file, or as shards with an index if they are larger.

    Args:
        folder: created if missing; existing weights of the same stem in it are replaced.
        tensors: as for `write_file`, with `.nbytes`.
        stem: file name without suffix, for instance `diffusion_pytorch_model`.
        metadata: the files' metadata; PyTorch's readers expect {"format": "pt"}.
        shard_bytes: maximum bytes per file, unless a single tensor is larger.
    """
    shards = list(_shards(tensors, shard_bytes))
    suffix = ".safetensors"
    names = [f"{stem}{suffix}"]
    if len(shards) > 1:
        names = [f"{stem}-{n:05}-of-{len(shards):05}{suffix}" for n in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, {key: tensors[key] for key in shard}, metadata)
    if len(shards) > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        names.append(f"{stem}{suffix}.index.json")
        with replacing(folder / names[-1]) as file:
            file.write((json.dumps(index, indent=2) + "\n").encode())
    for stale in (*folder.glob(f"{stem}-*-of-*{suffix}"), *folder.glob(f"{stem}{suffix}*")):
        if stale.name not in names:
            stale.unlink()


def _shards(tensors: Mapping[str, Any], limit: int) -> Iterator[list[str]]:
    """Groups names, in order, into shards of at most `limit` bytes."""
    group: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if group and size + tensor.nbytes > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor.nbytes
    yield group
