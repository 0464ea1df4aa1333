"""Opens a whole CLIP in transformers' layout, and computes vectors of pictures and texts.

Axis letters: B pictures, N texts, h w picture sides, E width of the shared vectors.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, PyTree, UInt8

from flux_jax.errors import InputError
from flux_jax.models.clip import pixels as prepared
from flux_jax.models.clip.joint import CLIP, CLIPConfig
from flux_jax.models.tokenizers import clip_ids, read_tokenizer
from flux_jax.system.json_files import read_json
from flux_jax.weights.hub import find_model
from flux_jax.weights.mapping import to_flax
from flux_jax.weights.safetensors_files import find_weights, read_weights
from flux_jax.weights.tables import CLIP_MODEL

if TYPE_CHECKING:
    from flux_jax.models.tokenizers import PreTrainedTokenizerBase

CONFIG = "config.json"
# Files to download: settings, tokenizer and weights; no pickles.
WANTED = ("*.json", "merges.txt", "*.safetensors")
# Pictures and texts are computed in chunks of one size, so that each program is compiled once.
CHUNK = 16


@dataclass(frozen=True)
class LoadedCLIP:
    """A CLIP with its weights, tokenizer and preparation of pictures.

    Attributes:
        name: the path or hub name that it was opened by.
        module: the network.
        params: its parameters.
        tokenizer: of the texts, which are cut at `model_max_length` tokens.
        pixels: how pictures are prepared.
    """

    name: str
    module: CLIP
    params: PyTree
    tokenizer: "PreTrainedTokenizerBase"
    pixels: prepared.PixelConfig

    def pictures(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[np.ndarray, "B E"]:
        """Vectors of unit length of pictures in red, green, blue."""

        def rows(chunk: np.ndarray) -> np.ndarray:
            return prepared.prepare(chunk, self.pixels)

        return self._chunked("image_features", pictures, rows)

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Vectors of unit length of texts."""
        return self._chunked("text_features", clip_ids(self.tokenizer, texts), lambda ids: ids)

    def cut(self, texts: Sequence[str]) -> list[int]:
        """Indices of the texts with more tokens than CLIP reads; it sees only their start."""
        rows = self.tokenizer(list(texts)).input_ids
        return [i for i, row in enumerate(rows) if len(row) > self.tokenizer.model_max_length]

    def _chunked(self, method: str, inputs: np.ndarray, rows: Any) -> np.ndarray:
        if not len(inputs):
            return np.empty((0, self.module.config.projection_dim), np.float32)
        parts = []
        for start in range(0, len(inputs), CHUNK):
            part = rows(inputs[start : start + CHUNK])
            padded = np.concatenate([part, np.repeat(part[:1], CHUNK - len(part), 0)])
            vectors = np.asarray(_features(self.module, method, self.params, padded))[: len(part)]
            parts.append(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
        return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(module: CLIP, method: str, params: PyTree, inputs: Any) -> Any:
    # Accelerators would round the factors of float32 products, which moves scores.
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, inputs, method=method)


def load(name: str, dtype: DTypeLike = jnp.float32) -> LoadedCLIP:
    """Opens a CLIP, such as openai/clip-vit-base-patch32.

    Args:
        name: a folder, or its name on the Hugging Face hub.
        dtype: dtype of parameters and matrix products.

    Raises:
        InputError: the folder or a file is missing or damaged, or tensors do not fit the
            configuration.
    """
    folder = find_model(name, WANTED)
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder of a CLIP in transformers' layout")
    where = folder / CONFIG
    config = CLIPConfig.from_dict(
        read_json(where, "give the folder of a CLIP in transformers' layout"), str(where)
    )
    file = folder / prepared.FILE
    settings = read_json(file) if file.is_file() else {}
    pixels = prepared.PixelConfig.from_dict(settings, config.vision.image_size, str(file))
    tokenizer = read_tokenizer(folder, "tokenizer", config.text, alone=True)
    module = CLIP(config, dtype)
    params = to_flax(
        CLIP_MODEL,
        read_weights(find_weights(folder)),
        _shapes(module),
        source=folder,
        mend="take weights and config.json of one CLIP",
        place=lambda _, leaf: jnp.asarray(leaf, dtype),
    )
    return LoadedCLIP(name, module, params, tokenizer, pixels)


def _shapes(module: CLIP) -> PyTree:
    side = module.config.vision.image_size
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), pixels, ids)["params"]
