"""Sample pictures: what the adapter so far does, from the same prompts and noise each time.

Axis letters: B pictures, h w picture sides.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from erase.config.schema import Config
from erase.data.words.templates import phrase
from erase.model.draw import draw, png
from erase.runtime import processes
from erase.runtime.files import write
from erase.runtime.run_folder import SAMPLES, sample_name, samples_in
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.settings import SamplingOptions

# Of a watched run whose configuration leaves `samples.every` open: samples in all of its training.
TIMES = 10


@dataclass(frozen=True)
class SampleSet:
    """A run's sample pictures.

    Attributes:
        name: name of the run; "" if it is the only one.
        config: the run's configuration.
        prompts: one for each picture.
        folder: the run's folder.
    """

    name: str
    config: Config
    prompts: tuple[str, ...]
    folder: Path

    @property
    def seeds(self) -> list[int]:
        """Seeds of the noise, one for each picture."""
        return [self.config.samples.seed + index for index in range(len(self.prompts))]

    def draw(self, pipe: Pipeline, adapter: Adapter, step: int) -> UInt8[np.ndarray, "B h w 3"]:
        """Draw the pictures and write them.

        Args:
            pipe: the frozen model.
            adapter: the adapter after the iteration.
            step: the iteration.
        """
        config = self.config
        options = SamplingOptions(
            config.samples.steps,
            config.evaluation.guidance,
            config.height,
            config.width,
            len(self.prompts),
        )
        adapters = [(adapter, config.evaluation.strength)]
        pictures = draw(
            pipe, self.prompts, self.seeds, options, adapters, title=f"samples after {step}"
        )
        for index, picture in enumerate(pictures):
            notes = {
                "prompt": self.prompts[index],
                "seed": str(self.seeds[index]),
                "iteration": str(step),
            }
            write(self.folder / SAMPLES / sample_name(step, index), png(picture, notes))
        return pictures

    def drop_after(self, done: int) -> None:
        """Remove pictures of iterations after `done`, which are drawn again, in the first process.

        Args:
            done: the iteration from which the run resumes.
        """
        if processes.first():
            for step, numbers in samples_in(self.folder).items():
                for index in numbers if step > done else ():
                    (self.folder / SAMPLES / sample_name(step, index)).unlink(missing_ok=True)


def prompts_of(config: Config, others: Sequence[str]) -> tuple[str, ...]:
    """Return the prompts of a run's sample pictures: with the concept, and with another thing.

    Args:
        config: the run's configuration.
        others: words for other things; only the first is used.
    """
    words = (config.concept, *(config.evaluation.others or others)[:1])
    return tuple(phrase(config.evaluation.templates[0], word) for word in words)


def with_samples(runs: Mapping[str, Config], watched: bool) -> dict[str, Config]:
    """Return configurations that say how often samples are drawn.

    Args:
        runs: configurations, by name.
        watched: whether somebody watches the training.
    """

    def every(config: Config) -> int:
        if config.samples.every is not None:
            return config.samples.every
        return max(1, config.iterations // TIMES) if watched else 0

    return {
        name: dataclasses.replace(
            config, samples=dataclasses.replace(config.samples, every=every(config))
        )
        for name, config in runs.items()
    }
