"""The Qwen3 text encoder against transformers, with padding on either side."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Qwen3Config as TorchConfig
from transformers import Qwen3ForCausalLM

from flux_jax.errors import InputError
from flux_jax.models.flux2.qwen3 import Qwen3Config, Qwen3Encoder
from flux_jax.weights.mapping import to_flax
from flux_jax.weights.tables import qwen3

# Sizes, and the layers whose hidden states are read.
SHAPES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "own heads": (
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
        | {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
        (1, 2),
    ),
    "shared heads": (
        {"hidden_size": 20, "intermediate_size": 48, "num_hidden_layers": 4}
        | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4},
        (1, 2, 3),
    ),
    "one pair": (
        {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3}
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16},
        (2, 1),
    ),
}
VOCABULARY = 60


def reference(shape: str) -> Any:
    torch.manual_seed(0)
    config = TorchConfig(
        vocab_size=VOCABULARY,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        attn_implementation="eager",
        **SHAPES[shape][0],
    )
    model = Qwen3ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        centre, spread = (1.0, 0.3) if "norm" in name else (0.0, 0.3)
        torch.nn.init.normal_(parameter, centre, spread)
    return model


def config_of(shape: str, model: Any) -> Qwen3Config:
    return Qwen3Config.from_dict(model.config.to_dict() | {"layers": SHAPES[shape][1]})


def ours(shape: str, model: Any) -> tuple[Qwen3Encoder, dict[str, Any]]:
    encoder = Qwen3Encoder(config_of(shape, model))
    ids = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids, ids)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    table = qwen3(model.config.num_hidden_layers, max(encoder.config.layers))
    return encoder, {"params": to_flax(table, tensors, shapes["params"])}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [7, 90])
@torch.no_grad()
def test_hidden_states_equal_transformers(shape: str, tokens: int):
    model = reference(shape)
    encoder, variables = ours(shape, model)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, tokens))
    mask = np.ones_like(ids)
    mask[1, tokens // 2 :] = 0
    states = model(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        output_hidden_states=True,
    ).hidden_states
    wanted = torch.cat([states[layer] for layer in encoder.config.layers], dim=-1).numpy()
    got = jax.jit(encoder.apply)(variables, ids, mask)
    assert got.shape == (2, tokens, encoder.config.width)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.slow
@torch.no_grad()
def test_padding_in_front_counts_for_nothing():
    """Rows of padding itself are undefined there: they see no token."""
    model = reference("shared heads")
    encoder, variables = ours("shared heads", model)
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (1, 12))
    mask = np.ones_like(ids)
    mask[0, :5] = 0
    other = ids.copy()
    other[0, :5] = 3
    first, second = (np.asarray(encoder.apply(variables, each, mask)) for each in (ids, other))
    np.testing.assert_allclose(first[:, 5:], second[:, 5:], rtol=0, atol=2e-5 * np.abs(first).max())


@pytest.mark.slow
def test_unrolled_blocks_give_the_same():
    looped, variables = ours("own heads", reference("own heads"))
    unrolled = Qwen3Encoder(looped.config, unroll=True)
    ids = np.arange(20)[None]
    one, two = (
        np.asarray(jax.jit(each.apply)(variables, ids, np.ones_like(ids)))
        for each in (looped, unrolled)
    )
    np.testing.assert_allclose(one, two, rtol=0, atol=2e-5 * np.abs(one).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "model_type = 't5' is not supported, only 'qwen3'"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"layers": (9, 18, 27)}, "num_hidden_layers = 3 must be above 27"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 2 must be a multiple of"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}},
            "rope_type = 'yarn' is not supported",
        ),
    ],
)
def test_other_models_are_refused(change: dict[str, Any], message: str):
    config = reference("own heads").config.to_dict() | {"layers": (1, 2)}
    with pytest.raises(InputError, match=message):
        Qwen3Config.from_dict(config | change)


def test_other_families_are_refused():
    with pytest.raises(InputError, match="model_type = None is not supported, only 'qwen3'"):
        Qwen3Config.from_dict({"hidden_size": 16})
