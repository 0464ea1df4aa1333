"""The pictures that are drawn to be counted, and what a judge finds in them.

Axis letters: B pictures, h w picture sides.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from erase.config.schema import Config
from erase.data.words.templates import phrase
from erase.evaluation.judge import Judge, open_judge
from erase.model.draw import draw
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.sampling import SamplingOptions


@dataclass(frozen=True)
class Case:
    """One picture to draw twice.

    Attributes:
        cell: what it counts for: one of `erase.evaluation.statistics.CELLS`, or a family of
            attacks.
        prompt: what to draw.
        seed: of the noise.
        sought: the concept that the judge is to look for.
        word: what the prompt calls it, where its cell has several words.
    """

    cell: str
    prompt: str
    seed: int
    sought: str
    word: str = ""


def cases(config: Config, others: Sequence[str]) -> list[Case]:
    """The pictures that an evaluation draws.

    Templates and words alternate, so that every cell shows all of them as evenly as may be.

    Args:
        config: the run's configuration.
        others: the concepts that should stay.
    """
    settings = config.evaluation
    shuffled = np.random.default_rng(settings.seed).permutation(sorted(others)).tolist()
    words = {
        "Acc_e": [(config.concept, config.concept)],
        "Acc_g": [(synonym, config.concept) for synonym in config.synonyms],
        "Acc_ir": [(other, other) for other in shuffled],
    }
    drawn = []
    for cell, pairs in words.items():
        for index in range(settings.pictures if pairs else 0):
            word, sought = pairs[index % len(pairs)]
            # After each common multiple the templates move on by one, or pairs would repeat.
            turn = math.lcm(len(pairs), len(settings.templates))
            template = settings.templates[(index + index // turn) % len(settings.templates)]
            seed, prompt = settings.seed + index, phrase(template, word)
            drawn.append(Case(cell, prompt, seed, sought, word if cell == "Acc_g" else ""))
    return drawn


def judged(
    judge: Judge, pictures: UInt8[np.ndarray, "B h w 3"], drawn: Sequence[Case]
) -> Bool[np.ndarray, "B"]:
    """Whether the judge finds in each picture what its case asks for.

    A relation is asked for between the first two entities that the prompt names.

    Raises:
        InputError: the judge knows no such label, or a relation's prompt does not name a pair.
    """
    labels = [judge.label(case.sought) for case in drawn]
    kinds = [judge.kind(label) for label in labels]
    found = np.zeros(len(drawn), bool)
    plain = [i for i, kind in enumerate(kinds) if kind != "relation"]
    if plain:
        found[plain] = judge.found(pictures[plain], [labels[i] for i in plain])
    related = [i for i, kind in enumerate(kinds) if kind == "relation"]
    if related:
        pairs = np.array([named_pair(judge, drawn[i].prompt) for i in related])
        wanted = [judge.config.relations.index(labels[i]) for i in related]
        logits = judge.relation(pictures[related], pairs[:, 0], pairs[:, 1])
        found[related] = logits.argmax(-1) == np.array(wanted)
    return found


def named_pair(judge: Judge, prompt: str) -> tuple[int, int]:
    """Indices of the first two entities that a prompt names, longer names first.

    Raises:
        InputError: it names fewer than two.
    """
    names = sorted(judge.config.entities, key=len, reverse=True)
    pattern = rf"\b({'|'.join(map(re.escape, names))})s?\b"
    named = [match.group(1) for match in re.finditer(pattern, prompt)]
    if len(named) < 2:
        raise InputError(
            f"prompt = {prompt!r}: a relation needs two entities that the judge knows, "
            'for instance "a cat {} a dog"'
        )
    first, second = (judge.config.entities.index(name) for name in named[:2])
    return first, second


def judge_of(config: Config) -> Judge | None:
    """The configuration's judge, which can count its pictures; needs no model.

    Raises:
        InputError: its folder cannot be used, it does not know a label, or it looks at pictures of
            another size than those that are drawn.
    """
    settings = config.evaluation
    if settings.judge is None:
        return None
    judge = open_judge(settings.judge)
    for name in ("height", "width"):
        if getattr(config, name) != judge.size:
            raise InputError(
                f"{name} = {getattr(config, name)}: the judge {settings.judge} takes pictures of "
                f"{judge.size} x {judge.size} pixels; give --config.height={judge.size} "
                f"--config.width={judge.size}, or name another evaluation.judge"
            )
    for word in (config.concept, *settings.others):
        judge.label(word)
    return judge


def check_judge(config: Config) -> None:
    """Makes sure, before a model is opened, that whatever asks the judge can.

    Raises:
        InputError: see `judge_of`; or there is none, and early stopping asks it.
    """
    if config.early_stop.every and config.evaluation.judge is None:
        raise InputError("evaluation.judge = None: early_stop asks a judge; name its folder")
    if config.early_stop.every or config.evaluation.pictures:
        judge_of(config)


def check(pipe: Pipeline, judge: Judge | None, drawn: Sequence[Case]) -> None:
    """Makes sure that every prompt can be drawn and judged; cheap.

    Raises:
        InputError: a prompt is over the token limit, the judge does not know its label, or a
            relation's prompt does not name a pair.
    """
    pipe.tokenize([case.prompt for case in drawn])
    if judge is not None:
        for case in drawn:
            if judge.kind(case.sought) == "relation":
                named_pair(judge, case.prompt)


def draw_cases(
    pipe: Pipeline,
    drawn: Sequence[Case],
    config: Config,
    adapters: Sequence[tuple[Adapter, float]],
    title: str,
    silenced: str | None = None,
) -> UInt8[np.ndarray, "B h w 3"]:
    """The cases' pictures, as the configuration's evaluation draws them.

    Args:
        pipe: the base model.
        drawn: what to draw.
        config: the run's configuration.
        adapters: with their strengths.
        title: shown at the progress bar.
        silenced: a concept whose tokens give nothing to the picture.
    """
    settings = config.evaluation
    return draw(
        pipe,
        [case.prompt for case in drawn],
        [case.seed for case in drawn],
        SamplingOptions(
            settings.steps, settings.guidance, config.height, config.width, settings.batch
        ),
        adapters=adapters,
        silenced=silenced,
        title=f"pictures {title}",
    )
