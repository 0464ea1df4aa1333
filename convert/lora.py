"""Convert adapter files of FLUX's transformer between four layouts; reads several more.

    erase-anything convert adapter runs/soccer-ball/adapter soccer-ball.safetensors --to kohya

The layout of SRC is detected from its keys; docs/adapters.md lists all supported layouts. DST is a
file if it ends in .safetensors or .sft, else a folder. Without --to, diffusers' layout is converted
to this project's (flax), and any other to diffusers'.

- diffusers: `transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight` and `.lora_B.weight`.
- kohya: `lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight`, `.lora_up.weight`, `.alpha`, as
  kohya's scripts write and ComfyUI and diffusers load. Names are those of the original model, which
  joins layers: see `convert.adapters.joined`.
- original: `diffusion_model.double_blocks.0.txt_attn.qkv.lora_down.weight`, which ComfyUI and
  diffusers load; the only one with full differences (`.diff`).
- flax: `dual_blocks/attn/add_q_proj/A`, stacked, with one rank and one alpha.

A layer's change is alpha / R * B A. Every layer keeps its rank, alpha and types. A layer without an
alpha has its rank as alpha. Kohya's and the original layout store every alpha; diffusers' has
`<layer>.alpha` on all layers if any differs from its rank, and on none otherwise: its loader
assigns the most common alpha to layers without one if others have one. Pipelines of every diffusers
version and other programs read these keys. (`FluxTransformer2DModel.load_lora_adapter`, called
without a pipeline, does not.) The header entry that newer diffusers versions write instead is
supported for reading.

A note on stderr lists what diffusers will not apply, or will apply differently.
"""

from collections.abc import Sequence
from pathlib import Path

from convert.adapters.files import _dropped, named_file, read_layers, write_layers
from convert.adapters.names import FLAX, LAYOUTS
from convert.arguments import Parser, check_exists
from flux_jax import moved
from flux_jax.errors import InputError, exits_cleanly, note, say

# The library for adapter files was in this module.
__getattr__ = moved.names(__name__, "convert.adapters.files")


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module's docstring."""
    parser = Parser("erase-anything convert adapter", __doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="file or folder to read")
    parser.add_argument("target", metavar="DST", type=Path, help="file or folder to write")
    parser.add_argument("--to", choices=LAYOUTS, help="layout to write")
    options = parser.parse_args(arguments)
    check_exists("SRC", options.source)
    adapter = read_layers(options.source)
    layout = options.to or (FLAX if adapter.layout == "diffusers" else "diffusers")
    file = named_file(options.target, layout)
    if file.exists():
        raise InputError(f"{file} exists; choose another DST or remove it")
    say(write_layers(file, layout, adapter.layers, adapter.metadata))
    dropped = _dropped(layout, adapter.layers)
    if dropped:
        note(f"{file}: {dropped}")


if __name__ == "__main__":
    main()
