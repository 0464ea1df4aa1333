"""Draws for the playground, step by step, with programs that no slider compiles again.

Axis letters: B pictures, h w picture sides, y x image tokens, S image tokens, C latent channels.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from erase.config.fields import shown
from erase.data.words.word_tokens import marks
from erase.evaluation.judge import Judge
from erase.model.attention_maps import concept_mass
from erase.model.draw import png
from erase.play.request import STRIP, Request
from erase.runtime.files import write
from flux_jax import programs, sharding
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline


@dataclass(frozen=True)
class Step:
    """How far a picture is: `done` of `total` steps."""

    done: int
    total: int


@dataclass(frozen=True)
class Drawn:
    """Pictures with the latents that they were decoded from."""

    pictures: UInt8[np.ndarray, "B h w 3"]
    latents: Float[Array, "B S C"]


@dataclass(frozen=True)
class Pair:
    """Pictures of the base model and of the erased one, from the same noise."""

    base: Drawn
    erased: Drawn


@dataclass(frozen=True)
class Studio:
    """A model with its adapters.

    Attributes:
        model: path or name of the model, for commands and notes.
        pipe: the model.
        adapters: by the text that names each in a command.
        judge: judge of pictures, if there is one.
    """

    model: str
    pipe: Pipeline
    adapters: Mapping[str, Adapter]
    judge: Judge | None = None

    def check(self, request: Request, concept: str = "") -> None:
        """Check what would otherwise fail after pictures are drawn.

        Args:
            request: the request.
            concept: what the judge looks for; empty looks for nothing.

        Raises:
            InputError: the word to silence is not in the prompt, or the judge does not know the
                concept or takes pictures of another size.
        """
        if (
            request.silenced
            and not marks(self.pipe.tokenizer_2, [request.prompt], request.silenced).any()
        ):
            raise InputError(f"silence = {shown(request.silenced)}: write a word of the prompt")
        if self.judge is None or not concept:
            return
        self.judge.check_prompt(self.judge.label(concept), request.prompt)
        size = self.judge.size
        if size is not None and (request.height, request.width) != (size, size):
            raise InputError(
                f"the judge takes pictures of {size} x {size}: choose these sides, or leave the "
                "judge's concept empty"
            )

    def draw(self, request: Request) -> Iterator[Step | Pair]:
        """Draw both sides; yields each step, and at last the pictures.

        Raises:
            InputError: the prompt, a size or the concept to silence cannot be used.
        """
        steps = 2 * request.steps
        base = replace(request, strengths=(0.0,) * len(self.adapters), silenced="")
        sides: list[Drawn] = []
        for done, each in enumerate((base, request)):
            for out in self._one(each):
                if isinstance(out, Drawn):
                    sides.append(out)
                else:
                    yield Step(done * request.steps + out, steps)
        yield Pair(*sides)

    def strip(self, request: Request) -> Iterator[Step | list[UInt8[np.ndarray, "h w 3"]]]:
        """Draw the first seed's picture with all adapters at each strength of `STRIP`."""
        first = replace(request, seeds=request.seeds[:1])
        pictures = []
        for index, strength in enumerate(STRIP):
            for out in self._one(replace(first, strengths=(strength,) * len(self.adapters))):
                if isinstance(out, Drawn):
                    pictures.append(out.pictures[0])
                else:
                    yield Step(index * request.steps + out, len(STRIP) * request.steps)
        yield pictures

    def _one(self, request: Request) -> Iterator[int | Drawn]:
        """Draw one side; yields the number of steps done, and at last the pictures."""
        pipe, prompts = self.pipe, [request.prompt] * len(request.seeds)
        noise = pipe.noise(request.seeds, request.height, request.width)
        muted = np.zeros((len(prompts), pipe.tokenizer_2.model_max_length), np.float32)
        if request.silenced:
            muted = marks(pipe.tokenizer_2, prompts, request.silenced)
        latents, conditioning, silenced = sharding.share_out(
            pipe.mesh, (noise, pipe.encode(prompts), jnp.asarray(muted))
        )
        pairs = list(zip(self.adapters.values(), request.strengths, strict=True))
        ids = pipe.image_ids(request.height, request.width)
        model = pipe.denoiser(ids, request.guidance, pairs)
        sigmas = pipe.schedule.sigmas(request.steps, latents.shape[1])
        for done in range(request.steps):
            # Two noise levels, so one step: its program serves any number of steps.
            with jax.set_mesh(pipe.mesh):
                latents = programs.denoise(
                    model, latents, conditioning, sigmas[done : done + 2], silenced
                )
            latents.block_until_ready()
            yield done + 1
        latents = sharding.gather(pipe.mesh, latents)
        yield Drawn(pipe.decode(latents, request.height, request.width), latents)

    def attention(
        self, request: Request, pair: Pair, word: str
    ) -> tuple[Float[np.ndarray, "B y x"], Float[np.ndarray, "B y x"]]:
        """Attention of image tokens to a word's tokens, before and after erasing.

        Raises:
            InputError: the word cannot be used.
        """
        pipe, prompts = self.pipe, [request.prompt] * len(request.seeds)
        noise = pipe.noise(request.seeds, request.height, request.width)
        masks = marks(pipe.tokenizer_2, prompts, word)
        ids = pipe.image_ids(request.height, request.width)
        grid = [side // 2 for side in pipe.grid(request.height, request.width)]
        maps = []
        for strengths in ((0.0,) * len(self.adapters), request.strengths):
            pairs = list(zip(self.adapters.values(), strengths, strict=True))
            model = pipe.denoiser(ids, request.guidance, pairs)
            mass = concept_mass(pipe, model, noise, pair.base.latents, pipe.encode(prompts), masks)
            maps.append(mass.reshape(-1, *grid))
        return maps[0], maps[1]

    def verdict(self, request: Request, pair: Pair, concept: str) -> list[tuple[bool, bool]]:
        """Whether the judge finds a concept in each picture, of the base and the erased side.

        Raises:
            InputError: there is no judge, or it does not know the concept.
        """
        assert self.judge is not None, "the page asks only where there is a judge"
        labels = [self.judge.label(concept)] * len(request.seeds)
        prompts = [request.prompt] * len(request.seeds)
        sides = [
            self.judge.finds(side.pictures, labels, prompts).tolist()
            for side in (pair.base, pair.erased)
        ]
        return list(zip(*sides, strict=True))

    def save(self, request: Request, pair: Pair, out: Path) -> list[Path]:
        """Write both sides as PNG files with their settings; names do not depend on the prompt."""
        settings = {"model": self.model, "adapters": list(self.adapters)} | asdict(request)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        command = request.command(self.model, list(self.adapters))
        files = []
        for name, side in (("base", pair.base), ("erased", pair.erased)):
            for seed, picture in zip(request.seeds, side.pictures, strict=True):
                notes = {"prompt": request.prompt, "seed": str(seed), "side": name}
                notes |= {"settings": json.dumps(settings), "command": command}
                file = out / f"{digest}-{name}-seed{seed}.png"
                write(file, png(picture, notes))
                files.append(file)
        return files


def overlay(
    picture: UInt8[np.ndarray, "h w 3"], attention: Float[np.ndarray, "y x"], most: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Lay attention over a picture: red where it is strong, dark where there is none.

    Args:
        picture: the picture.
        attention: share of attention of each image token.
        most: share that is drawn in full red; the same before and after, so that they compare.
    """
    scale = [side // tokens for side, tokens in zip(picture.shape, attention.shape, strict=False)]
    heat = np.kron(np.clip(attention / max(most, 1e-9), 0, 1), np.ones(scale))[..., None]
    grey = picture.mean(-1, keepdims=True) * 0.5
    return np.round(grey * (1 - heat) + np.array([255.0, 60.0, 0.0]) * heat).astype(np.uint8)


def adapter_names(texts: Sequence[str]) -> list[str]:
    """Short names of adapters for the page: the last part of each path, numbered if equal."""
    names = [Path(text).name or text for text in texts]
    return [
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names, 1)
    ]
