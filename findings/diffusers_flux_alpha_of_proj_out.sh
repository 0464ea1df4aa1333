#!/usr/bin/env bash
# diffusers 0.42.1 (peft 0.21.2), FluxPipeline.load_lora_weights, a LoRA of FLUX.1 in diffusers'
# names with an .alpha for each layer, the commonest on most and another on the last proj_out.
#
# Seen: the alpha of "proj_out" is applied to every "single_transformer_blocks.N.proj_out" too, so
# these layers have the wrong strength: here 8 / 4 for 4 / 4. Nothing is said.
# The loader makes PEFT's alpha_pattern {"proj_out": 8} of it, and PEFT takes a pattern for the end
# of a name. (Ranks are written as "^proj_out", which fits only the whole name.)
# It hurts: adapters with another alpha on the last layer come out too strong or too weak.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "diffusers==0.42.1" "peft==0.21.2" "torch==2.13.0" \
    "transformers==5.24.0" accelerate
"$folder/venv/bin/python" - <<'PYTHON'
import diffusers
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

transformer = FluxTransformer2DModel(
    in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=16,
    axes_dims_rope=(4, 6, 6),
)
none = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
pipeline = FluxPipeline(**dict.fromkeys(none), transformer=transformer)
given = {
    "x_embedder": (32, 16, 4.0),
    "single_transformer_blocks.0.proj_out": (32, 160, 4.0),
    "proj_out": (16, 32, 8.0),
}
tensors = {}
for name, (outputs, inputs, alpha) in given.items():
    tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(4, inputs)
    tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(outputs, 4)
    tensors[f"transformer.{name}.alpha"] = torch.tensor(alpha)
pipeline.load_lora_weights(tensors, adapter_name="a")
layers = dict(transformer.named_modules())
scales = {name: float(layers[name].scaling["a"]) for name in given}
wanted = {name: alpha / 4 for name, (_, _, alpha) in given.items()}
print("diffusers", diffusers.__version__, "alpha / rank in the file:", wanted, "applied:", scales)
assert scales == wanted | {"single_transformer_blocks.0.proj_out": 2.0}, "this has changed"
PYTHON
