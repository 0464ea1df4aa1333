r"""Compare the transformer with diffusers' on the same weights, LoRA and random inputs.

    python -m benchmarks.parity.parity --model models/flux1-dev --adapter runs/nudity \
        --out parity.json

Both compute in bfloat16. Their difference alone means little, since each rounds at other places. So
both are also compared with diffusers in float32 as the reference: ours should be no farther from it
than diffusers' own bfloat16. FLUX.1 [dev] needs a GPU with 80 GB: its float32 weights are 48 GB,
first in the host's memory, then alone on the GPU.

- Velocities, with and without the LoRA, as relative errors ‖x - y‖ / ‖y‖. Diffusers in bfloat16
  also rounds 1000 * guidance, which this project does not: hence two scales, one that rounding
  changes and one that it does not.
- The LoRA's effect, the velocity with it minus that without: its size relative to the velocity
  without, its error, and how much of float32's effect it contains (slope, 1 for all). Each of the
  two velocities is rounded to 8 bits, so the error of a small effect is mostly noise; the slope is
  not, since noise has no direction.
- Every block, with the LoRA: ours and float32's are run on the inputs of diffusers' bfloat16 block.
  A block's change is what it adds to its input; if that is small, it hides errors.
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from rich.console import Console

from benchmarks.parity import diffusers
from benchmarks.parity import ours as parity_ours
from benchmarks.parity.case import (
    GUIDANCES,
    TIMESTEP,
    Block,
    Inputs,
    Streams,
    Velocities,
    random_inputs,
    relative,
    slope,
)
from convert.adapters.files import TORCH_FILE, read_adapter
from convert.tables import Table, show
from erase.cli.flags import begin, parse_flags
from erase.runtime.files import write
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline, load
from flux_jax.tree import flatten
from flux_jax.weights.hub import find_model

Record = dict[str, Any]

STREAMS = ("image", "text")
# The pairs that are compared: their names in files and in headings.
PAIRS = {
    "ours_diffusers": "ours / diffusers",
    "ours_float32": "ours / float32",
    "diffusers_float32": "diffusers / float32",
}
# Number of blocks in the table, and width in columns of a table written to a file.
WORST, WIDTH = 8, 110


def compare(pipe: Pipeline, folder: Path, adapter: Adapter, lora: Path, inputs: Inputs) -> Record:
    """Compute all errors. Diffusers runs first, since JAX does not return memory once allocated.

    Args:
        pipe: this project's pipeline, in the dtype to compare.
        folder: of the same pipeline.
        adapter: this project's.
        lora: file of the same adapter, for diffusers.
        inputs: inputs of both models.
    """
    dtype = jnp.dtype(pipe.transformer.dtype).name
    theirs, blocks = diffusers.measure(folder, lora, inputs, dtype)
    diffusers.free()
    exact, exact_blocks = diffusers.measure_exactly(folder, lora, inputs, blocks)
    diffusers.free()
    ours = parity_ours.velocities(pipe, adapter, inputs)
    our_blocks = parity_ours.again(pipe, adapter, inputs, blocks)
    pipe.release("transformer")
    return {
        "dtype": dtype,
        "timestep": TIMESTEP,
        "image_tokens": inputs.latents.shape[1],
        "text_tokens": inputs.text.shape[1],
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "velocity": [
            {"guidance": key[1], "adapter": key[0]} | distances(ours[key], theirs[key], exact[key])
            for key in exact
        ],
        "effect": [
            {"guidance": scale, "float32": {"size": effect(exact, scale)[1]}}
            | {name: beside(found, exact, scale) for name, found in named(ours, theirs)}
            for scale in GUIDANCES
        ],
        "blocks": [
            line
            for block, one, true in zip(blocks, our_blocks, exact_blocks, strict=True)
            for line in of_block(block, one, true)
        ],
    }


def distances(ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> Record:
    """The relative error of each of `PAIRS`."""
    pairs = ((ours, theirs), (ours, exact), (theirs, exact))
    return {name: relative(*pair) for name, pair in zip(PAIRS, pairs, strict=True)}


def named(ours: Velocities, theirs: Velocities) -> tuple[tuple[str, Velocities], ...]:
    """Both sides with their names."""
    return ("ours", ours), ("diffusers", theirs)


def effect(found: Velocities, scale: float) -> tuple[np.ndarray, float]:
    """The change by an adapter, and its size relative to the velocity without it."""
    plain, adapted = found[False, scale], found[True, scale]
    return adapted - plain, relative(adapted, plain)


def beside(found: Velocities, exact: Velocities, scale: float) -> Record:
    """A side's effect compared with that in float32."""
    (change, size), (true, _) = effect(found, scale), effect(exact, scale)
    return {"size": size, "error": relative(change, true), "slope": slope(change, true)}


