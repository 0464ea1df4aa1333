"""Draw a benchmark's pictures in batches, and hand each batch on while the next one is drawn.

Axis letters: B pictures, h w picture sides.
"""

import collections
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import UInt8

from erase.config.schema import MeshConfig
from erase.model.open import place
from erase.runtime import signals
from erase.runtime.memory import memory
from flux_jax import programs, progress, sharding
from flux_jax.errors import counted
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.system import xla_flags
from flux_jax.weights.loading import COMPONENTS, Weights

# Bytes of encoded prompts that are kept in host memory at once. FLUX.1's take 4 MB each.
MOST_REMEMBERED = 8 << 30
# Batches that may wait until they are written and judged.
WAITING = 2


@dataclass(frozen=True)
class Drawing:
    """A picture to draw.

    Attributes:
        number: of its prompt in the set, from 0.
        prompt: text of the prompt.
        seed: seed of the noise.
        guidance: distilled guidance scale.
        height: pixels.
        width: pixels.
    """

    number: int
    prompt: str
    seed: int
    guidance: float
    height: int
    width: int


# Takes a batch without its padding.
Take = Callable[[Sequence[Drawing], UInt8[np.ndarray, "B h w 3"]], None]


def on_all_devices(pipe: Pipeline, batch: int) -> Pipeline:
    """Place the model on all devices of all processes, which share the pictures of a batch."""
    return pipe if jax.device_count() == 1 else place(pipe, MeshConfig(), 1, batch)


def over_limit(pipe: Pipeline, prompts: Sequence[str]) -> list[int]:
    """Return the number of T5's tokens of each prompt that has more than the model takes."""
    limit = pipe.tokenizer_2.model_max_length
    # Without its warning about long texts.
    rows = pipe.tokenizer_2(list(dict.fromkeys(prompts)), verbose=False).input_ids
    lengths = map(len, rows)
    return [length for length in lengths if length > limit]


def draw_all(
    pipe: Pipeline,
    every: Sequence[Drawing],
    done: frozenset[int],
    options: tuple[int, int],
    adapters: Sequence[tuple[Adapter, float]],
    take: Take,
    title: str,
) -> None:
    """Draw the pictures that are not done, with a progress bar.

    All batches of one size of pictures have the same number, so that each is compiled once. A
    picture is the one of `erase.model.draw.draw`. Long prompts are cut, as in diffusers.

    Args:
        pipe: the model.
        every: all pictures of the benchmark.
        done: numbers of those that need not be drawn.
        options: Euler steps, and pictures per batch.
        adapters: adapters with their strengths.
        take: called in a thread with each batch, in order; its errors end the drawing.
        title: label of the progress bar.

    Raises:
        PreemptedError: the system requested a stop; the pictures so far were taken.
    """
    steps, batch = options
    rows = batches(every, done, batch)
    left = sum(len({each.number for each in row}) for row in rows)
    each_guidance = len({each.guidance for each in every}) > 1
    waiting: collections.deque[Future[None]] = collections.deque()
    with (
        progress.bar(total=left, desc=title, unit="picture") as bar,
        xla_flags.told(bar),
        ThreadPoolExecutor(1) as pool,
    ):
        for chunk in chunks(pipe, rows):
            encode(pipe, [each.prompt for row in chunk for each in row], batch)
            for row in chunk:
                with signals.finishing("batch of pictures"):
                    pictures = draw_batch(pipe, row, steps, adapters, each_guidance)
                    own = list({each.number: each for each in row}.values())
                    waiting.append(pool.submit(take, own, pictures[: len(own)]))
                    while len(waiting) > WAITING:
                        waiting.popleft().result()
                bar.update(len(own))
        for future in waiting:
            future.result()


