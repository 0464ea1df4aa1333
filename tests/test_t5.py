"""The T5 encoder against transformers."""

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import T5Config as TorchConfig
from transformers import T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from flux_jax.errors import InputError
from flux_jax.models.t5 import T5Config, T5Encoder, relative_position_bucket
from flux_jax.weights.mapping import to_flax
from flux_jax.weights.tables import T5

SHAPES: dict[str, dict[str, Any]] = {
    "one block": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
    "narrow heads": {"d_model": 24, "d_kv": 4, "d_ff": 40, "num_layers": 3, "num_heads": 5}
    | {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 40},
    "wide heads": {"d_model": 20, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 3},
}
VOCABULARY = 60


def reference(sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = TorchConfig(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **sizes)
    model = T5EncoderModel(config).eval()
    for name, parameter in model.named_parameters():
        centre, spread = (1.0, 0.3) if "layer_norm" in name else (0.0, 0.3)
        torch.nn.init.normal_(parameter, centre, spread)
    return model


def ours(model: Any) -> tuple[T5Encoder, dict[str, Any]]:
    encoder = T5Encoder(T5Config.from_dict(model.config.to_dict()))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return encoder, {"params": to_flax(T5, tensors, shapes["params"])}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [7, 300])
def test_encoder_equals_transformers(shape, tokens):
    model = reference(SHAPES[shape])
    encoder, variables = ours(model)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, tokens))
    ids[1, tokens // 2 :] = 0  # padding is attended to as well
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).last_hidden_state.numpy()
    got: Any = jax.jit(encoder.apply)(variables, ids)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 40), (64, 500), (4, 8)])
def test_buckets_equal_transformers(buckets, distance):
    offsets = np.arange(-3000, 3001)
    wanted = T5Attention._relative_position_bucket(
        torch.from_numpy(offsets), num_buckets=buckets, max_distance=distance
    )
    np.testing.assert_array_equal(relative_position_bucket(offsets, buckets, distance), wanted)


@pytest.mark.slow
def test_unrolled_blocks_give_the_same():
    looped, variables = ours(reference(SHAPES["wide heads"]))
    unrolled = T5Encoder(looped.config, unroll=True)
    run = [jax.jit(each.apply).lower(variables, np.arange(40)[None]) for each in (looped, unrolled)]
    assert [" stablehlo.while" in each.as_text() for each in run] == [True, False]
    wanted, got = (np.asarray(each.compile()(variables, np.arange(40)[None])) for each in run)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_half_precision_stays_close():
    exact, variables = ours(reference(SHAPES["wide heads"]))
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), variables)
    ids = jnp.arange(40)[None]
    wanted: Any = exact.apply(half, ids)
    got: Any = T5Encoder(exact.config, jnp.bfloat16).apply(half, ids)
    assert got.dtype == jnp.bfloat16
    assert jnp.abs(got - wanted).mean() < 0.05 * jnp.abs(wanted).mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj = 'relu'"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon = 1e-05"),
        ({"relative_attention_num_buckets": 30}, "relative_attention_num_buckets = 30"),
    ],
)
def test_unsupported_config_is_named(change, message):
    config = SHAPES["one block"] | {"vocab_size": 9, "feed_forward_proj": "gated-gelu"}
    with pytest.raises(InputError, match=message):
        T5Config.from_dict(config | change)


def test_missing_fields_have_the_librarys_defaults():
    theirs = TorchConfig(feed_forward_proj="gated-gelu").to_dict()
    assert asdict(T5Config.from_dict({"feed_forward_proj": "gated-gelu"})).items() <= theirs.items()
    with pytest.raises(InputError, match="feed_forward_proj = 'relu'"):
        T5Config.from_dict({})
    with pytest.raises(InputError, match=r"num_layers = '24' must be of type int"):
        T5Config.from_dict({"feed_forward_proj": "gated-gelu", "num_layers": "24"})
    with pytest.raises(InputError, match=r"num_heads = 0 must be at least 1"):
        T5Config.from_dict({"feed_forward_proj": "gated-gelu", "num_heads": 0})
