"""Computes a layer's change from its tensors in an adapter file.

| parts | change of the weight |
| --- | --- |
| down, up | alpha / R * up @ down |
| lokr_w1, lokr_w2 | kron(w1, w2); a factor may come as the product of _a and _b, of rank R |
| hada_w1_a, _b, hada_w2_a, _b | (w1_a @ w1_b) * (w2_a @ w2_b), entry by entry |
| diff | diff |

LoKr and LoHa are multiplied by alpha / R too, except a LoKr with two full factors, which has scale
1. The factors' names and scales are LyCORIS's.

Axis letters: I inputs, O outputs, R rank.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from convert.adapters.layers import ALPHAS, Full, Pair, implied, number, typed
from convert.adapters.names import HIDDEN
from convert.adapters.peft import Scales
from flux_jax.weights.mapping import is_finite
from flux_jax.weights.safetensors_files import is_float

# Elements of the largest layer: a single block's queries, keys, values and MLP, joined.
LARGEST_CHANGE = 1 << 26
NOT_FINITE = "has infinities or NaN"
NO_ALPHA = "it must be a finite number"
PAIR = {"down", "up"}
LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
LOKR = {f"lokr_w{factor}{half}" for factor in "12" for half in ("", "_a", "_b")}
# Outputs of a layer over its inputs; 1 for all other layers in blocks.
_RATIOS = {
    "norm1/linear": (6, 1),
    "norm1_context/linear": (6, 1),
    "norm/linear": (3, 1),
    "norm_out/linear": (2, 1),
    "linear_1": (HIDDEN, 1),
    "proj_mlp": (HIDDEN, 1),
    "ff/linear_2": (1, HIDDEN),
    "ff_context/linear_2": (1, HIDDEN),
    "single_blocks/proj_out": (1, HIDDEN + 1),
}


class UnusableError(ValueError):
    """A layer's tensors do not form a valid change; the message says why."""


def change(
    parts: Mapping[str, np.ndarray], name: str, targets: tuple[str, ...], scales: Scales
) -> Pair | Full | None:
    """Computes a layer's change (pairs as stored); None for a full difference of only zeros.

    Args:
        parts: the layer's tensors; see `convert.adapters.names.Key.part`.
        name: the layer's name, for the header's scales.
        targets: the model's layers that it joins.
        scales: scales in the header.

    Raises:
        UnusableError: parts are missing, do not fit, or hold non-finite numbers.
    """
    for part, tensor in parts.items():
        _check_numbers(part, tensor, parts)
    kinds = [kind for kind in (PAIR, LOHA, LOKR, {"diff"}) if kind & parts.keys()]
    if len(kinds) > 1:
        raise UnusableError(
            f"has both {' and '.join(sorted(min(kind & parts.keys()) for kind in kinds))}"
        )
    bias = _vector(parts["diff_b"]) if "diff_b" in parts else None
    if bias is not None and not bias.any():
        bias = None
    if not kinds:
        if bias is None:
            if "diff_b" in parts:
                return None
            raise UnusableError(f"has {' and '.join(sorted(parts))} and no matrices")
        return _bias_alone(bias, targets)
    if kinds == [PAIR]:
        return _pair(parts, name, bias, scales)
    full = _full(parts, name, scales)
    if "bias" in parts:
        raise UnusableError("has the bias of a pair but no pair")
    if bias is not None and len(bias) != len(full):
        raise UnusableError(f"has a bias of {len(bias)} for {len(full)} outputs")
    magnitude = _magnitude(parts, len(full))
    changes = bias is not None or magnitude is not None or full.any()
    return Full(full, bias, magnitude) if changes else None


def settled(pair: Pair) -> Pair | None:
    """The pair with a positive alpha: a negative sign is moved to up; None if it has no effect.

    (Diffusers' reader of kohya's layout does not terminate for a negative alpha.)
    """
    alpha = number(pair.alpha)
    if alpha < 0:
        # Subtraction creates no negative zeros.
        up = np.zeros((), pair.up.dtype) - pair.up
        return replace(pair, up=up, alpha=np.asarray(np.abs(pair.alpha)))
    if alpha > 0:
        return pair
    if pair.magnitude is None and pair.bias is None:
        return None
    return replace(pair, up=np.zeros_like(pair.up), alpha=implied(pair.down))


