"""What a visitor of the playground asks for, checked before anything is computed.

A page's limits hold for its own controls only; anybody can send a request without the page.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from erase.config.fields import shown
from flux_jax.errors import InputError
from flux_jax.settings import check_sampling, check_seeds

# Limits of a request.
MOST_STEPS, MOST_SEEDS, MOST_CHARACTERS = 100, 4, 2000
# End of the page's slider of guidance.
MOST_GUIDANCE = 10.0
WEAKEST, STRONGEST = -1.0, 2.0
# Strengths of the strip of pictures.
STRIP = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class Request:
    """Pictures to draw, of the base model and of the erased one.

    Attributes:
        prompt: text of the prompt.
        seeds: of the noise, one for each picture.
        steps: Euler steps.
        guidance: distilled guidance scale.
        height: pixels.
        width: pixels.
        strengths: of each adapter, in order.
        silenced: concept whose tokens are muted in the erased pictures; empty silences nothing.
    """

    prompt: str
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    height: int
    width: int
    strengths: tuple[float, ...] = ()
    silenced: str = ""

    def check(self, adapters: int, most: int) -> None:
        """Check all values but those that depend on the model.

        Args:
            adapters: number of the page's adapters.
            most: largest height and width in pixels.

        Raises:
            InputError: a value is outside its range.
        """
        for name, text in (("prompt", self.prompt), ("silence", self.silenced)):
            if len(text) > MOST_CHARACTERS:
                raise InputError(f"{name} has {len(text):,} characters; at most {MOST_CHARACTERS}")
        if not 1 <= len(self.seeds) <= MOST_SEEDS:
            raise InputError(f"{len(self.seeds)} seeds: give 1 to {MOST_SEEDS}")
        check_seeds(self.seeds)
        check_sampling(self.steps, self.guidance)
        if self.steps > MOST_STEPS:
            raise InputError(f"steps = {self.steps}: at most {MOST_STEPS}")
        for name, side in (("height", self.height), ("width", self.width)):
            if side > most:
                raise InputError(f"{name} = {side}: at most {most} pixels, see --most_pixels")
        if len(self.strengths) != adapters:
            raise InputError(f"{len(self.strengths)} strengths: this page has {adapters} adapters")
        for strength in self.strengths:
            if not WEAKEST <= strength <= STRONGEST:
                raise InputError(f"strength = {strength}: choose {WEAKEST:g} to {STRONGEST:g}")

    def command(self, model: str, adapters: Sequence[str]) -> str:
        """The command that draws the erased pictures again."""
        words = ["erase-anything", "sample", f"--model={model}", f"--prompt={self.prompt}"]
        words += [f"--seed={seed}" for seed in self.seeds]
        pairs = zip(adapters, self.strengths, strict=True)
        words += [f"--adapter={path}:{strength:g}" for path, strength in pairs]
        words += [f"--silence={self.silenced}"] if self.silenced else []
        words += [f"--steps={self.steps}", f"--guidance={self.guidance:g}"]
        return shlex.join([*words, f"--height={self.height}", f"--width={self.width}"])


def check_start(steps: int, guidance: float) -> None:
    """Check the values that the page's sliders start at.

    Raises:
        InputError: a slider does not have its value.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"steps = {steps}: the slider ends at {MOST_STEPS}")
    if not 0 <= guidance <= MOST_GUIDANCE:
        raise InputError(f"guidance = {guidance}: the slider is from 0 to {MOST_GUIDANCE:g}")


def read_seeds(text: str) -> tuple[int, ...]:
    """Read seeds that are separated by spaces or commas.

    Raises:
        InputError: one is no whole number, or there are too many.
    """
    words = text.replace(",", " ").split(maxsplit=MOST_SEEDS)
    if len(words) > MOST_SEEDS:
        raise InputError(f"seeds = {shown(text)}: at most {MOST_SEEDS}")
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise InputError(f"seeds = {shown(text)}: write whole numbers, such as 0, 1, 2") from None
