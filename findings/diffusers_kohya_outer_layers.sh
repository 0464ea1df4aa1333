#!/usr/bin/env bash
# diffusers 0.42.1 (peft 0.21.2), FluxPipeline.load_lora_weights, a LoRA of FLUX.1 in kohya's layout
# or ComfyUI's with layers outside the blocks (img_in, time_in, final_layer, ...).
#
# Seen: these layers are dropped without an error or a warning. The converter gives them names
# without "transformer." (x_embedder.lora_A.weight), and the loader keeps only names that have it.
# Layers in blocks are loaded. final_layer's .alpha is dropped as well.
# It hurts: a file that was trained on these layers (sd-scripts can, ComfyUI applies them) draws
# something else in diffusers, and nothing says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "diffusers==0.42.1" "peft==0.21.2" "torch==2.13.0" \
    "transformers==5.24.0" accelerate
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import warnings

import diffusers
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

heard = []


class Ear(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            heard.append(record.getMessage())


def pairs(names):
    tensors = {}
    for name, outputs, inputs in names:
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(2, inputs)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(outputs, 2)
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
    return tensors


transformer = FluxTransformer2DModel(
    in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=16,
    axes_dims_rope=(4, 6, 6),
)
none = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
pipeline = FluxPipeline(**dict.fromkeys(none), transformer=transformer)
diffusers.utils.logging.get_logger("diffusers").addHandler(Ear())
with warnings.catch_warnings(record=True) as caught:
    pipeline.load_lora_weights(
        pairs(
            [
                ("img_in", 32, 16),
                ("time_in_in_layer", 32, 256),
                ("final_layer_linear", 16, 32),
                ("double_blocks_0_img_attn_proj", 32, 32),
            ]
        )
    )
loaded = [name for name, each in transformer.named_modules() if getattr(each, "lora_A", None)]
said = [line for line in [*heard, *(str(each.message) for each in caught)] if "x_embedder" in line]
print("diffusers", diffusers.__version__, "loaded:", loaded, "said of the others:", said)
assert loaded == ["transformer_blocks.0.attn.to_out.0"], "this has changed"
assert not said, "this has changed"
PYTHON
