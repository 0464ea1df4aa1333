"""What a run's bank is to be made of.

Axis letters: V forms of a sentence, T text tokens.
"""

import itertools
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
class Needs:
    """What a method wants in its bank, besides the concept's sentences and their trajectories.

    Attributes:
        pools: words that take the concept's place in further forms of its sentences: synonyms, then
            pools of others.
        bare: whether those forms are the words alone.
        drawn: the form that trajectories draw; 0 has the concept.
        stand_in: word that takes the concept's place in anchors, "" leaves the place out; None has
            the empty prompt as anchor.
        towards: a prompt that becomes a further anchor.
        eta: how far L_esd leads past its anchors.
        shown: prompts of pictures to hold on to, one a picture; of none if there are none.
        folder: pictures with captions instead.
        also: prompts that are encoded besides.
        edit_rank: of an edit that the method adds to the bank; 0 if it adds none.
        regions: whether it adds regions.
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

    @property
    def forms(self) -> int:
        """V: a sentence with the concept, and with every other word."""
        return 1 + sum(map(len, self.pools))


@dataclass(frozen=True)
class Plan:
    """Everything that a bank is made of, before anything is computed.

    Attributes:
        groups: the sentences.
        masks: [M, V, T].
        kinds: of the forms, see `Bank`.
        drawn: the form that trajectories draw.
        eta: see `Bank`.
        anchors: prompts, for each sentence.
        shown: prompts, one a picture.
        also: prompts that the method asks for itself.
        pictures: the user's own, or None where the frozen model draws them.
        trajectory_seeds: of the noise, one a trajectory.
        picture_seeds: one a picture.
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

    @property
    def prompts(self) -> list[str]:
        """Everything that is encoded: sentences form by form, anchors, pictures', all others."""
        forms = [prompt for group in self.groups for prompt in group.prompts]
        return [*forms, *itertools.chain.from_iterable(self.anchors), *self.shown, *self.also]


def plan_bank(config: Config, pipe: Pipeline, needs: Needs) -> Plan:
    """Draws sentences and seeds and finds the concept's tokens; cheap, and complete in its checks.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        needs: what the run's method wants.

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
    )


def _masks(pipe: Pipeline, group: Group, bare: bool) -> Float[np.ndarray, "V T"]:
    """The tokens of each form's word; the authors' code looks for all where the concept stood."""
    if not bare:
        return concept_masks(pipe.tokenizer_2, group.prompts, group.words)
    concept = concept_masks(pipe.tokenizer_2, group.prompts[:1], group.words[0])
    return np.repeat(concept, len(group.words), axis=0)


def kept_prompts(
    config: Config, prompts: Sequence[str], count: int, without_concept: bool = False
) -> tuple[str, ...]:
    """Prompts of pictures that the frozen model draws, to be held on to.

    Args:
        config: the run's configuration.
        prompts: what they show, in turn; with none the first sentence, with the concept.
        count: of the pictures.
        without_concept: whether its words are left out.
    """
    templates = prompts or (as_template(config.prompts[0], config.concept),)
    if without_concept:
        templates = [
            leave_out(as_template(t, config.concept), config.part_of_speech) for t in templates
        ]
    shown = [phrase(template, config.concept) for template in templates]
    return tuple(shown[i % len(shown)] for i in range(count))
