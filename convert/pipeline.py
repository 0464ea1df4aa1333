"""Convert a FLUX.1 pipeline folder to another layout.

    erase-anything convert pipeline models/emoji-flux runs/emoji-flux-original --to original

This project's layout (`flax`) has diffusers' folders and `config.json` files, with each model's
arrays in an Orbax checkpoint, stacked for use. "original" has the transformer and the autoencoder
as Black Forest Labs' single files. By default PyTorch's layouts are converted to flax, and flax to
diffusers'. All files except the four models' weights are copied.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.arguments import Parser, check_exists
from flux_jax import progress
from flux_jax.errors import InputError, exits_cleanly, names_file, say
from flux_jax.tree import flatten
from flux_jax.weights import original
from flux_jax.weights.checkpoint import FOLDER, read_params, write_params
from flux_jax.weights.family import INDEX
from flux_jax.weights.hub import check_shipped
from flux_jax.weights.mapping import MEND, differences, refuse, to_flax, to_torch
from flux_jax.weights.safetensors_files import SHARD_BYTES, SUFFIXES, write_component, write_file
from flux_jax.weights.source import (
    CONFIG,
    SCHEDULER,
    FlaxSource,
    Source,
    TorchSource,
    open_source,
    read_schedule,
    root_of,
)
from flux_jax.weights.tables import COMPONENTS

# The file that describes a pipeline for diffusers.
MODEL_INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# Models that are single files in the original layout.
SINGLE = {"transformer": "flux1.safetensors", "vae": "ae.safetensors"}
# Entry of `config.json` for quantised weights.
QUANTISED = "quantization_config"
# Suffixes of weight files, and of indices of shards.
INDICES = (".index.json", ".index.fp32.json", ".index.bf16.json", ".index.fp16.json")
WEIGHTS = (*SUFFIXES, ".bin", *INDICES)


def convert(
    source: Path, target: Path, to: str | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Converts a pipeline; the target appears only when it is complete.

    The largest of the models must fit into host memory.

    Args:
        source: pipeline folder, or the transformer's folder or single file in it.
        target: folder to create.
        to: a key of `WRITERS`; by default diffusers' for a source in Flax's layout, else Flax's.
        shard_bytes: maximum bytes per weight file in diffusers' layout.

    Raises:
        InputError: the source is not a pipeline, is damaged or does not fit its configuration, or
            the target exists.
    """
    if not source.exists():
        raise InputError(f"{source}: no such folder; SRC must be a pipeline folder")
    root = root_of(source)
    if target.exists():
        raise InputError(f"{target} exists; choose another DST or remove it")
    if target.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{target} is inside SRC; choose a DST outside of {root}")
    sources = {name: open_source(source, name) for name in COMPONENTS}
    ours = [name for name, each in sources.items() if isinstance(each, FlaxSource)]
    write = WRITERS[to or ("diffusers" if ours else "flax")]

    with whole(target) as partial:
        partial.mkdir(parents=True)
        for name, each in sources.items():
            write(name, each, read_tree(name, each), partial, shard_bytes)
        write_json(partial / INDEX, MODEL_INDEX)
        from flux_jax.models.transformer import FluxConfig

        guidance = FluxConfig.from_dict(sources["transformer"].config).guidance_embeds
        write_json(partial / SCHEDULER, read_schedule(source, guidance))
        _copy_all_but_models(root, partial)


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `target` if the block succeeds."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with names_file(target):
            yield partial
            os.rename(partial, target)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def read_tree(name: str, source: Source) -> dict[str, Any]:
    """Reads a model's Flax tree into host memory, in the files' types.

    Raises:
        InputError: the weights are damaged, or do not fit the configuration.
    """
    from flux_jax.weights.loading import abstract_params

    shapes = abstract_params(name, source.config)
    title = {"desc": name, "total": source.nbytes, "unit": "B", "unit_scale": True}
    with progress.bar(**title) as bar:
        if isinstance(source, TorchSource):
            return to_flax(
                source.table,
                source.tensors,
                shapes,
                source=source.where,
                place=lambda path, leaf: np.ascontiguousarray(leaf),
                advance=bar.update,
            )
        params = read_params(source.where)
        expected = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
        refuse(source.where, MEND, differences(flatten(params), expected))
        bar.update(source.nbytes)
        return params


def _write_flax(name: str, source: Source, params: Any, target: Path, shard_bytes: int) -> None:
    write_config(source, target / name)
    write_params(target / name, params)


def _write_diffusers(
    name: str, source: Source, params: Any, target: Path, shard_bytes: int
) -> None:
    write_config(source, target / name)
    table = COMPONENTS[name]
    tensors = to_torch(table, params)
    write_component(target / name, tensors, table.stem, {"format": "pt"}, shard_bytes)


def _write_original(name: str, source: Source, params: Any, target: Path, shard_bytes: int) -> None:
    if name not in SINGLE:
        _write_diffusers(name, source, params, target, shard_bytes)
        return
    tensors = to_torch(original.table(name, source.config), params)
    write_file(target / SINGLE[name], tensors, {"format": "pt"})


WRITERS: Mapping[str, Callable[[str, Source, Any, Path, int], None]] = {
    "flax": _write_flax,
    "diffusers": _write_diffusers,
    "original": _write_original,
}


def write_config(source: Source, folder: Path) -> None:
    """Writes a model's configuration, copied from the source if it has a file.

    Settings of quantisation are removed, because the written weights are not quantised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = source.where / CONFIG
    if file.is_file() and QUANTISED not in source.config:
        shutil.copy(file, folder)
    else:
        plain = {key: value for key, value in source.config.items() if key != QUANTISED}
        write_json(folder / file.name, plain)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON; creates the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def copy_rest(
    source: Path,
    target: Path,
    left_out: Callable[[Path], bool],
    copy: Callable[[str, str], object] = shutil.copy2,
) -> None:
    """Copies a folder without hidden and excluded files.

    Args:
        source: the folder.
        target: destination; may exist.
        left_out: whether to exclude a file or folder of the source.
        copy: copies one file to another, by their paths.
    """

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name.startswith(".") or left_out(Path(folder, name))}

    shutil.copytree(source, target, ignore=ignored, copy_function=copy, dirs_exist_ok=True)


def _copy_all_but_models(source: Path, target: Path) -> None:
    """Copies all files except the models' weights and configurations, and hidden files."""
    models = {source / name for name in COMPONENTS}

    def of_models(path: Path) -> bool:
        # The top folder may contain checkpoints of the same model in other layouts.
        weights = path.parent in {source, *models} and path.name.endswith(WEIGHTS)
        return weights or (path.parent in models and path.name in (FOLDER, CONFIG))

    copy_rest(source, target, of_models)
    for name in COMPONENTS:
        # Folders of models that became single files are empty.
        if not any((target / name).iterdir()):
            (target / name).rmdir()


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module's docstring."""
    parser = Parser("erase-anything convert pipeline", __doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="pipeline to read")
    parser.add_argument("target", metavar="DST", type=Path, help="folder to create")
    parser.add_argument("--to", choices=WRITERS, help="layout of DST")
    options = parser.parse_args(arguments)
    check_shipped(str(options.source))
    check_exists("SRC", options.source)
    # For JAX, which is not imported yet: only shapes are traced, so an accelerator is not needed.
    os.environ["JAX_PLATFORMS"] = "cpu"
    convert(options.source, options.target, options.to)
    say(options.target)


if __name__ == "__main__":
    main()
