"""Random adapter changes of every kind, and their effect on weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from convert.adapters.layers import Full, Layers, Pair
from convert.adapters.names import Place, parse
from flux_jax.weights.safetensors_files import read_component


def weights_in(folder: Path) -> dict[Place, np.ndarray]:
    """Weights [O, I] of every dense layer of a pipeline's transformer."""
    weights = {}
    for name, tensor in read_component(folder / "transformer").items():
        key = parse(f"transformer.{name.removesuffix('.weight')}.lora_A.weight")
        if key and name.endswith(".weight"):
            weights[key.layer.targets[0], key.block] = np.asarray(tensor, np.float32)
    return weights


def random_pairs(
    weights: Mapping[Place, np.ndarray],
    *,
    seed: int = 0,
    ranks: Sequence[int] = (1, 3, 4),
    alphas: Sequence[float] = (1.0, 5.0, 4.0),
    kinds: Sequence[str] = (),
) -> dict[Place, Pair]:
    """A pair for each of these weights [O, I], optionally with "bias" or "dora" magnitudes."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 0.2).astype(np.float32)

    made = {}
    for index, (place, weight) in enumerate(weights.items()):
        rank, alpha = ranks[index % len(ranks)], alphas[index % len(alphas)]
        outputs, inputs = weight.shape
        made[place] = Pair(
            normal(rank, inputs),
            normal(outputs, rank),
            np.array(alpha, np.float32),
            normal(outputs) if "bias" in kinds else None,
            np.linalg.norm(weight, axis=1) * (1 + normal(outputs)) if "dora" in kinds else None,
        )
    return made


def mixed(weights: Mapping[Place, np.ndarray], seed: int = 0) -> Layers:
    """Low-rank, DoRA and full differences with and without biases, several in one target."""
    rng = np.random.default_rng(seed)
    layers: dict[Place, Pair | Full] = {}
    pairs = random_pairs(weights, seed=seed, kinds=("bias", "dora"))
    for index, (place, pair) in enumerate(pairs.items()):
        delta = (0.1 * rng.normal(size=pair.shape)).astype(np.float32)
        change = (
            pair,
            Full(delta),
            Pair(pair.down, pair.up, pair.alpha),
            Full(delta, pair.bias, pair.magnitude),
            Pair(pair.down, pair.up, pair.alpha, magnitude=pair.magnitude),
            Full(delta, pair.bias),
            None,
        )[(index + seed) % 7]
        if change is not None:
            layers[place] = change
    return layers


def difference(change: Pair | Full, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
    """Changes of a layer's weight [O, I] and bias, in double precision."""
    weight = weight.astype(np.float64)
    if isinstance(change, Full):
        added = change.delta.astype(np.float64)
    else:
        added = float(change.scale) * change.up.astype(np.float64) @ change.down
    if change.magnitude is not None:
        turned = weight + added
        lengths = np.linalg.norm(turned, axis=1)
        added = (change.magnitude / lengths)[:, None] * turned - weight
    return added, 0.0 if change.bias is None else change.bias