def of_block(block: Block, ours: Streams, exact: Streams) -> list[Record]:
    """The errors of a block, for both streams."""
    return [
        {
            "block": f"{block.kind} {block.index}",
            "stream": stream,
            "change": relative(getattr(block.given, stream), getattr(exact, stream)),
            **distances(*(getattr(made, stream) for made in (ours, block.made, exact))),
        }
        for stream in STREAMS
    ]


def read_both(path: Path) -> tuple[Path, Adapter]:
    """Find the adapter's file in diffusers' layout, and read it.

    Args:
        path: the file, its folder or a run's folder.

    Raises:
        InputError: there is no such file, or the adapter changes nothing.
    """
    files = (path, path / TORCH_FILE, path / "adapter" / TORCH_FILE)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise InputError(f"adapter = {str(path)!r}: no {TORCH_FILE} there; check the path")
    adapter = read_adapter(file)
    if adapter.layout != "diffusers":
        raise InputError(f"adapter = {str(path)!r}: diffusers cannot load it; use convert.lora")
    ups = (leaf for name, leaf in flatten(adapter.lora).items() if name.endswith("/B"))
    if not any(np.any(leaf) for leaf in ups):
        raise InputError(f"adapter = {str(path)!r} changes nothing, every B is 0; train it first")
    return file, Adapter(adapter.lora, adapter.alpha)


def velocity_table(result: Mapping[str, Any]) -> Table:
    """Table with a row for each velocity."""
    table = Table("guidance", "LoRA", title=f"Velocity in {result['dtype']}, relative errors")
    for heading in PAIRS.values():
        table.add_column(heading, justify="right")
    for line in result["velocity"]:
        with_it = "yes" if line["adapter"] else "no"
        table.add_row(str(line["guidance"]), with_it, *(f"{line[name]:.2e}" for name in PAIRS))
    return table


def effect_table(result: Mapping[str, Any]) -> Table:
    """Table with a row for each side's effect."""
    table = Table("guidance", "", title="The LoRA's effect, compared with float32")
    for heading in ("size", "error", "slope"):
        table.add_column(heading, justify="right")
    for line in result["effect"]:
        scale = str(line["guidance"])
        table.add_row(scale, "float32", f"{line['float32']['size']:.2e}", "", "")
        for side in ("ours", "diffusers"):
            of = line[side]
            numbers = f"{of['size']:.2e}", f"{of['error']:.2e}", f"{of['slope']:.4f}"
            table.add_row(scale, side, *numbers)
    return table


def blocks_table(result: Mapping[str, Any]) -> Table:
    """Table of the blocks with the largest errors between the two sides."""
    count = len({line["block"] for line in result["blocks"]})
    title = f"{WORST} largest relative errors of {count} blocks' outputs, per stream"
    table = Table("block", "stream", title=title)
    for heading in (*PAIRS.values(), "change"):
        table.add_column(heading, justify="right")
    lines = sorted(result["blocks"], key=lambda line: line["ours_diffusers"], reverse=True)
    for line in lines[:WORST]:
        numbers = (f"{line[name]:.2e}" for name in (*PAIRS, "change"))
        table.add_row(line["block"], line["stream"], *numbers)
    return table


def machine() -> dict[str, str]:
    """Hardware and package versions of both sides."""
    place = diffusers.device()
    name = torch.cuda.get_device_name() if place.type == "cuda" else place.type
    packages = {package: version(package) for package in ("jax", "torch", "diffusers", "peft")}
    return {"jax_device": jax.devices()[0].device_kind, "torch_device": name, **packages}


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    # Before JAX starts: PyTorch runs first and needs the whole GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    given = flags.FLAGS
    lora, adapter = read_both(Path(given.adapter))
    folder = Path(find_model(given.model))
    if not list((folder / "transformer").glob("diffusion_pytorch_model*.safetensors")):
        raise InputError(f"model = {given.model!r}: no weights in diffusers' layout there")
    pipe = load(folder, jnp.bfloat16)
    pipe.grid(given.pixels, given.pixels)
    side = given.pixels // pipe.pixels_per_token
    inputs = random_inputs(pipe.transformer.config, side, given.text_tokens, given.seed)
    settings = {"machine": machine(), "pixels": given.pixels, "seed": given.seed}
    result = settings | compare(pipe, folder, adapter, lora, inputs)
    write(Path(given.out), json.dumps(result, indent=1) + "\n")
    console = Console()
    console.width = max(console.width, WIDTH)
    for table in (velocity_table(result), effect_table(result), blocks_table(result)):
        show(table, console=console)


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Folder of a pipeline in diffusers' layout.", required=True)
    flags.DEFINE_string("adapter", None, "Run's folder, adapter's folder or file.", required=True)
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_integer("pixels", 512, "Side of the picture.")
    flags.DEFINE_integer("text_tokens", 256, "Text tokens.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the inputs.")
    app.run(main, flags_parser=parse_flags)
