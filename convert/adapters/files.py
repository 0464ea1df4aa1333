"""Detects the layout of adapter files, reads and writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.joined import FLOATS
from convert.adapters.kinds import listed, refuse_content
from convert.adapters.layers import Full, Layers, Pair, number, typed
from convert.adapters.names import FLAX, TEXT_HALVES, Place, label
from convert.adapters.parts import pair_problem, settled
from convert.adapters.peft import PEFT_FILE
from convert.adapters.stacked import Lora, check, stack, stack_evenly, unstack
from convert.adapters.torch_files import HEADER, Found, from_torch, refuse, to_torch
from flux_jax.errors import InputError, counted, note
from flux_jax.tree import flatten, nest
from flux_jax.weights.safetensors_files import open_safetensors, read_file, write_file

TORCH_FILE = "pytorch_lora_weights.safetensors"


FLAX_FILE = "flax_lora.safetensors"


# File names in a folder; if there are several, the first is read.
FILES = {
    "diffusers": TORCH_FILE,
    FLAX: FLAX_FILE,
    "kohya": "kohya_lora.safetensors",
    "original": "original_lora.safetensors",
}


SUFFIXES = (".safetensors", ".sft")


PICKLES = (".pt", ".pth", ".bin", ".ckpt")


ALPHA_TYPE = "alpha_type"


# The last layer, whose name also occurs in blocks.
LAST = "proj_out"


# Header entries about the layout, which are always written anew.
OWN = ("format", "alpha", ALPHA_TYPE, *HEADER)


@dataclass(frozen=True)
class LayerFile:
    """An adapter in a file, layer by layer.

    Attributes:
        layout: one of `LAYOUTS`, or "xlabs", which is supported for reading only.
        layers: each layer's change.
        metadata: the other entries of the file's header.
        described: name of the layout for display, if it differs.
        alphas: the file's alphas that are not positive; those in `layers` always are.
    """

    layout: str
    layers: Layers
    metadata: dict[str, str]
    described: str = ""
    alphas: Mapping[Place, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter in the form that the model uses.

    Attributes:
        layout: layout of the file, one of `LAYOUTS`.
        lora: {"dual_blocks": {"attn": {"add_q_proj": {"A": [L, I, R], "B": [L, R, O]}}}}, ..., with
            all leaves of `convert.adapters.stacked`; L reaches to the target's last block in the
            file.
        alpha: the change is alpha / R * (x A) B, where R is the largest rank in the tree.
        metadata: the other entries of the file's header.
    """

    layout: str
    lora: dict[str, Any]
    alpha: float
    metadata: dict[str, str]


def read_layers(path: str | Path) -> LayerFile:
    """Reads an adapter in any layout, layer by layer; docs/adapters.md lists the layouts.

    Skipped tensors, such as those of text encoders, are reported on stderr.

    Args:
        path: a safetensors file, or a folder with one.

    Raises:
        InputError: the file is missing, damaged, of another kind, of mixed layouts or incomplete,
            or holds non-finite numbers.
    """
    file = _existing(Path(path))
    refuse_content(file)
    metadata = open_safetensors(file).metadata() or {}
    tensors = read_file(file)
    if tensors and all("/" in name for name in tensors):
        contents = _from_flax(file, tensors, metadata)
    else:
        contents = from_torch(file, tensors, metadata)
    for line in contents.notes:
        note(f"{file}: {line}")
    rest = {name: value for name, value in metadata.items() if name not in OWN}
    return LayerFile(contents.layout, contents.layers, rest, contents.described, contents.alphas)


def read_adapter(path: str | Path) -> AdapterFile:
    """Reads an adapter in any layout, stacked.

    Raises:
        InputError: see `read_layers`; or a target's layers have different widths.
    """
    contents = read_layers(path)
    lora, alpha = stack(_existing(Path(path)), contents.layers)
    return AdapterFile(contents.layout, lora, number(alpha), contents.metadata)


def read_lora(path: str | Path) -> tuple[dict[str, Any], float]:
    """Reads tree and alpha of an adapter in any layout; see `read_adapter`."""
    adapter = read_adapter(path)
    return adapter.lora, adapter.alpha