def alpha_problem(alpha: np.ndarray) -> str | None:
    """The problem of an alpha, if any."""
    if alpha.size != 1:
        return f"has an alpha of shape {list(alpha.shape)}, expected one number"
    value = number(alpha)
    if value and not ALPHAS[0] <= abs(value) <= ALPHAS[1]:
        return f"has alpha = {value}; {NO_ALPHA}"
    return None


def pair_problem(pair: Pair) -> str | None:
    """The problem of a pair's matrices and alpha, if any."""
    for part, tensor in (("down", pair.down), ("up", pair.up)):
        problem = _numbers_problem(part, tensor)
        if problem:
            return problem
    down, up = list(pair.down.shape), list(pair.up.shape)
    if len(down) != 2 or len(up) != 2 or 0 in (*down, *up) or down[0] != up[1]:
        return f"is {down} down and {up} up, expected [R, I] and [O, R]"
    if down[0] > max(down[1], up[0]):
        return f"has rank {down[0]}, more than its {down[1]} inputs and {up[0]} outputs"
    return alpha_problem(pair.alpha)


def _pair(
    parts: Mapping[str, np.ndarray], name: str, bias: np.ndarray | None, scales: Scales
) -> Pair:
    lost = sorted(PAIR - parts.keys())
    if lost:
        raise UnusableError(f"has no {lost[0]} matrix")
    down, up = parts["down"], parts["up"]
    if {down.shape[2:], up.shape[2:]} == {(1, 1)} and down.ndim == up.ndim == 4:
        # Dense layers that a program trains as 1 x 1 convolutions.
        down, up = down[:, :, 0, 0], up[:, :, 0, 0]
    pair = Pair(down, up, _alpha(parts, down, scales.alpha(name, len(down) if down.ndim else 1)))
    problem = pair_problem(pair)
    if problem:
        raise UnusableError(problem)
    if "bias" in parts:
        own = _vector(parts["bias"]) * np.float32(pair.scale)
        bias = own if bias is None else bias + own
    if bias is not None and len(bias) != len(up):
        raise UnusableError(f"has a bias of {len(bias)} for {len(up)} outputs")
    return replace(pair, bias=bias, magnitude=_magnitude(parts, len(up)))


def _magnitude(parts: Mapping[str, np.ndarray], outputs: int) -> np.ndarray | None:
    """DoRA's magnitudes [O], if the layer has them."""
    if "magnitude" not in parts:
        return None
    magnitude = parts["magnitude"]
    if magnitude.shape not in {(outputs,), (outputs, 1)}:
        raise UnusableError(
            f"has DoRA's magnitudes as {list(magnitude.shape)}, expected one for each of {outputs} "
            "outputs: those for inputs are not supported"
        )
    return magnitude.reshape(-1)


def _alpha(
    parts: Mapping[str, np.ndarray], down: np.ndarray, header_alpha: float | None
) -> np.ndarray:
    """The alpha of the file, else of the header, else the rank."""
    if "alpha" not in parts:
        return implied(down) if header_alpha is None else typed(header_alpha, down.dtype)
    alpha = parts["alpha"]
    if alpha.size != 1:
        return alpha
    alpha = alpha.reshape(())
    if is_float(alpha.dtype):
        return alpha
    return typed(float(alpha), down.dtype)


def _full(parts: Mapping[str, np.ndarray], name: str, scales: Scales) -> np.ndarray:
    """The change as one matrix [O, I], in float32 or wider."""
    if "diff" in parts:
        delta = parts["diff"]
        if delta.ndim != 2 or not delta.size:
            raise UnusableError(f"has a difference of shape {list(delta.shape)}, expected [O, I]")
        return delta
    rank = None
    if LOHA & parts.keys():
        left, rank = _product(parts, "hada_w1")
        right, other = _product(parts, "hada_w2")
        if left.shape != right.shape or rank != other:
            raise UnusableError(
                f"has products of {list(left.shape)} and {list(right.shape)} and ranks {rank} and "
                f"{other}, expected the same"
            )
        delta = left * right
    else:
        left, rank = _factor(parts, "lokr_w1")
        right, other = _factor(parts, "lokr_w2")
        if None not in (rank, other) and rank != other:
            raise UnusableError(f"has factors of rank {rank} and {other}, expected one rank")
        rank = rank or other
        _check_size(len(left) * len(right), left.shape[1] * right.shape[1])
        delta = np.kron(left, right)
    scale = scales.scale(name)
    if "alpha" in parts:
        problem = alpha_problem(parts["alpha"])
        if problem:
            raise UnusableError(problem)
        scale = number(parts["alpha"]) / rank if rank else 1.0
    return delta * np.array(scale, delta.dtype)


