#!/usr/bin/env bash
# safetensors 0.8.0, save_file of safetensors.numpy: a transposed view is stored as it lies in
# memory, with the view's shape. The file reads without an error, with other numbers. Weights that
# are transposed between layouts (PyTorch's [out, in], Flax's [in, out]) are such views. Copy them
# first: numpy.ascontiguousarray.
# Seen: "plain True, transposed False, copied True". Exit code 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.3.5
cd "$folder"
seen=$(venv/bin/python - << 'PYTHON'
import numpy as np
from safetensors.numpy import load_file, save_file

plain = np.arange(6, dtype=np.float32).reshape(2, 3)
same = []
for name, array in (
    ("plain", plain),
    ("transposed", plain.T),
    ("copied", np.ascontiguousarray(plain.T)),
):
    save_file({name: array}, f"{name}.safetensors")
    same.append(f"{name} {np.array_equal(load_file(f'{name}.safetensors')[name], array)}")
print(", ".join(same))
PYTHON
)
echo "$seen"
[ "$seen" = "plain True, transposed False, copied True" ]
