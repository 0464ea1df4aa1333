"""Write a pipeline with FLUX.1's sizes and tensor names and random weights, for benchmarks.

    python -m benchmarks.make_checkpoint models/random-flux --variant dev --layout diffusers

Everything is bfloat16 and reproducible from the seed: 34 GB for [dev], of which 24 GB are the
transformer. The variance of matrices preserves the scale of activations; norms are near 1. The
tokenizers are the small model's, whose ids are valid for the large encoders.
"""

import math
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from scipy.stats import norm

from convert.arguments import Parser
from convert.pipeline import INDEX, MODEL_INDEX, SINGLE, write_json
from flux_jax import progress
from flux_jax.errors import InputError, exits_cleanly, say
from flux_jax.models.published import VERSION, Configs, configs
from flux_jax.weights import original
from flux_jax.weights.loading import abstract_params
from flux_jax.weights.mapping import torch_shapes
from flux_jax.weights.rules import Shape
from flux_jax.weights.safetensors_files import write_component, write_file
from flux_jax.weights.source import SCHEDULER, read_config
from flux_jax.weights.tables import COMPONENTS

TOKENIZERS = Path("models", "emoji-flux")
DTYPE = np.dtype(ml_dtypes.bfloat16)
# One quantile per value of a byte: random bytes are generated faster than normal numbers.
QUANTILES = norm.ppf((np.arange(256) + 0.5) / 256).astype(np.float32)


@dataclass(frozen=True)
class RandomTensor:
    """A seeded normal tensor in bfloat16, generated when `np.asarray` reads it."""

    shape: Shape
    mean: float
    deviation: float
    seed: int
    advance: Any
    dtype: np.dtype = DTYPE

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Generate the tensor."""
        values = (self.mean + self.deviation * QUANTILES).astype(self.dtype).view(np.uint16)
        random_bytes = np.frombuffer(
            np.random.default_rng(self.seed).bytes(math.prod(self.shape)), "u1"
        )
        self.advance(self.nbytes)
        tensor = values[random_bytes].view(self.dtype).reshape(self.shape)
        return tensor if dtype is None else tensor.astype(dtype)


def make(
    target: Path, sizes: Configs, layout: str = "diffusers", seed: int = 0, t5_tokens: int = 512
) -> None:
    """Write the pipeline.

    Args:
        target: folder to create.
        sizes: the models' configurations, by folder.
        layout: "diffusers", or "original" for the transformer and the autoencoder.
        seed: of the weights.
        t5_tokens: length of T5's input.

    Raises:
        InputError: the target exists.
    """
    if target.exists():
        raise InputError(f"{target} exists; choose another DST or remove it")
    models = {}
    for name, config in sizes.items():
        single = layout == "original" and name in SINGLE
        table = original.table(name, config) if single else COMPONENTS[name]
        models[name] = single, table, torch_shapes(table, abstract_params(name, config))
    total = sum(math.prod(shape) for *_, shapes in models.values() for shape in shapes.values())
    title = {"desc": "writing", "total": total * DTYPE.itemsize, "unit": "B", "unit_scale": True}
    with progress.bar(**title) as bar:
        for name, (single, table, shapes) in models.items():
            tensors = {
                tensor: random_tensor(tensor, shape, seed, bar.update)
                for tensor, shape in shapes.items()
            }
            if single:
                write_file(target / SINGLE[name], tensors, {"format": "pt"})
            else:
                write_component(target / name, tensors, table.stem, {"format": "pt"})
                write_json(target / name / "config.json", sizes[name])
    schedule = original.schedule_config(sizes["transformer"]["guidance_embeds"])
    write_json(target / SCHEDULER, schedule | {"_diffusers_version": VERSION})
    if layout == "diffusers":
        write_json(target / INDEX, MODEL_INDEX)
    for name, limit in (
        ("tokenizer", sizes["text_encoder"]["max_position_embeddings"]),
        ("tokenizer_2", t5_tokens),
    ):
        shutil.copytree(TOKENIZERS / name, target / name)
        file = target / name / "tokenizer_config.json"
        write_json(file, read_config(file) | {"model_max_length": limit})


def random_tensor(name: str, shape: Shape, seed: int, advance: Any) -> RandomTensor:
    """The tensor with this name; it depends only on the name, the shape and the seed."""
    tensor_seed = zlib.crc32(f"{seed}:{name}".encode())
    if len(shape) > 1:
        return RandomTensor(shape, 0.0, math.prod(shape[1:]) ** -0.5, tensor_seed, advance)
    return RandomTensor(shape, 0.0 if name.endswith("bias") else 1.0, 0.02, tensor_seed, advance)


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = Parser("benchmarks.make_checkpoint", __doc__)
    parser.add_argument("target", metavar="DST", type=Path, help="folder to create")
    parser.add_argument("--variant", choices=("dev", "schnell"), default="dev")
    parser.add_argument("--layout", choices=("diffusers", "original"), default="diffusers")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    options = parser.parse_args(arguments)
    # Only shapes are traced, so no accelerator is needed.
    jax.config.update("jax_platforms", "cpu")
    make(options.target, configs(options.variant), options.layout, options.seed)
    say(options.target)


if __name__ == "__main__":
    main()
