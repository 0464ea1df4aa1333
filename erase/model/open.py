"""Open the frozen model of a configuration, on the configured devices."""

import jax

from erase.config.schema import Config, MeshConfig
from erase.runtime.mesh import make_mesh
from flux_jax.errors import InputError
from flux_jax.models.published import describe, variant_of
from flux_jax.pipeline import Pipeline, load
from flux_jax.weights.loading import Weights


def open_model(config: Config, runs: int = 1, *, unread: bool = False) -> Pipeline:
    """Open the frozen model. Its weights are read on first use.

    Args:
        config: configuration of any of the runs.
        runs: number of runs trained at once.
        unread: whether only the sizes are needed; those of FLUX.1 [dev] and [schnell] are known,
            so that nothing is downloaded from the hub.

    Raises:
        InputError: the folder cannot be used, the model cannot generate pictures of this size,
            text_tokens is over the tokenizer's limit, or the devices cannot be divided as
            configured.
    """
    known = unread and variant_of(config.model.path)
    key = config.model.path, config.model.dtype, config.model.quantize
    pipe = describe(*key) if known else load(*key)
    pipe.grid(config.height, config.width)
    if config.text_tokens is not None:
        limit = pipe.tokenizer_2.model_max_length
        if config.text_tokens > limit:
            raise InputError(f"text_tokens = {config.text_tokens} is over the limit of {limit}")
        pipe.tokenizer_2.model_max_length = config.text_tokens
    return place_model(pipe, config, runs)


def place_model(pipe: Pipeline, config: Config, runs: int) -> Pipeline:
    """Place the frozen model on the device mesh for a number of runs.

    Raises:
        InputError: the devices cannot be divided as configured.
    """
    return place(pipe, config.mesh, runs, config.batch_size)


def place(pipe: Pipeline, wanted: MeshConfig, runs: int, samples: int) -> Pipeline:
    """Place the frozen model on a device mesh.

    Args:
        pipe: the model.
        wanted: sizes of the mesh's axes.
        runs: number of runs trained at once.
        samples: samples of a batch.

    Raises:
        InputError: the devices cannot be divided so.
    """
    assert isinstance(pipe.params, Weights), "of a loaded pipeline"
    weights = pipe.params.shapes("transformer")
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    return pipe.on(make_mesh(wanted, runs, samples, nbytes))
