"""Generate pictures in batches, arrange them in sheets and encode them as PNG.

Axis letters: B pictures, h w picture sides.
"""

import contextlib
import io
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from erase.data.words.word_tokens import marks
from erase.runtime import signals
from erase.runtime.cache import Cache
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline, batches
from flux_jax.settings import SamplingOptions


def draw(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: SamplingOptions,
    adapters: Sequence[tuple[Adapter, float]] = (),
    silenced: str | None = None,
    title: str = "pictures",
    cache: Cache | None = None,
) -> UInt8[np.ndarray, "B h w 3"]:
    """Generate one picture for each (prompt, seed) pair, with a progress bar.

    All prompts are encoded first; then the text encoders are released to make room for the
    transformer. All batches have the same size (the last one is padded), so that the model is
    compiled only once. A picture does not depend on its batch.

    Args:
        pipe: the model.
        prompts: one per picture.
        seeds: one per picture.
        options: sampling options.
        adapters: adapters with their strengths.
        silenced: concept whose tokens are muted (the paper's attention map erasure, Fig. 3);
            prompts that do not contain it are not affected.
        title: label of the progress bar.
        cache: saves each batch, and has those of an interrupted command.

    Raises:
        InputError: a prompt, a concept or a size cannot be used, or batch is below 1.
        PreemptedError: the system requested a stop; with a cache, the last batch is saved.
    """
    height, width = picture_size(pipe, options)
    pipe.remember(prompts, options.batch)
    pipe.release("text_encoder", "text_encoder_2")
    pictures = []
    for number, rows in enumerate(batches(len(prompts), options.batch, title)):
        shape = (len(rows), height, width, 3)
        if cache and (saved := _saved(cache, number, shape)) is not None:
            pictures.append(saved)
            continue
        texts = [prompts[i] for i in rows]
        with signals.finishing("batch of pictures") if cache else contextlib.nullcontext():
            pictures.append(
                pipe(
                    texts,
                    seeds=[seeds[i] for i in rows],
                    steps=options.steps,
                    guidance=options.guidance,
                    height=height,
                    width=width,
                    adapters=adapters,
                    silenced=None if silenced is None else marks(pipe.tokenizer_2, texts, silenced),
                )
            )
            if cache:
                cache.write(str(number), zlib.compress(pictures[-1].tobytes(), 1))
    return np.concatenate(pictures)[: len(prompts)]


def _saved(
    cache: Cache, number: int, shape: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "B h w 3"] | None:
    """Return the pictures of a batch from the cache; None if they are missing or damaged."""
    size = math.prod(shape)
    # Random bytes grow a little.
    if (content := cache.read(str(number), size + size // 100 + 1024)) is None:
        return None
    try:
        values = zlib.decompressobj().decompress(content, size + 1)
    except zlib.error:
        return None
    return np.frombuffer(values, np.uint8).reshape(shape) if len(values) == size else None


def picture_size(pipe: Pipeline, options: SamplingOptions) -> tuple[int, int]:
    """Height and width in pixels; by default the autoencoder's sample size."""
    sample_size = pipe.vae.config.sample_size
    return (
        sample_size if options.height is None else options.height,
        sample_size if options.width is None else options.width,
    )


def sheet(pictures: UInt8[np.ndarray, "B h w 3"], columns: int) -> UInt8[np.ndarray, "H W 3"]:
    """Arrange pictures in rows of `columns`; the last row is padded with white."""
    blank = np.full((-len(pictures) % columns, *pictures.shape[1:]), 255, np.uint8)
    cells = np.concatenate([pictures, blank])
    _, height, width, _ = cells.shape
    rows = cells.reshape(-1, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return rows.reshape(-1, columns * width, 3)


def png(picture: UInt8[np.ndarray, "h w 3"], notes: Mapping[str, str] | None = None) -> bytes:
    """Encode a picture as PNG; notes become its text entries."""
    info = PngInfo()
    for name, value in (notes or {}).items():
        info.add_itxt(name, value)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=info, optimize=True)
    return buffer.getvalue()
