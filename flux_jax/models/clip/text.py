"""CLIP's text encoder, of which FLUX uses the pooled output.

Matrix products run in the module's `dtype`, parameters keep their dtype; norms and softmax are
float32.
Axis letters: B batch, T tokens, P model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flux_jax.errors import InputError
from flux_jax.models.clip.blocks import check_sizes, layer_norm, transformer
from flux_jax.models.config import read_fields

FILE = "text_encoder/config.json"
# Configurations written before transformers fixed the end-of-text token have this id.
LEGACY_EOS = 2


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes, with the names and defaults of a transformers `config.json`."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "CLIPTextConfig":
        """Reads the fields from a parsed `config.json`, of the text encoder or of a whole CLIP.

        Raises:
            InputError: a value is of the wrong type, or is not implemented.
        """
        if config.get("model_type") == "clip":
            nested = config.get("text_config")
            config = nested if isinstance(nested, Mapping) else {}
        read = read_fields(cls, config, FILE)
        check_sizes(read, FILE)
        return read


def end_of_text(ids: Int[Array, "B T"], eos_token_id: int) -> Int[Array, "B"]:
    """Position of the first end-of-text token.

    With the legacy id, it is the position of the largest id: in CLIP's vocabulary that is the
    end-of-text token, whatever the configuration says.
    """
    return jnp.argmax(ids if eos_token_id == LEGACY_EOS else ids == eos_token_id, axis=-1)


class CLIPTextEncoder(nn.Module):
    """The text transformer; its blocks are scanned over stacked weights."""

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32
    # See `FluxTransformer`.
    unroll: bool = False

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B P"]:
        """Returns the final norm's output at the end-of-text token.

        Raises:
            InputError: there are more tokens than positions.
        """
        config = self.config
        tokens, positions = ids.shape[1], config.max_position_embeddings
        if tokens > positions:
            raise InputError(
                f"{tokens} tokens a prompt: max_position_embeddings = {positions} is the maximum"
            )
        # In the table's dtype, see `t5`.
        x = nn.Embed(config.vocab_size, config.hidden_size, name="token_embedder")(ids)
        x = x.astype(self.dtype)
        x += nn.Embed(positions, config.hidden_size, dtype=self.dtype, name="position_embedder")(
            jnp.arange(tokens)
        )
        x, _ = transformer(config, self.dtype, causal=True, unroll=self.unroll)(x, None)
        x = x[jnp.arange(x.shape[0]), end_of_text(ids, config.eos_token_id)]
        return layer_norm(config, "final_norm")(x).astype(self.dtype)
