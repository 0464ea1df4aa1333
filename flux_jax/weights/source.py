"""Locates a pipeline's weights: finds each model's files and detects their layout.

A model is a folder (`transformer/`, `vae/`, ...) with `config.json` and weights in diffusers' or
transformers' layout, sharded or not, or in this project's (`flux_jax.weights.checkpoint`); or a
file at the top level, with one or more models (`flux_jax.weights.layouts`). Other models in the
transformer's file take precedence over folders, and folders over other files.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_jax.errors import InputError, note
from flux_jax.system.files import read_bytes
from flux_jax.system.json_files import parse_json
from flux_jax.weights import checkpoint, family, layouts, original
from flux_jax.weights.layouts import Held
from flux_jax.weights.quantized.formats import dequantised
from flux_jax.weights.rules import Table
from flux_jax.weights.safetensors_files import (
    SHARD,
    STEMS,
    SUFFIXES,
    find_weights,
    read_file,
    read_weights,
    shown,
    weight_files,
)

SCHEDULER = Path("scheduler", "scheduler_config.json")
CONFIG = "config.json"
# Common names of single files, for messages.
EXAMPLES = {
    "transformer": "flux1-dev.safetensors",
    "vae": "ae.safetensors",
    "text_encoder": "clip_l.safetensors",
    "text_encoder_2": "t5xxl_fp16.safetensors",
}


@dataclass(frozen=True)
class Source:
    """One model's weights, unread.

    Attributes:
        where: file or folder.
        config: sizes, with the names of diffusers' or transformers' `config.json`.
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
        tensors: by the table's names; quantised ones as `flux_jax.weights.quantized.lazy.Lazy`.
        names: the table's names by the file's.
        found: the file, or the index of its shards.
    """

    table: Table
    tensors: Mapping[str, Any]
    names: Mapping[str, str]
    found: Path

    @property
    def files(self) -> list[Path]:
        """All files with the weights."""
        return weight_files(self.found)


class FlaxSource(Source):
    """Weights in this project's layout."""


def open_source(path: Path, name: str) -> Source:
    """Finds a model's weights.

    Args:
        path: the pipeline's folder, `transformer` in it, or a file with the transformer.
        name: a key of `COMPONENTS`.

    Raises:
        InputError: there are no such weights, several files match, or the weights are of another
            model.
    """
    root = root_of(path)
    if path.is_dir() and name == "transformer" and (root / family.INDEX).is_file():
        family.check_index(root, read_config(root / family.INDEX))
    if name == "transformer":
        single = _transformers_file(path, root)
        return _of_folder(root / name, name) if single is None else _of_file(single, name, root)
    single = None
    # Without a transformer, or with two, the other models are still taken from the folder.
    with contextlib.suppress(InputError):
        single = _transformers_file(path, root)
    if single is not None and name in _held(single, read_file(single)):
        return _of_file(single, name, root)
    folder = root / name
    # A folder with only a configuration belongs to a file at the top level.
    if folder.is_dir() and any(file.name != CONFIG for file in folder.iterdir()):
        return _of_folder(folder, name)
    return _of_file(_file_at_top(path, root, name), name, root)


def root_of(path: Path) -> Path:
    """The pipeline's folder; the path may also be the transformer's folder or file in it."""
    folder = path.parent if path.is_file() else path
    # A pipeline's folder may be called "transformer" too.
    alone = folder.absolute().name == "transformer" and not (folder / "tokenizer").is_dir()
    return folder.absolute().parent if alone else folder


def read_schedule(path: Path, guidance: bool) -> dict[str, Any]:
    """Reads the sampler's settings; without a file, uses those of [dev] or [schnell].

    If [schnell]'s are assumed, a note is printed on stderr: they would be wrong for a [dev] without
    guidance embedding.

    Args:
        path: as for `open_source`.
        guidance: whether the transformer embeds guidance.

    Raises:
        InputError: the file is not JSON.
    """
    file = root_of(path) / SCHEDULER
    if file.is_file():
        return read_config(file)
    if not guidance:
        note(
            f"{path}: FLUX.1 [schnell]'s schedule is used, since the transformer embeds no "
            f"guidance and there is no {SCHEDULER}; for another, such as [dev]'s for a "
            f"de-distilled [dev], put its {SCHEDULER.name} into {file.parent}"
        )
    return original.schedule_config(guidance)


