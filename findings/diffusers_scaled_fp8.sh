#!/usr/bin/env bash
# diffusers 0.42.1, FluxTransformer2DModel.from_single_file, a FLUX.1 file in ComfyUI's scaled fp8:
# `<layer>.weight` in float8_e4m3fn, `<layer>.scale_weight`, and the marker `scaled_fp8`; a weight is
# the product of the two. Such files are common (flux1-dev-fp8-scaled, t5xxl_fp8_e4m3fn_scaled).
#
# Seen: the file loads with no error and no warning; the scales are dropped and each weight is what
# lies in fp8, here more than 4,000 times too large.
# It hurts: pictures are noise, or a comparison takes such weights for the model's, and nothing
# says why.
#
# One block of each kind at FLUX's width (the converter knows no other): about 4 GB of memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "diffusers==0.42.1" "torch==2.13.0" "transformers==5.24.0" \
    accelerate
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json
import logging
import warnings

import torch
from diffusers import FluxTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import save_file

records = []
handler = logging.Handler()
handler.emit = lambda record: records.append(record.getMessage())
diffusers_logging.get_logger("diffusers").addHandler(handler)

sizes = {
    "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 64,
    "pooled_projection_dim": 16, "guidance_embeds": True,
}
WIDTH, MLP = 3072, 4 * 3072
torch.manual_seed(0)
stored = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
true = {}


def layer(name, outputs, inputs, scaled=False):
    # One random row many times: quick to make.
    weight = (torch.randn(inputs) / inputs**0.5).repeat(outputs, 1)
    true[name] = weight.std().item()
    if scaled:
        scale = weight.abs().max() / 448
        stored[f"{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        stored[f"{name}.scale_weight"] = scale
        stored[f"{name}.scale_input"] = torch.tensor(1.0)
    else:
        stored[f"{name}.weight"] = weight.bfloat16()
    stored[f"{name}.bias"] = torch.zeros(outputs, dtype=torch.bfloat16)


layer("img_in", WIDTH, 64)
layer("txt_in", WIDTH, 64)
for name, inputs in (("time_in", 256), ("guidance_in", 256), ("vector_in", 16)):
    layer(f"{name}.in_layer", WIDTH, inputs)
    layer(f"{name}.out_layer", WIDTH, WIDTH)
for side in ("img", "txt"):
    block = f"double_blocks.0.{side}"
    layer(f"{block}_mod.lin", 6 * WIDTH, WIDTH, scaled=True)
    layer(f"{block}_attn.qkv", 3 * WIDTH, WIDTH, scaled=True)
    layer(f"{block}_attn.proj", WIDTH, WIDTH, scaled=True)
    layer(f"{block}_mlp.0", MLP, WIDTH, scaled=True)
    layer(f"{block}_mlp.2", WIDTH, MLP, scaled=True)
    for norm in ("query_norm", "key_norm"):
        stored[f"{block}_attn.norm.{norm}.scale"] = torch.ones(128, dtype=torch.bfloat16)
layer("single_blocks.0.modulation.lin", 3 * WIDTH, WIDTH, scaled=True)
layer("single_blocks.0.linear1", 3 * WIDTH + MLP, WIDTH, scaled=True)
layer("single_blocks.0.linear2", WIDTH, WIDTH + MLP, scaled=True)
for norm in ("query_norm", "key_norm"):
    stored[f"single_blocks.0.norm.{norm}.scale"] = torch.ones(128, dtype=torch.bfloat16)
layer("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
layer("final_layer.linear", 64, WIDTH)

save_file(stored, "flux1-dev-fp8-scaled.safetensors")
with open("config.json", "w") as file:
    json.dump({"_class_name": "FluxTransformer2DModel", **sizes}, file)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = FluxTransformer2DModel.from_single_file(
        "flux1-dev-fp8-scaled.safetensors", config=".", torch_dtype=torch.bfloat16
    )
read = model.transformer_blocks[0].ff.net[0].proj.weight.float()
raw = stored["double_blocks.0.img_mlp.0.weight"].float()
ratio = (read.std() / true["double_blocks.0.img_mlp.0"]).item()
told = [text for text in [*records, *(str(each.message) for each in caught)] if "scale" in text]
print(f"read as it lies in fp8: {torch.equal(read, raw)}; {ratio:.0f} times too large; told: {told}")
assert torch.equal(read, raw) and ratio > 1000 and not told, "the behaviour has changed"
PYTHON
