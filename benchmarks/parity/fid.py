"""Compares the FID of `erase.judges.fid` with the package's own command on the same folders.

    pip install torch-fidelity==0.4.0
    python -m benchmarks.parity.fid

The network's weights are random, so that nothing is downloaded.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from convert.arguments import Parser
from erase.judges.fid import FID, NETWORK
from flux_jax.errors import exits_cleanly, say

PICTURES, SIDE, LAYER = 12, 64, 192


def _write_pictures(folder: Path, seed: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(seed)
    for index in range(PICTURES):
        coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index}.png")


def _write_weights(path: Path) -> None:
    """Write random weights of the package's network."""
    import torch
    from torch_fidelity import (  # pyright: ignore[reportMissingImports] (an extra)
        feature_extractor_inceptionv3 as inception,
    )

    kind: Any = inception.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with (
        mock.patch.object(inception, "load_state_dict_from_url", return_value={}),
        mock.patch.object(kind, "load_state_dict"),
    ):
        network = kind("random", [str(LAYER)])
    torch.save(network.state_dict(), path)


def _command(ours: Path, theirs: Path, weights: Path) -> float:
    """The number that the package's command prints."""
    from torch_fidelity import fidelity  # pyright: ignore[reportMissingImports]

    arguments = ["--fid", "--cpu", "--json", "--no-cache", "--silent", "--input1", str(ours)]
    arguments += ["--input2", str(theirs), "--feature-extractor", NETWORK]
    arguments += ["--feature-layer-fid", str(LAYER), "--feature-extractor-weights-path"]
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["fidelity", *arguments, str(weights)]),
        contextlib.redirect_stdout(printed),
    ):
        fidelity.main()
    return json.loads(printed.getvalue())["frechet_inception_distance"]


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Compare; see the module's docstring."""
    Parser("benchmarks.parity.fid", __doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for seed, folder in enumerate(("ours", "theirs")):
            _write_pictures(root / folder, seed)
        weights = root / "weights.pth"
        _write_weights(weights)
        fid = FID(weights, LAYER)
        figure = fid.between(root / "ours", root / "theirs")
        wanted = _command(root / "ours", root / "theirs", weights)
    say(json.dumps(dict(fid.description)))
    say(f"FID {figure.value}, theirs {wanted}")
    if figure.value != wanted:
        sys.exit("the numbers differ")


if __name__ == "__main__":
    main()