def write_layers(
    path: str | Path, layout: str, layers: Layers, metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes an adapter.

    Args:
        path: a file that ends in .safetensors or .sft, or a folder.
        layout: one of `LAYOUTS`.
        layers: each layer's change.
        metadata: entries for the file's header.

    Returns:
        The file.

    Raises:
        InputError: the layout cannot hold these layers.
    """
    file = named_file(Path(path), layout)
    if layout == FLAX:
        lora, alpha = stack_evenly(file, layers)
        tensors, header = flatten(lora), {"alpha": repr(number(alpha))}
        first = next(pair for pair in layers.values() if isinstance(pair, Pair))
        if alpha.dtype != typed(number(alpha), first.down.dtype).dtype:
            header[ALPHA_TYPE] = alpha.dtype.name
    else:
        tensors, header = to_torch(file, layout, layers)
    kind = {"format": FLAX if layout == FLAX else "pt"}
    write_file(file, tensors, {**(metadata or {}), **kind, **header})
    return file


def write_lora(
    path: str | Path, lora: Lora, alpha: float, metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes diffusers' layout, for `FluxPipeline.load_lora_weights`.

    Changes of text tokens only, which it cannot hold, are written in this project's layout.

    Args:
        path: a file that ends in .safetensors or .sft, or a folder.
        lora: tree of A [L, I, R] and B [L, R, O].
        alpha: the change is alpha / R * (x A) B.
        metadata: entries for the file's header.

    Returns:
        The file.

    Raises:
        InputError: an A or B is missing, ranks differ, or a target is not a layer of the model.
    """
    layout = FLAX if TEXT_HALVES & flatten(lora).keys() else "diffusers"
    file = named_file(Path(path), layout)
    return write_layers(file, layout, unstack(file, lora, alpha), metadata)


def named_file(path: Path, layout: str) -> Path:
    """The file to write, from its path or that of its folder.

    Raises:
        InputError: the suffix is that of a pickle.
    """
    _refuse_pickle(path)
    return path if path.suffix in SUFFIXES else path / FILES[layout]


def _existing(path: Path) -> Path:
    """The file to read, from its path or that of its folder."""
    _refuse_pickle(path)
    if not path.is_dir():
        return path
    usual = (*FILES.values(), PEFT_FILE)
    for name in usual:
        if (path / name).is_file():
            return path / name
    others = sorted(file for suffix in SUFFIXES for file in path.glob(f"*{suffix}"))
    if len(others) == 1:
        return others[0]
    if others:
        names = [file.name for file in others]
        raise listed(f"{path}: contains several files", names, "give the adapter's path")
    pickles = [file for suffix in PICKLES for file in sorted(path.glob(f"*{suffix}"))]
    if pickles:
        _refuse_pickle(pickles[0])
    raise InputError(f"{path}: no adapter; expected {' or '.join(usual)} in the folder")


def _refuse_pickle(path: Path) -> None:
    if path.suffix in PICKLES:
        raise InputError(
            f"{path}: a {path.suffix} file is a pickle, which can run arbitrary code when opened; "
            "load it with torch.load(..., weights_only=True) and save its tensors with "
            "safetensors.torch.save_file"
        )


def _from_flax(file: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Found:
    try:
        alpha = float(metadata["alpha"])
        dtype = FLOATS[metadata[ALPHA_TYPE]] if ALPHA_TYPE in metadata else None
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{file}: alpha = {metadata.get('alpha')!r} in the header must be a number, and "
            f"{ALPHA_TYPE} = {metadata.get(ALPHA_TYPE)!r} a float type if present; write "
            "the file again with erase-anything convert adapter"
        ) from error
    # Before nesting, because a leaf may have the name of another's parent.
    check(file, tensors)
    layers = unstack(file, nest(tensors), alpha, dtype)
    named = {label(place): pair for place, pair in layers.items()}
    problems = {name: pair_problem(pair) for name, pair in named.items()}
    refuse(file, [f"{name} {problem}" for name, problem in problems.items() if problem])
    pairs = {place: settled(pair) for place, pair in layers.items()}
    nonzero = {place: pair for place, pair in pairs.items() if pair is not None}
    if not nonzero:
        raise InputError(f"{file}: changes nothing: alpha is 0")
    alphas = {place: layers[place].alpha for place in nonzero if number(layers[place].alpha) <= 0}
    return Found(FLAX, nonzero, (), FLAX, alphas)


def _dropped(layout: str, layers: Layers) -> str | None:
    """What diffusers does not apply of a file in this layout, or applies differently; or None.

    Its converters give layers outside the blocks names that its loader ignores, and have no names
    for full differences. In its own layout the alpha of the last `proj_out` is also used for those
    of the blocks, because PEFT's patterns match the ends of names.
    """
    if layout == "diffusers":
        return _spread_alpha(layers)
    if layout == FLAX:
        return None
    outside = [label(place) for place in layers if place[1] is None]
    whole = [
        label(place)
        for place, each in layers.items()
        if isinstance(each, Full) or each.bias is not None
    ]
    for lost, what in ((whole, "full differences and biases"), (outside, "outside the blocks")):
        if lost:
            said = f"diffusers does not apply {counted(len(lost), 'layer')} of this file, {what}"
            mend = f"ComfyUI does{'' if whole else '; for diffusers use --to diffusers'}"
            return str(listed(said, lost, mend))
    return None


def _spread_alpha(layers: Layers) -> str | None:
    """Effect in diffusers of the last layer's alpha on blocks with another alpha; or None."""
    last = layers.get((LAST, None))
    inner = [each for (target, _), each in layers.items() if target == f"single_blocks/{LAST}"]
    if not isinstance(last, Pair):
        return None
    others = [pair for pair in inner if isinstance(pair, Pair)]
    if all(number(pair.alpha) == number(last.alpha) for pair in others):
        return None
    return (
        f"diffusers may give the alpha of {LAST}, {number(last.alpha)}, to the blocks' {LAST} too, "
        "which have another; ComfyUI does not"
    )
