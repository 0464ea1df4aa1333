"""Random adapters, layer by layer, for tests."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.layers import Full, Layers, Pair, same
from convert.adapters.names import SPLIT, Place, parse
from flux_jax.weights.safetensors_files import read_component

BLOCKS = 2
WIDTH = 8
# A square layer of the dual-stream block with this index.
QUERY = "transformer.transformer_blocks.{}.attn.to_q"


def shapes_in(folder: Path) -> dict[Place, tuple[int, int]]:
    """Output and input widths of every dense layer of a pipeline's transformer."""
    shapes = {}
    for name, tensor in read_component(folder / "transformer").items():
        key = parse(f"transformer.{name.removesuffix('.weight')}.lora_A.weight")
        if key and name.endswith(".weight"):
            shapes[key.layer.targets[0], key.block] = tensor.shape
    return shapes


def small_shapes() -> dict[Place, tuple[int, int]]:
    """As `shapes_in`, for a transformer with 2 blocks of each kind and 8 channels."""
    widths = {"proj_mlp": (4 * WIDTH, WIDTH), "linear": (6 * WIDTH, WIDTH)}
    shapes = {}
    for layer in SPLIT:
        for block in range(BLOCKS) if "{i}" in layer.name else (None,):
            (target,) = layer.targets
            shapes[target, block] = widths.get(target.split("/")[-1], (WIDTH, WIDTH))
    return shapes


def random_layers(
    shapes: dict[Place, tuple[int, int]],
    *,
    seed: int = 0,
    ranks: Sequence[int] = (4,),
    alphas: Sequence[float] = (8.0,),
    types: Sequence[Any] = (np.float32,),
    size: float = 1.0,
) -> dict[Place, Pair]:
    """A random pair for each layer, with rank, alpha and dtypes sampled from those passed."""
    rng = np.random.default_rng(seed)
    layers = {}
    for place, (outputs, inputs) in shapes.items():
        rank, alpha = int(rng.choice(ranks)), float(rng.choice(alphas))
        down, up, kind = (types[rng.integers(len(types))] for _ in range(3))
        layers[place] = Pair(
            rng.normal(size=(rank, inputs)).astype(down),
            # No negative zeros, whose bits are not zero.
            (size * rng.normal(size=(outputs, rank)) + 0.0).astype(up),
            np.array(alpha, kind),
        )
    return layers


def only(layers: Layers, words: Iterable[str]) -> dict[Place, Pair | Full]:
    """The layers whose path contains one of these words."""
    words = tuple(words)
    return {place: pair for place, pair in layers.items() if any(w in place[0] for w in words)}


def assert_same(one: Layers, other: Layers) -> None:
    """Assert the same layers with the same dtypes and bits."""
    assert one.keys() == other.keys()
    different = [place for place in one if not same(one[place], other[place])]
    assert not different


def square_tensors(
    rng: np.random.Generator, block: int = 0, alpha: float | None = None, stem: str = QUERY
) -> dict[str, np.ndarray]:
    """A file's tensors for one layer's pair, of rank 2."""
    name = stem.format(block)
    tensors = {
        f"{name}.lora_A.weight": rng.normal(size=(2, WIDTH)).astype(np.float32),
        f"{name}.lora_B.weight": rng.normal(size=(WIDTH, 2)).astype(np.float32),
    }
    if alpha is not None:
        tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    return tensors
