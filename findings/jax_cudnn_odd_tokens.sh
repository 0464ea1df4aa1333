#!/usr/bin/env bash
# jax 0.10.2, jax.nn.dot_product_attention(implementation="cudnn"), bfloat16, no bias and no mask.
# 0.11.2 and 0.12.0 have the same code.
#
# Seen: the forward pass takes any number of tokens; its gradient raises
# "NotImplementedError: Unsupported sequence length Q 1345, KV 1345." at an odd number of tokens,
# and works at 1344. The refusal is meant for attention with a bias (cuDNN wants even lengths
# there), but an absent bias is passed on as an empty array, and is taken for one.
# It hurts: sampling a picture of 528 x 528 with FLUX works, training at that size dies after the
# weights are loaded. A token of padding with query_seq_lengths and key_value_seq_lengths is exact
# and works.
#
# Only traced here, which needs no GPU: what JAX asks the machine for is answered in its place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn

cudnn.check_cudnn_version = lambda: 91900
cudnn.check_compute_capability = lambda capability: True
cudnn.is_cuda_compute_capability_equal = lambda capability: False


def attention(x):
    return jax.nn.dot_product_attention(x, x, x, implementation="cudnn").sum()


def trace(function, tokens):
    try:
        jax.eval_shape(function, jax.ShapeDtypeStruct((1, tokens, 2, 128), jnp.bfloat16))
    except NotImplementedError as error:
        return str(error)
    return "traced"


seen = {
    "forward, 1345 tokens": trace(attention, 1345),
    "gradient, 1344 tokens": trace(jax.grad(attention), 1344),
    "gradient, 1345 tokens": trace(jax.grad(attention), 1345),
}
print("jax", jax.__version__, seen)
assert list(seen.values()) == [
    "traced",
    "traced",
    "Unsupported sequence length Q 1345, KV 1345.",
], "this has changed"
PYTHON
