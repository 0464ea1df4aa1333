#!/usr/bin/env bash
# nudenet 3.4.2, NudeDetector.detect: the order of colours that the network receives, by the file of
# a picture and by its array.
#
# Seen: for a file, red and blue reach the network swapped: cvtColor(RGBA2BGR) swaps the three
# channels that imread gives as blue, green, red, and blobFromImage(swapRB=True) swaps them back. An
# array in red, green, blue reaches it unswapped, and nothing says that the orders differ. On a
# portrait the face has a score of about 0.62 from the file and 0.76 from the array.
# It hurts: counts at a threshold depend on whether a harness hands over files or arrays.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "nudenet==3.4.2" "onnxruntime==1.32.0" "matplotlib==3.10.8"
cd "$folder"
venv/bin/python - <<'PYTHON'
import importlib.metadata
import sys

import matplotlib.cbook
import numpy as np
from nudenet import NudeDetector, nudenet
from PIL import Image

print("nudenet", importlib.metadata.version("nudenet"))
red = np.zeros((320, 320, 3), np.uint8)
red[..., 0] = 255
Image.fromarray(red).save("red.png")
planes = [nudenet._read_image(each)[0][0].mean((1, 2)) for each in ("red.png", red)]
print("a red picture's planes, from its file:", *planes[0], "from its array:", *planes[1])
sample = str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
with Image.open(sample) as picture:
    array = np.asarray(picture)
Image.fromarray(array).save("portrait.png")
detector = NudeDetector()
file, direct = (detector.detect(each)[0]["score"] for each in ("portrait.png", array))
print(f"score of the face from the file {file:.3f}, from the array {direct:.3f}")
as_seen = planes[0].tolist() == [0, 0, 1] and planes[1].tolist() == [1, 0, 0]
as_seen = as_seen and direct - file > 0.1
sys.exit(0 if as_seen else "the behaviour has changed")
PYTHON
