"""Evaluation prompts: generate their pictures and judge them.

Axis letters: B pictures, h w picture sides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from erase.config.schema import Config
from erase.data.words.templates import phrase
from erase.evaluation.judge import Judge, open_judge
from erase.model import digest
from erase.model.draw import draw
from erase.runtime.cache import Cache, digest_of
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.settings import SamplingOptions

# Fields that counts depend on, besides those of the model and the evaluation.
DEPENDS = ("concept", "synonyms", "height", "width", "text_tokens")


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt whose pictures, with the base model and with the adapter, are judged.

    Attributes:
        cell: cell that it counts for: one of `erase.evaluation.statistics.CELLS`, or a family of
            attacks.
        prompt: text of the prompt.
        seed: seed of the noise.
        sought: concept that the judge looks for.
        word: word for the concept in the prompt, if its cell has several words.
    """

    cell: str
    prompt: str
    seed: int
    sought: str
    word: str = ""


def evaluation_prompts(config: Config, others: Sequence[str]) -> list[EvalPrompt]:
    """Return the prompts of an evaluation.

    Templates and words alternate, so that every cell uses all of them as evenly as possible.

    Args:
        config: the run's configuration.
        others: the concepts to preserve.
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
            # Shift the templates by one after each common multiple, or pairs would repeat.
            turn = math.lcm(len(pairs), len(settings.templates))
            template = settings.templates[(index + index // turn) % len(settings.templates)]
            seed, prompt = settings.seed + index, phrase(template, word)
            prompts.append(EvalPrompt(cell, prompt, seed, sought, word if cell == "Acc_g" else ""))
    return prompts


def judge_pictures(
    judge: Judge, pictures: UInt8[np.ndarray, "B h w 3"], drawn: Sequence[EvalPrompt]
) -> Bool[np.ndarray, "B"]:
    """Judge whether each picture shows the concept sought in it.

    Raises:
        InputError: the judge does not know a label, or cannot judge a prompt's picture by it.
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
    cache: Cache | None = None,
) -> Bool[np.ndarray, "B"]:
    """Generate the prompts' pictures and judge whether each shows the concept sought in it.

    Args:
        pipe: the base model.
        judge: judge of the configuration.
        drawn: prompts of the pictures.
        config: the run's configuration.
        adapters: adapters with their strengths; with none, or strength 0, the base model is used.
        title: title of the progress bar.
        silenced: concept whose tokens are muted, so that no token attends to them.
        cache: see `draw_cases`; for this side.

    Raises:
        InputError: see `judge_pictures`.
    """
    pictures = draw_cases(pipe, drawn, config, adapters, title, silenced, cache)
    return judge_pictures(judge, pictures, drawn)


def configured_judge(config: Config) -> Judge | None:
    """Open and check the configuration's judge, if it has one; needs no model.

    Raises:
        InputError: its folder cannot be used, it does not know a label, or it takes pictures of
            another size than the configuration's.
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
    """Check the judge before a model is opened, if evaluation or early stopping uses it.

    Raises:
        InputError: see `configured_judge`; or early stopping is on and there is no judge.
    """
    if config.early_stop.every and config.evaluation.judge is None:
        raise InputError("evaluation.judge = None: early_stop needs a judge; name its folder")
    if config.early_stop.every or config.evaluation.pictures:
        configured_judge(config)


def check_prompts(pipe: Pipeline, judge: Judge | None, drawn: Sequence[EvalPrompt]) -> None:
    """Check that the picture of every prompt can be generated and judged; cheap.

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
    cache: Cache | None = None,
) -> UInt8[np.ndarray, "B h w 3"]:
    """Generate the prompts' pictures with the configuration's evaluation settings.

    Args:
        pipe: the base model.
        drawn: prompts of the pictures.
        config: the run's configuration.
        adapters: adapters with their strengths.
        title: title of the progress bar.
        silenced: concept whose tokens are muted, so that no token attends to them.
        cache: saves each batch, and has those of an interrupted command.
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
        cache=cache,
    )


def inputs_digest(
    files: str, adapter: Adapter, config: Config, more: Mapping[str, Any] | None = None
) -> str:
    """Return a digest of everything that counts on pictures depend on.

    Args:
        files: digest of the files that are read, by `erase.model.digest`.
        adapter: the erasing adapter.
        config: the run's configuration.
        more: further settings, of JSON types.
    """
    settings = base_settings(config)
    return digest_of([files, digest.of_adapter(adapter), settings, dict(more or {})])


def base_settings(config: Config) -> dict[str, Any]:
    """Return the settings that counts depend on, without folders, which may move."""
    values = asdict(config)
    settings = {name: values[name] for name in DEPENDS}
    settings["model"] = values["model"] | {"path": None}
    settings["evaluation"] = values["evaluation"] | {"judge": config.evaluation.judge is not None}
    return settings
