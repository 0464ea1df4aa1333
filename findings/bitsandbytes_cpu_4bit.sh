#!/usr/bin/env bash
# bitsandbytes 0.50.2, functional.dequantize_4bit on a CPU with AVX-512, NF4 and FP4.
#
# Seen: where a row's length is a multiple of 16 and not of the block size, the numbers are wrong
# (no error, no warning): for normal numbers a 32 x 64 matrix in blocks of 128 is off by 0.6 to 1.0,
# and a 32 x 96 matrix in blocks of 64 by 1.7 to 2.2. 3072 x 3072, and any other row that blocks fill,
# is right. The fast path seems to start a new block with every row, while blocks go on over rows.
# It hurts: FLUX's first layer has rows of 64, so a model quantised with blocksize 128 or more is
# dequantised wrong on such a machine, and is taken for what the file holds.
#
# What is right is computed from the same bytes: table[code] * absmax of the number's block.
set -euo pipefail
if ! grep -qm1 avx512 /proc/cpuinfo; then
    echo "this processor has no AVX-512: nothing to see here"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "bitsandbytes==0.50.2" "torch==2.13.0" numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from bitsandbytes import functional

torch.manual_seed(0)
errors = {}
for kind in ("nf4", "fp4"):
    for columns, block in ((64, 64), (128, 64), (64, 128), (96, 64)):
        weight = torch.randn(32, columns)
        packed, state = functional.quantize_4bit(weight, blocksize=block, quant_type=kind)
        flat = packed.reshape(-1)
        codes = torch.stack([flat >> 4, flat & 15], 1).reshape(-1).long()
        scales = state.absmax.repeat_interleave(block)[: weight.numel()]
        right = (state.code[codes] * scales).reshape(weight.shape)
        made = functional.dequantize_4bit(packed, state)
        errors[kind, columns, block] = (made - right).abs().max().item()
        print(f"{kind} rows of {columns} in blocks of {block}: off by {errors[kind, columns, block]:.3f}")
for (kind, columns, block), error in errors.items():
    fills = columns % block == 0
    assert (error < 1e-6) == fills, f"the behaviour has changed at {kind}, {columns}, {block}"
PYTHON
