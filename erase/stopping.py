"""When a run has erased enough: a judge finds its concept no more in pictures of its own.

Axis letter: B pictures.
"""

from convert.errors import InputError
from erase.cases import Case, check, draw_cases, judged
from erase.config import Config
from erase.judge import Judge, open_judge
from erase.prompts import as_template, phrase
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline


def plan(config: Config, pipe: Pipeline) -> tuple[Judge, list[Case]]:
    """The judge and what a look draws: the sentences of training in turn, from noise of its own.

    Raises:
        InputError: there is no judge, it does not know the concept, or a prompt cannot be used.
    """
    stop = config.early_stop
    if config.evaluation.judge is None:
        raise InputError("evaluation.judge = None: early_stop asks a judge; name its folder")
    judge = open_judge(config.evaluation.judge)
    templates = [as_template(prompt, config.concept) for prompt in config.prompts]
    drawn = []
    for index in range(stop.pictures):
        prompt = phrase(templates[index % len(templates)], config.concept)
        drawn.append(Case("early_stop", prompt, stop.seed + index, config.concept))
    check(pipe, judge, drawn)
    return judge, drawn


def erased(pipe: Pipeline, adapter: Adapter, config: Config) -> bool:
    """Whether the judge finds the concept in no larger a share of the pictures than allowed.

    Args:
        pipe: the frozen model.
        adapter: as far as it is trained.
        config: the run's configuration.

    Raises:
        InputError: see `plan`.
    """
    judge, drawn = plan(config, pipe)
    adapters = [(adapter, config.evaluation.strength)]
    pictures = draw_cases(pipe, drawn, config, adapters, f"of {config.concept}, to stop")
    return bool(judged(judge, pictures, drawn).mean() <= config.early_stop.share)