def read_config(path: Path) -> dict[str, Any]:
    """Parses a JSON file of a pipeline folder.

    Raises:
        InputError: the file is missing or too large, or is not a JSON object.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is missing: a pipeline folder in diffusers' layout has it; check the path"
        )
    try:
        config = parse_json(read_bytes(path, "fetch the file again"))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not JSON ({error}): fetch the file again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object {{...}}: fetch the file again")
    return config


def _transformers_file(path: Path, root: Path) -> Path | None:
    """The single file with the transformer; None if it is in a folder.

    Raises:
        InputError: there is none, or more than one.
    """
    folder = root / "transformer"
    if path.is_file() and not (path.parent == folder and SHARD.search(path.name)):
        if path.suffix == ".json":
            raise InputError(f"{path} holds no weights; give its folder {path.parent} instead")
        if path.suffix not in SUFFIXES:
            raise InputError(
                f"{path} is not a supported weight file ({', '.join(SUFFIXES)}); pickles can run "
                "arbitrary code, so save it as safetensors with the program that wrote it"
            )
        return path
    return None if folder.is_dir() else _file_at_top(path, root, "transformer")


def _file_at_top(path: Path, root: Path, name: str) -> Path:
    """The file at the top of a folder with this model, preferably without any other model.

    Raises:
        InputError: there is none, or more than one.
    """
    alone, together, others, rest = [], [], [], []
    for file in sorted(each for each in root.iterdir() if each.suffix in SUFFIXES):
        if file.name.startswith("."):
            continue
        try:
            held = _held(file, read_file(file))
            if name in held and name == "transformer":
                _of_file(file, name, root)
        except InputError as error:
            others.append(error)
            continue
        if not held:
            rest.append(file)
        if held.keys() == {name}:
            alone.append(file)
        elif name in held and "transformer" in held:
            # Stable Diffusion's files contain other text encoders and autoencoders.
            together.append(file)
    files = alone + together if name == "transformer" else alone or together
    if len(files) == 1:
        return files[0]
    if files:
        names = shown([file.name for file in files])
        raise InputError(f"{root}: {names} all contain a {name}; give the path of one file")
    if others and name == "transformer":
        raise others[0]
    for file in rest:
        # Raises a more specific error for names of an unsupported format.
        dequantised(read_file(file), source=file)
    raise _absent(path, name)


def _absent(path: Path, name: str) -> InputError:
    return InputError(
        f"{path}: no weights of the {name}; expected a folder {name} with {CONFIG} and weights, or "
        f"a file such as {EXAMPLES[name]}"
    )


def _held(where: Path, tensors: Mapping[str, Any]) -> dict[str, Held]:
    """The models in a file.

    Raises:
        OtherModelError: it holds another kind of model instead of FLUX.1's transformer.
        InputError: it holds a model twice.
    """
    family.check_names(where, tensors)
    return layouts.models(where, tensors)


def _of_file(file: Path, name: str, root: Path) -> TorchSource:
    """A model in a single file.

    Raises:
        InputError: the file does not hold it, or holds another model.
    """
    tensors = read_file(file)
    held = _held(file, tensors)
    if name not in held:
        # Raises a more specific error for names of an unsupported format.
        dequantised(tensors, source=file)
        raise _absent(file, name)
    return _source(file, file, name, tensors, held, _config_beside(file, name, root))


def _config_beside(file: Path, name: str, root: Path) -> dict[str, Any] | None:
    """The configuration of a model in a single file, if there is one."""
    if name != "transformer" and (root / name / CONFIG).is_file():
        return read_config(root / name / CONFIG)
    beside = file.parent / CONFIG
    if name == "transformer" and beside.is_file():
        config = read_config(beside)
        # Other programs write files of this name too.
        return config if family.CLASS in config else None
    return None


def _of_folder(folder: Path, name: str) -> Source:
    """A model in its own folder.

    Raises:
        InputError: there are no weights, or they are another model's.
    """
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if config is not None and name == "transformer":
        family.check_config(folder, config)
    if checkpoint.is_checkpoint(folder):
        config = config or read_config(folder / CONFIG)
        return FlaxSource(folder, config, checkpoint.stored_bytes(folder))
    weights = find_weights(folder)
    if config is None and weights.name.startswith(STEMS):
        # Libraries write a configuration beside files of these names.
        config = read_config(folder / CONFIG)
    tensors = read_weights(weights)
    held = _held(folder, tensors) if name == "transformer" else layouts.models(folder, tensors)
    return _source(
        folder, weights, name, tensors, {name: Held(layouts.FOLDERS[name])} | held, config
    )


def _source(
    where: Path,
    found: Path,
    name: str,
    tensors: Mapping[str, Any],
    held: Mapping[str, Held],
    config: Mapping[str, Any] | None,
) -> TorchSource:
    """One of the models in a file.

    Raises:
        InputError: its sizes cannot be determined, or it is another model.
    """
    layout = held[name].layout
    tensors = dequantised(tensors, source=where)
    names = layouts.tables_names(tensors, held[name], held.values())
    of_table = {table: tensors[file] for file, table in names.items()}
    if config is None:
        config = layout.config(where, of_table)
    if name == "transformer":
        family.check_config(where, config)
    nbytes = sum(tensor.nbytes for tensor in of_table.values())
    return TorchSource(where, config, nbytes, layout.table(config), of_table, names, found)
