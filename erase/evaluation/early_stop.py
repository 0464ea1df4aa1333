"""Early stopping: a run stops when a judge no longer finds the concept in its pictures.

Axis letter: B pictures.
"""

from erase.config.schema import Config
from erase.data.words.templates import as_template, phrase
from erase.evaluation.eval_prompts import (
    EvalPrompt,
    check_judge,
    check_prompts,
    configured_judge,
    draw_and_judge,
)
from erase.evaluation.judge import Judge
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline


def eval_prompts(config: Config) -> list[EvalPrompt]:
    """Return the prompts of a check: the training sentences in turn, with separate noise seeds."""
    stop = config.early_stop
    templates = [as_template(prompt, config.concept) for prompt in config.prompts]
    prompts = [phrase(template, config.concept) for template in templates]
    return [
        EvalPrompt("early_stop", prompts[index % len(prompts)], stop.seed + index, config.concept)
        for index in range(stop.pictures)
    ]


def plan_early_stop(config: Config, pipe: Pipeline) -> tuple[Judge, list[EvalPrompt]]:
    """Open the judge and return it with the prompts of a check.

    Raises:
        InputError: there is no judge, it does not know the concept, or a prompt cannot be used.
    """
    check_judge(config)
    judge, prompts = configured_judge(config), eval_prompts(config)
    assert judge is not None, "checked above"
    check_prompts(pipe, judge, prompts)
    return judge, prompts


def has_erased(pipe: Pipeline, adapter: Adapter, config: Config) -> bool:
    """Whether the judge finds the concept in at most the allowed share of the pictures.

    Args:
        pipe: the frozen model.
        adapter: the adapter in its current state.
        config: the run's configuration.

    Raises:
        InputError: see `plan_early_stop`.
    """
    judge, prompts = plan_early_stop(config, pipe)
    adapters = [(adapter, config.evaluation.strength)]
    hits = draw_and_judge(pipe, judge, prompts, config, adapters, f"of {config.concept}, to stop")
    return bool(hits.mean() <= config.early_stop.share)
