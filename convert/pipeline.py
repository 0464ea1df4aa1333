"""A FLUX.1 pipeline folder in diffusers' layout from one in Flax's, or the other way round.

    python -m convert.pipeline SRC DST

SRC's weights tell the direction. Flax's layout has the same folders and `config.json` files; its
weights are `flax_model.safetensors`, stacked arrays under paths joined by "/". Everything that is
not the four models' weights is copied.
"""

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from convert.errors import InputError, exits_cleanly
from convert.mapping import MEND, differences, flatten, nest, refuse, to_flax, to_torch
from convert.source import read_config
from convert.tables import COMPONENTS
from convert.tensors import FLAX_STEM, SHARD_BYTES, StoredTensor, read_component, write_component
from flux_jax.load import abstract_params


def convert(source: Path, target: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Converts a pipeline folder; the target appears only when it is complete.

    Args:
        source: pipeline folder in either layout.
        target: folder to make.
        shard_bytes: most bytes a weight file.

    Raises:
        InputError: the source is no pipeline, is damaged or does not fit its configuration, or
            the target exists.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; SRC must be a pipeline folder")
    index = read_config(source / "model_index.json")
    absent = [name for name in COMPONENTS if not (source / name).is_dir()]
    if absent or index.get("_class_name") != "FluxPipeline":
        raise InputError(
            f"{source}: not a FLUX pipeline (model_index.json says "
            f"{index.get('_class_name')!r}, missing folders: {', '.join(absent) or 'none'}); SRC "
            f"must be a FluxPipeline with {', '.join(COMPONENTS)}"
        )
    if target.exists():
        raise InputError(f"{target} exists; choose another DST or remove it")
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{target} lies inside SRC; choose a DST outside of {source}")

    weights = {name: read_component(source / name) for name in COMPONENTS}
    flax = [name for name, tensors in weights.items() if any("/" in path for path in tensors)]
    if 0 < len(flax) < len(weights):
        raise InputError(
            f"{source}: {', '.join(flax)} in Flax's layout and the rest not; SRC must be all in one"
        )

    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        for name, tensors in weights.items():
            step = _to_torch if flax else _to_flax
            step(source / name, partial / name, tensors, shard_bytes)
        _copy_rest(source, partial)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _to_flax(
    source: Path, target: Path, tensors: Mapping[str, StoredTensor], shard_bytes: int
) -> None:
    """Writes the model that is named as its folder, stacked."""
    shapes = abstract_params(source.name, read_config(source / "config.json"))
    with _bar(source.name, sum(tensor.nbytes for tensor in tensors.values())) as bar:
        table = COMPONENTS[source.name]
        params = to_flax(table, tensors, shapes, source=source, advance=bar.update)
    write_component(target, flatten(params), FLAX_STEM, {"format": "flax"}, shard_bytes)


def _to_torch(
    source: Path, target: Path, tensors: Mapping[str, StoredTensor], shard_bytes: int
) -> None:
    """Writes the model that is named as its folder, block by block."""
    table = COMPONENTS[source.name]
    shapes = abstract_params(source.name, read_config(source / "config.json"))
    expected = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    refuse(source, MEND, differences(tensors, expected))
    flat = {}
    with _bar(source.name, sum(tensor.nbytes for tensor in tensors.values())) as bar:
        for path in expected:
            flat[path] = np.asarray(tensors[path])
            bar.update(tensors[path].nbytes)
    write_component(target, to_torch(table, nest(flat)), table.stem, {"format": "pt"}, shard_bytes)


def _bar(name: str, total: int) -> tqdm:
    return tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=None)


def _copy_rest(source: Path, target: Path) -> None:
    """Copies all but the models' weights, and but hidden files."""
    holders = {source, *(source / name for name in COMPONENTS)}

    def skipped(folder: str, names: list[str]) -> set[str]:
        # The top folder may hold checkpoints of the same model in other layouts.
        weights = (".safetensors", ".bin", ".index.json") if Path(folder) in holders else ()
        return {name for name in names if name.startswith(".") or name.endswith(weights)}

    shutil.copytree(source, target, ignore=skipped, dirs_exist_ok=True)


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m convert.pipeline", description=__doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="pipeline folder to read")
    parser.add_argument("target", metavar="DST", type=Path, help="folder to make")
    options = parser.parse_args(arguments)
    # Only shapes are traced: an accelerator would be taken for nothing.
    jax.config.update("jax_platforms", "cpu")
    convert(options.source, options.target)
    print(options.target)


if __name__ == "__main__":
    main()