def _factor(parts: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, int | None]:
    """A factor of LoKr, and its rank if it is a product of two matrices."""
    if name in parts:
        return _matrix(parts, name), None
    return _product(parts, name)


def _product(parts: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, int]:
    left, right = _matrix(parts, f"{name}_a"), _matrix(parts, f"{name}_b")
    if left.shape[1] != len(right):
        raise UnusableError(
            f"has {name}_a of {list(left.shape)} and {name}_b of {list(right.shape)}, which have "
            "no product"
        )
    _check_size(len(left), right.shape[1])
    return left @ right, len(right)


def _check_size(outputs: int, inputs: int) -> None:
    """Checks a change's size before it is computed from its factors."""
    if outputs * inputs > LARGEST_CHANGE:
        raise UnusableError(
            f"has a change of {outputs:,} x {inputs:,}, larger than any layer of FLUX.1"
        )


def _matrix(parts: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in parts:
        raise UnusableError(f"has no {name}")
    matrix = parts[name]
    if matrix.ndim != 2 or not matrix.size:
        raise UnusableError(f"has {name} of shape {list(matrix.shape)}, expected a matrix")
    return matrix.astype(_wide(matrix))


def _wide(array: np.ndarray) -> np.dtype:
    return array.dtype if array.dtype == np.float64 else np.dtype(np.float32)


def _vector(array: np.ndarray) -> np.ndarray:
    """A bias, in float32 or wider."""
    if array.ndim != 1 or not array.size:
        raise UnusableError(f"has a bias of shape {list(array.shape)}, expected [O]")
    return array.astype(_wide(array))


def _bias_alone(bias: np.ndarray, targets: tuple[str, ...]) -> Pair:
    """A change of only a bias, as a pair of zeros with that bias."""
    target = targets[0]
    if len(targets) > 1:
        outputs, inputs = sum(HIDDEN if each.endswith("mlp") else 1 for each in targets), 1
    elif "blocks/" in target or target == "norm_out/linear":
        outputs, inputs = next(
            (ratio for end, ratio in _RATIOS.items() if target.endswith(end)), (1, 1)
        )
    else:
        raise UnusableError("has a difference of the bias and none of the weight")
    columns, rest = divmod(len(bias) * inputs, outputs)
    if rest or not columns:
        raise UnusableError(f"has a bias of {len(bias)}, expected a multiple of {outputs}")
    down, up = np.zeros((1, columns), np.float32), np.zeros((len(bias), 1), np.float32)
    return Pair(down, up, implied(down), bias)


def _check_numbers(part: str, tensor: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
    if part != "alpha":
        problem = _numbers_problem(part, tensor)
        if problem:
            raise UnusableError(problem)
    elif "down" not in parts and (problem := alpha_problem(tensor)):
        raise UnusableError(problem)


def _numbers_problem(part: str, tensor: np.ndarray) -> str | None:
    if not is_float(tensor.dtype):
        return f"has {part} of {tensor.dtype.name}, expected floats"
    if not is_finite(tensor):
        return f"{NOT_FINITE} in {part}"
    return None


def product(pair: Pair) -> np.ndarray:
    """The matrix [O, I] of a pair without magnitudes, scale applied, in float32 or wider."""
    _check_size(*pair.shape)
    dtype = np.promote_types(_wide(pair.down), _wide(pair.up))
    scaled = pair.up.astype(np.float64) * float(pair.scale)
    if not math.isfinite(float(np.abs(scaled).max(initial=0))):
        raise UnusableError("has numbers that overflow every type")
    return (scaled @ pair.down.astype(np.float64)).astype(dtype)
