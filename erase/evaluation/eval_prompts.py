"""The pictures that are drawn to be counted, and what a judge finds in them.

Axis letters: B pictures, h w picture sides.
"""

import math
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
from flux_jax.settings import SamplingOptions


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt to draw and judge, once with the base and once with the adapter.

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


def evaluation_prompts(config: Config, others: Sequence[str]) -> list[EvalPrompt]:
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
    prompts = []
    for cell, pairs in words.items():
        for index in range(settings.pictures if pairs else 0):
            word, sought = pairs[index % len(pairs)]
            # After each common multiple the templates move on by one, or pairs would repeat.
            turn = math.lcm(len(pairs), len(settings.templates))
            template = settings.templates[(index + index // turn) % len(settings.templates)]
            seed, prompt = settings.seed + index, phrase(template, word)
            prompts.append(EvalPrompt(cell, prompt, seed, sought, word if cell == "Acc_g" else ""))
    return prompts


def judge_pictures(
    judge: Judge, pictures: UInt8[np.ndarray, "B h w 3"], drawn: Sequence[EvalPrompt]
) -> Bool[np.ndarray, "B"]:
    """Whether the judge finds in each picture what is sought there.

    Raises:
        InputError: the judge knows no such label, or cannot judge by it what a prompt shows.
    """
    labels = [judge.label(each.sought) for each in drawn]
    return judge.finds(pictures, labels, [each.prompt for each in drawn])


def draw_and_judge(
    pipe: Pipeline,
    judge: Judge,
    drawn: Sequence[EvalPrompt],
    config: Config,
    adapters: Sequence[tuple[Adapter, float]],
    title: str,
    silenced: str | None = None,
) -> Bool[np.ndarray, "B"]:
    """Whether the judge finds what is sought in the prompts' pictures.

    Args:
        pipe: the base model.
        judge: of the configuration.
        drawn: what to draw.
        config: the run's configuration.
        adapters: with their strengths; none, or strength 0, is the base.
        title: shown at the progress bar.
        silenced: a concept whose tokens give nothing to the picture.

    Raises:
        InputError: see `judge_pictures`.
    """
    pictures = draw_cases(pipe, drawn, config, adapters, title, silenced)
    return judge_pictures(judge, pictures, drawn)


def configured_judge(config: Config) -> Judge | None:
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
        if judge.size not in (None, getattr(config, name)):
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
        InputError: see `configured_judge`; or there is none, and early stopping asks it.
    """
    if config.early_stop.every and config.evaluation.judge is None:
        raise InputError("evaluation.judge = None: early_stop asks a judge; name its folder")
    if config.early_stop.every or config.evaluation.pictures:
        configured_judge(config)


def check_prompts(pipe: Pipeline, judge: Judge | None, drawn: Sequence[EvalPrompt]) -> None:
    """Makes sure that every prompt can be drawn and judged; cheap.

    Raises:
        InputError: a prompt is over the token limit, the judge does not know its label, or a
            relation's prompt does not name a pair.
    """
    pipe.tokenize([each.prompt for each in drawn])
    if judge is not None:
        for each in drawn:
            judge.check_prompt(judge.label(each.sought), each.prompt)


def draw_cases(
    pipe: Pipeline,
    drawn: Sequence[EvalPrompt],
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
        [each.prompt for each in drawn],
        [each.seed for each in drawn],
        SamplingOptions(
            settings.steps, settings.guidance, config.height, config.width, settings.batch
        ),
        adapters=adapters,
        silenced=silenced,
        title=f"pictures {title}",
    )
