"""Where a pipeline's weights lie: finds each model's files and tells their layout.

A model is a folder (`transformer/`, `vae/`, ...) with `config.json` and weights in diffusers'
layout, sharded or not, or in our own (`convert.checkpoint`); or one of the single files of
`convert.original` at the top. The folders of text encoders and tokenizers are the same in all.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert import checkpoint, original
from convert.errors import InputError
from convert.mapping import Table
from convert.quantized import dequantised
from convert.tables import COMPONENTS
from convert.tensors import SUFFIXES, read_component, read_file

SUFFIX = ".safetensors"
SCHEDULER = Path("scheduler", "scheduler_config.json")


@dataclass(frozen=True)
class Source:
    """One model's weights, unread.

    Attributes:
        where: file or folder.
        config: its sizes, under the names of diffusers' or transformers' `config.json`.
        nbytes: bytes of all tensors in their files.
    """

    where: Path
    config: Mapping[str, Any]
    nbytes: int


@dataclass(frozen=True)
class TorchSource(Source):
    """Weights in one of PyTorch's layouts.

    Attributes:
        table: names of the tensors.
        tensors: as the files name them; quantised ones as `convert.lazy.Lazy`.
    """

    table: Table
    tensors: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls,
        where: Path,
        config: Mapping[str, Any],
        table: Table,
        tensors: Mapping[str, np.ndarray],
    ) -> "TorchSource":
        """A source of these tensors."""
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        return cls(where, config, nbytes, table, tensors)


class FlaxSource(Source):
    """Weights in our own layout."""


def open_source(path: Path, name: str) -> Source:
    """Finds a model's weights.

    Args:
        path: the pipeline's folder, or the transformer's single file in it.
        name: a key of `COMPONENTS`.

    Raises:
        InputError: there are no such weights, or more than one file may be meant.
    """
    root = root_of(path)
    single = _SINGLE.get(name)
    if path.is_file() and name == "transformer":
        files = [path]
    elif single is None or (root / name).is_dir():
        folder = root / name
        config = read_config(folder / "config.json")
        if checkpoint.is_checkpoint(folder):
            return FlaxSource(folder, config, checkpoint.stored_bytes(folder))
        tensors = dequantised(read_component(folder), source=folder)
        return TorchSource.of(folder, config, COMPONENTS[name], tensors)
    else:
        files = sorted(file for file in root.iterdir() if file.suffix in SUFFIXES)
    assert single is not None, "the transformer is one"
    read = {file: read_file(file) for file in files}
    found = {file: tensors for file, tensors in read.items() if single.fits(tensors)}
    if not found:
        for file, tensors in read.items():
            # Raises, and says more, where names are those of a format that is not read.
            dequantised(tensors, source=file)
        raise InputError(
            f"{path}: no weights of the {name}; expected a folder {name} with config.json and "
            f"weights, or a file such as {single.example}"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{root}: {names} all hold a {name}; give the wanted file itself")
    ((file, tensors),) = found.items()
    tensors = dequantised(tensors, source=file)
    plain = {key.removeprefix(original.BUNDLED): tensor for key, tensor in tensors.items()}
    config = single.config(file, plain)
    return TorchSource.of(file, config, original.table(name, config), plain)


def root_of(path: Path) -> Path:
    """The pipeline's folder, of which the transformer's single file in it may be given."""
    return path.parent if path.is_file() else path


def read_schedule(path: Path, guidance: bool) -> dict[str, Any]:
    """The sampler's settings: those beside the weights, else those of [dev] or [schnell].

    Args:
        path: the pipeline's folder, or the transformer's single file in it.
        guidance: whether the transformer embeds guidance.

    Raises:
        InputError: the file is not JSON.
    """
    file = root_of(path) / SCHEDULER
    return read_config(file) if file.is_file() else original.schedule_config(guidance)


def read_config(path: Path) -> dict[str, Any]:
    """Parses a JSON file of a pipeline folder.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is missing: a pipeline folder in diffusers' layout has it; check the path"
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}): fetch the file again") from error


@dataclass(frozen=True)
class _Single:
    """What may come as a single file."""

    fits: Callable[[Mapping[str, Any]], bool]
    config: Callable[[Path, Mapping[str, Any]], dict[str, Any]]
    example: str


_SINGLE = {
    "transformer": _Single(
        original.is_transformer,
        original.transformer_config,
        "flux1-dev.safetensors",
    ),
    "vae": _Single(
        original.is_vae,
        original.vae_config,
        "ae.safetensors",
    ),
}
