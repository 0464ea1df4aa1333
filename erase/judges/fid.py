"""FID: how far pictures are from others, by the package torch-fidelity (an extra).

It is no judge of single pictures: it compares the Inception features of two folders. FIDs of other
packages differ, so backend, layer, resizing and counts belong to each number.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase.judges.protocol import Figure
from flux_jax.errors import InputError, note

PACKAGE = "torch-fidelity"
NETWORK = "inception-v3-compat"
# Layers by their number of features; the last is the usual one.
LAYERS = (64, 192, 768, 2048)
# What the package reads, in the folder itself.
SUFFIXES = (".png", ".jpg", ".jpeg")
SOURCE = "weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0"


@dataclass(frozen=True)
class FID:
    """Fréchet distance of Inception's features.

    Attributes:
        weights: file of the network; None for the one that the package downloads.
        layer: number of features, one of `LAYERS`.
        batch: pictures at once.
    """

    weights: Path | None = None
    layer: int = LAYERS[-1]
    batch: int = 64

    def __post_init__(self) -> None:
        """Check the package, the layer and the weights.

        Raises:
            InputError: the package is not installed, or the layer or the file are unusable.
        """
        _package()
        if self.layer not in LAYERS:
            raise InputError(f"layer = {self.layer} must be one of {', '.join(map(str, LAYERS))}")
        if self.weights is not None:
            _check_weights(self.weights)

    @property
    def description(self) -> Mapping[str, str | float]:
        """Backend, network, layer, resizing and weights."""
        return {
            "judge": "FID",
            "backend": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
            "network": NETWORK,
            "layer": self.layer,
            "resize": "bilinear to 299 pixels, as in TensorFlow 1",
            "weights": "the package's" if self.weights is None else self.weights.name,
        }

    def check(self, folder: Path) -> None:
        """Check, before pictures are drawn, that a folder of them can be compared.

        Raises:
            InputError: there is no such folder, or it has fewer than two pictures.
        """
        _count(folder)

    def between(self, pictures: Path, reference: Path) -> Figure:
        """Compute the distance of two folders; notes on stderr where pictures are too few.

        Args:
            pictures: folder of PNG or JPEG files; folders in it are not read.
            reference: another one.

        Returns:
            The figure, without an interval; `pictures` is the smaller number of both.

        Raises:
            InputError: a folder has fewer than two pictures, a picture or the weights cannot be
                read, or the weights cannot be downloaded.
        """
        counts = [_count(folder) for folder in (pictures, reference)]
        if min(counts) < self.layer:
            note(
                f"FID: {counts[0]} pictures and {counts[1]} reference pictures, fewer than the "
                f"{self.layer} features: the number is too large, and differs from draw to draw"
            )
        try:
            metrics = _package().calculate_metrics(
                input1=str(pictures),
                input2=str(reference),
                fid=True,
                feature_extractor=NETWORK,
                feature_layer_fid=str(self.layer),
                feature_extractor_weights_path=None if self.weights is None else str(self.weights),
                cuda=importlib.import_module("torch").cuda.is_available(),
                batch_size=self.batch,
                cache=False,
                # No worker processes: a fork of a process with JAX's threads can hang.
                save_cpu_ram=True,
                verbose=False,
            )
        # Downloads, pictures and weights fail with errors of many kinds.
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            download = f"; without a network, give {SOURCE}" if self.weights is None else ""
            raise InputError(
                f"FID of {pictures} and {reference} failed ({first:.120}){download}"
            ) from error
        value = float(metrics["frechet_inception_distance"])
        return Figure("FID", value, "", None, None, min(counts))


def _package() -> Any:
    """The package.

    Raises:
        InputError: it, PyTorch or torchvision is not installed, or they do not fit together.
    """
    try:
        return importlib.import_module("torch_fidelity")
    except ModuleNotFoundError as error:
        raise InputError(
            f"FID needs the package {error.name} (Apache-2.0; with PyTorch and torchvision): "
            "pip install 'erase-anything-jax[fid]'"
        ) from error
    # torchvision for another PyTorch raises RuntimeError, among others.
    except Exception as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{PACKAGE} cannot be imported ({first:.120}): install versions of torch and "
            "torchvision that belong together"
        ) from error


def _check_weights(path: Path) -> None:
    """Check that weights are tensors only: the package would run any program in the file.

    Raises:
        InputError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; FID needs {SOURCE}")
    torch = importlib.import_module("torch")
    try:
        torch.load(path, map_location="meta", weights_only=True)
    # PyTorch documents no exception class.
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} does not hold tensors only ({first:.100}); FID needs {SOURCE}"
        ) from error


def _count(folder: Path) -> int:
    """Number of pictures that the package reads in a folder.

    Raises:
        InputError: there is no such folder, or it has fewer than two pictures.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; FID compares two folders of pictures")
    count = sum(file.suffix.lower() in SUFFIXES for file in folder.iterdir())
    if count < 2:
        raise InputError(
            f"{folder}: {count} pictures ({', '.join(SUFFIXES)}) directly in it; FID needs at "
            "least two, better as many as features"
        )
    return count
