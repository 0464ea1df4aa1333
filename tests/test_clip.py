"""CLIP's pooled text output against transformers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig as TorchConfig
from transformers import CLIPTextModel

from flux_jax.errors import InputError
from flux_jax.models.clip.text import CLIPTextConfig, CLIPTextEncoder
from flux_jax.weights.mapping import to_flax
from flux_jax.weights.tables import CLIP

VOCABULARY = 50
EOS = 31
SHAPES: dict[str, dict[str, Any]] = {
    "quick, legacy end of text": {"hidden_size": 16, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "hidden_act": "quick_gelu", "eos_token_id": 2},
    "exact, first end of text": {"hidden_size": 24, "num_hidden_layers": 3}
    | {"num_attention_heads": 3, "hidden_act": "gelu", "eos_token_id": EOS},
    "quick, first end of text": {"hidden_size": 32, "num_hidden_layers": 2}
    | {"num_attention_heads": 1, "hidden_act": "quick_gelu", "eos_token_id": EOS},
}


def reference(sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = TorchConfig(
        vocab_size=VOCABULARY,
        intermediate_size=40,
        max_position_embeddings=20,
        bos_token_id=0,
        **sizes,
    )
    model = CLIPTextModel(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
    return model


def ours(model: Any) -> tuple[CLIPTextEncoder, dict[str, Any]]:
    encoder = CLIPTextEncoder(CLIPTextConfig.from_dict(model.config.to_dict()))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return encoder, {"params": to_flax(CLIP, tensors, shapes["params"])}


def prompts(tokens: int) -> np.ndarray:
    """Prompts whose first end of text, largest id and last token are at different positions."""
    ids = np.random.default_rng(0).integers(3, EOS, (3, tokens))
    for row, end in enumerate((tokens - 3, tokens // 2, 1)):
        ids[row, end:] = EOS
        ids[row, end + 1] = VOCABULARY - 1
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [6, 20])
def test_pooled_output_equals_transformers(shape, tokens):
    model = reference(SHAPES[shape])
    encoder, variables = ours(model)
    ids = prompts(tokens)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).pooler_output.numpy()
    got: Any = jax.jit(encoder.apply)(variables, ids)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_unrolled_blocks_give_the_same():
    looped, variables = ours(reference(SHAPES["quick, first end of text"]))
    unrolled = CLIPTextEncoder(looped.config, unroll=True)
    run = [jax.jit(each.apply).lower(variables, prompts(20)) for each in (looped, unrolled)]
    assert [" stablehlo.while" in each.as_text() for each in run] == [True, False]
    wanted, got = (np.asarray(each.compile()(variables, prompts(20))) for each in run)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_half_precision_stays_close():
    exact, variables = ours(reference(SHAPES["quick, first end of text"]))
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), variables)
    wanted: Any = exact.apply(half, prompts(20))
    got: Any = CLIPTextEncoder(exact.config, jnp.bfloat16).apply(half, prompts(20))
    assert got.dtype == jnp.bfloat16
    assert jnp.abs(got - wanted).mean() < 0.05 * jnp.abs(wanted).mean()


def test_unusable_config_and_prompts_are_named():
    config = {"vocab_size": 9, "hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 1}
    with pytest.raises(InputError, match=r"hidden_size = 6 must be a multiple .* = 8"):
        CLIPTextConfig.from_dict(config)
    with pytest.raises(InputError, match="hidden_size = 6"):
        CLIPTextConfig.from_dict(config | {"num_attention_heads": 4})
    with pytest.raises(InputError, match="hidden_act = 'relu'"):
        CLIPTextConfig.from_dict(config | {"num_attention_heads": 2, "hidden_act": "relu"})
    encoder = CLIPTextEncoder(CLIPTextConfig.from_dict(config | {"num_attention_heads": 2}))
    with pytest.raises(InputError, match="78 tokens"):
        encoder.init(jax.random.key(0), jnp.zeros((1, 78), jnp.int32))
