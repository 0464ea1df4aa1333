"""Plan a run's bank: sentences, prompts, pictures and seeds.

Axis letters: V forms of a sentence, T text tokens.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from erase.config.schema import Config
from erase.data import captioned_folder
from erase.data.words.templates import Group, as_template, draw_groups, leave_out, phrase
from erase.data.words.word_tokens import concept_masks
from flux_jax.pipeline import Pipeline

CONCEPT, SYNONYM, POOL, FILLER = 0, 1, 2, -1


@dataclass(frozen=True)
class Features:
    """Attention features of the words in the concept's place, on the trajectories.

    Attributes:
        steps: number of denoising steps, counted from the noise.
        last: whether only those of the last dual-stream block are used.
        text: whether text tokens have features, besides image tokens.
    """

    steps: int
    last: bool
    text: bool


@dataclass(frozen=True)
class Needs:
    """Data that a method needs in its bank, besides the concept's sentences and trajectories.

    Attributes:
        pools: words that replace the concept in further forms of its sentences: synonyms, then
            pools of other words.
        bare: whether these forms are the words alone.
        drawn: index of the form that trajectories show; 0 is the concept.
        stand_in: word that replaces the concept in anchors; "" leaves the concept out, None uses
            the empty prompt as anchor.
        towards: prompt of a further anchor; "" for none.
        eta: how far L_esd leads past its anchors.
        shown: prompts of pictures to preserve, one per picture; empty for no pictures.
        folder: folder of pictures with captions, instead of these prompts.
        also: further prompts to encode.
        edit_rank: rank of an edit that the method adds to the bank; 0 for none.
        regions: whether the method adds regions.
        velocities: the part of the method's steps that compares with the frozen model's velocities
            for the concept and the anchors, at points of the trajectories; a name in
            `Training.drawn`, "" for none.
        guidance: distilled guidance scale of these velocities; None for that of the trajectories.
        noises: noises of each picture to preserve that the bank stores, with the frozen model's
            velocities.
        features: steps and shape of the attention features that the method adds, if it does.
    """

    pools: tuple[tuple[str, ...], ...] = ()
    bare: bool = False
    drawn: int = 0
    stand_in: str | None = None
    towards: str = ""
    eta: float = 1.0
    shown: tuple[str, ...] = ()
    folder: str | None = None
    also: tuple[str, ...] = ()
    edit_rank: int = 0
    regions: bool = False
    velocities: str = ""
    guidance: float | None = None
    noises: int = 0
    features: Features | None = None

    @property
    def forms(self) -> int:
        """V, the number of forms: one with the concept, and one with each other word."""
        return 1 + sum(map(len, self.pools))


@dataclass(frozen=True)
class Plan:
    """Inputs of a bank, before the model is run.

    Attributes:
        groups: the sentences.
        masks: ones at the concept's tokens, [M, V, T].
        kinds: kinds of the forms, see `Bank`.
        drawn: index of the form that trajectories show.
        eta: see `Bank`.
        anchors: anchor prompts of each sentence.
        shown: prompts of the pictures to preserve, one per picture.
        also: further prompts that the method encodes.
        pictures: the user's pictures, or None if the frozen model generates them.
        trajectory_seeds: seeds of the noise, one per trajectory.
        picture_seeds: seeds of the noise, one per picture.
        velocities: the part of the method's steps for which the bank stores velocities; "" if it
            stores none.
        guidance: distilled guidance scale of these velocities.
        noise_seeds: seeds of the stored noises, those of a picture next to each other.
    """

    groups: tuple[Group, ...]
    masks: Float[np.ndarray, "M V T"]
    kinds: tuple[int, ...]
    drawn: int
    eta: float
    anchors: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...]
    also: tuple[str, ...]
    pictures: UInt8[np.ndarray, "F h w 3"] | None
    trajectory_seeds: tuple[int, ...]
    picture_seeds: tuple[int, ...]
    velocities: str
    guidance: float
    noise_seeds: tuple[int, ...]

    @property
    def prompts(self) -> list[str]:
        """All prompts to encode: sentences by form, anchors, prompts of pictures, further ones."""
        forms = [prompt for group in self.groups for prompt in group.prompts]
        return [*forms, *itertools.chain.from_iterable(self.anchors), *self.shown, *self.also]


def plan_bank(config: Config, pipe: Pipeline, needs: Needs) -> Plan:
    """Sample sentences and seeds, and find the concept's tokens. Cheap, and makes all checks.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        needs: data that the run's method needs.

    Raises:
        InputError: a concept is not in its prompt, a prompt is over the token limit, or the
            picture's size does not fit the model.
    """
    pipe.grid(config.height, config.width)
    rng = np.random.default_rng(config.seed)
    words = [(word, kind) for kind, pool in enumerate(needs.pools, SYNONYM) for word in pool]
    stand_in = [] if needs.stand_in is None else [needs.stand_in]
    groups = draw_groups(
        rng,
        config.prompts,
        config.concept,
        [*(word for word, _ in words), *stand_in],
        count=config.bank.sentences,
        shuffled=config.bank.shuffled,
    )
    origins = [group.prompts[-1] if stand_in else "" for group in groups]
    groups = [group.first(1 + len(words)) for group in groups]
    masks = [_masks(pipe, group, needs.bare) for group in groups]
    if needs.bare:
        groups = [replace(g, prompts=(g.prompts[0], *g.words[1:])) for g in groups]
    pictures, shown = None, needs.shown
    if needs.folder:
        pictures, shown = captioned_folder.read(Path(needs.folder), config.height, config.width)
    further = (needs.towards,) if needs.towards else ()
    forms = [prompt for group in groups for prompt in group.prompts]
    pipe.tokenize([*needs.also, *origins, *further, *shown, *forms])
    seeds = rng.integers(2**31, size=config.bank.trajectories + len(shown)).tolist()
    noise_seeds = rng.integers(2**31, size=len(shown) * needs.noises).tolist()
    return Plan(
        groups=tuple(groups),
        masks=np.stack(masks),
        kinds=(CONCEPT, *(kind for _, kind in words)),
        drawn=needs.drawn,
        eta=needs.eta,
        anchors=tuple((origin, *further) for origin in origins),
        shown=shown,
        also=needs.also,
        pictures=pictures,
        trajectory_seeds=tuple(seeds[: config.bank.trajectories]),
        picture_seeds=tuple(seeds[config.bank.trajectories :]),
        velocities=needs.velocities if stores_velocities(config, needs) else "",
        guidance=config.guidance if needs.guidance is None else needs.guidance,
        noise_seeds=tuple(noise_seeds),
    )


def stores_velocities(config: Config, needs: Needs) -> bool:
    """Whether the bank stores the velocities of `needs.velocities`, for updates to look up.

    By default it does if that needs fewer forward passes than computing them in each update. Each
    point that the run samples is evaluated once, in batches; the trajectories already have the
    concept's velocities if they show it at the same guidance. A run that may stop early counts up
    to its first check. Both sides are counted for two anchors, the most that there can be, so that
    runs trained at once decide alike.

    Args:
        config: the run's configuration.
        needs: data that the run's method needs.
    """
    if not needs.velocities or config.bank.teacher:
        return bool(needs.velocities) and config.bank.teacher == "stored"
    anchors, size = 2, config.bank.batch
    points = min(config.iterations * config.batch_size, config.bank.trajectories * config.steps)
    known = needs.drawn == 0 and needs.guidance in (None, config.guidance)
    stored = points * (anchors if known else 1 + anchors)
    iterations = min(config.iterations, config.early_stop.every or config.iterations)
    return math.ceil(stored / size) * size < iterations * config.batch_size * (1 + anchors)


def _masks(pipe: Pipeline, group: Group, bare: bool) -> Float[np.ndarray, "V T"]:
    """Masks of each form's word; for bare words the concept's, as in the authors' code."""
    if not bare:
        return concept_masks(pipe.tokenizer_2, group.prompts, group.words)
    concept = concept_masks(pipe.tokenizer_2, group.prompts[:1], group.words[0])
    return np.repeat(concept, len(group.words), axis=0)


def kept_prompts(
    config: Config, prompts: Sequence[str], count: int, without_concept: bool = False
) -> tuple[str, ...]:
    """Prompts of the pictures to preserve, which the frozen model generates.

    Args:
        config: the run's configuration.
        prompts: prompts, used in turn; if empty, the first sentence, with the concept.
        count: number of pictures.
        without_concept: whether to remove the concept's words.
    """
    templates = prompts or (as_template(config.prompts[0], config.concept),)
    if without_concept:
        templates = [
            leave_out(as_template(t, config.concept), config.part_of_speech) for t in templates
        ]
    shown = [phrase(template, config.concept) for template in templates]
    return tuple(shown[i % len(shown)] for i in range(count))