def batches(every: Sequence[Drawing], done: frozenset[int], batch: int) -> list[list[Drawing]]:
    """Divide pictures of equal size into batches; the last is filled up with its last picture."""
    rows = []
    for size in dict.fromkeys((each.height, each.width) for each in every):
        same = [each for each in every if (each.height, each.width) == size]
        # Also after an interruption, when fewer are left.
        count = min(batch, len(same))
        left = [each for each in same if each.number not in done]
        for start in range(0, len(left), count):
            row = left[start : start + count]
            rows.append(row + row[-1:] * (count - len(row)))
    return rows


def chunks(pipe: Pipeline, rows: Sequence[list[Drawing]]) -> Iterator[Sequence[list[Drawing]]]:
    """Divide batches so that the encoded prompts of each part fit in host memory."""
    text = pipe.tokenizer_2.model_max_length * pipe.text_encoder_2.config.d_model
    each = 4 * (text + pipe.text_encoder.config.hidden_size)
    length = max(1, MOST_REMEMBERED // each // max(1, max(map(len, rows), default=1)))
    for start in range(0, len(rows), length):
        yield rows[start : start + length]


def encode(pipe: Pipeline, prompts: Sequence[str], batch: int) -> None:
    """Encode prompts that are not encoded yet, and free the text encoders' memory.

    Others are forgotten. If a device cannot hold all of the model, the transformer's memory is
    freed before.
    """
    if pipe.remembered.keys() >= set(prompts):
        return
    for text in pipe.remembered.keys() - set(prompts):
        del pipe.remembered[text]
    most = memory(list(pipe.mesh.devices.flat))
    if most is not None and _nbytes(pipe) > most * pipe.mesh.size / 2:
        pipe.release("transformer")
    pipe.remember(prompts, batch, cut=True)
    pipe.release("text_encoder", "text_encoder_2")


def _nbytes(pipe: Pipeline) -> int:
    """Bytes of the model's weights."""
    assert isinstance(pipe.params, Weights), "of a loaded pipeline"
    shapes = [leaf for name in COMPONENTS for leaf in jax.tree.leaves(pipe.params.shapes(name))]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)


def draw_batch(
    pipe: Pipeline,
    row: Sequence[Drawing],
    steps: int,
    adapters: Sequence[tuple[Adapter, float]],
    each_guidance: bool,
) -> UInt8[np.ndarray, "B h w 3"]:
    """Draw pictures of one size, whose prompts are encoded.

    Args:
        pipe: the model.
        row: the pictures.
        steps: Euler steps.
        adapters: adapters with their strengths.
        each_guidance: whether guidance differs between pictures of the benchmark. Otherwise one
            number is passed, as `Pipeline.denoise` does.
    """
    height, width = row[0].height, row[0].width
    noise = pipe.noise([each.seed for each in row], height, width)
    conditioning = pipe.encode([each.prompt for each in row])
    if not each_guidance:
        ids = pipe.image_ids(height, width)
        guidance = row[0].guidance
        latents = pipe.denoise(noise, conditioning, ids, steps, guidance, adapters)
        return pipe.decode(latents, height, width)
    guidances = jax.numpy.asarray([each.guidance for each in row], jax.numpy.float32)
    samples = sharding.share_out(pipe.mesh, (noise, conditioning))
    model = pipe.denoiser(pipe.image_ids(height, width), guidances, adapters)
    sigmas = pipe.schedule.sigmas(steps, noise.shape[1])
    with jax.set_mesh(pipe.mesh):
        latents = programs.denoise(model, *samples, sigmas)
    return pipe.decode(sharding.gather(pipe.mesh, latents), height, width)


def cut_note(pipe: Pipeline, prompts: Sequence[str]) -> str:
    """Return a note on prompts that are cut; empty if there are none."""
    over = over_limit(pipe, prompts)
    if not over:
        return ""
    limit = pipe.tokenizer_2.model_max_length
    return (
        f"{counted(len(over), 'prompt')} over the limit of {limit} tokens (the longest has "
        f"{max(over)}): their ends are cut off, as in diffusers"
    )
