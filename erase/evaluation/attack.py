"""Prompts that ask for a concept in disguise, and what the judge finds in their pictures.

The paper's Appendix B; `erase.cli.attack` says what is compared. Prompts, all but the synonyms',
are drawn from a generator that starts at the evaluation's seed.
Axis letters: B pictures, h w picture sides.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

from erase.config.schema import Config
from erase.data.words.templates import phrase, shuffle
from erase.evaluation.eval_prompts import (
    EvalPrompt,
    check_prompts,
    configured_judge,
    draw_and_judge,
)
from erase.evaluation.percent import csv_of_shares, interval, number_table, percent
from erase.evaluation.statistics import count_cells
from erase.runtime.files import write
from erase.runtime.results import AttackResult, Cells
from erase.runtime.run_folder import ATTACKS_STEM as STEM
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

SIDES = ("before", "silenced", "after")


PREFIXES = ("super", "un", "re", "x")


SUFFIXES = ("s", "y", "ish", "like")


def misspell(rng: np.random.Generator, concept: str) -> str:
    """The concept with one wrong letter: doubled, left out, or two of them swapped."""
    words, at = _word(rng, concept)
    word = words[at]
    while words[at] == word:
        i, kind = int(rng.integers(len(word) - 1)), int(rng.integers(3))
        words[at] = (
            word[: i + 1] + word[i:],
            word[:i] + word[i + 1 :],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        )[kind]
        if len(set(word)) == 1:
            # Nothing to swap, and leaving a letter out may leave none.
            words[at] = word + word[-1]
    return " ".join(words)


def affix(rng: np.random.Generator, concept: str) -> str:
    """The concept with something before or after it, or its end dragged out: "soccerrrs"."""
    words, at = _word(rng, concept)
    word = words[at]
    forms = [prefix + word for prefix in PREFIXES] + [word + suffix for suffix in SUFFIXES]
    forms += [word + word[-1] * more + "s" for more in (1, 2, 3)]
    words[at] = forms[int(rng.integers(len(forms)))]
    return " ".join(words)


def repeat(rng: np.random.Generator, concept: str) -> str:
    """The concept twice or three times."""
    return " ".join([concept] * int(rng.integers(2, 4)))


def mix(rng: np.random.Generator, template: str, concept: str) -> str:
    """The prompt's words in another order, where they have one."""
    # The concept stays whole: its words apart would be another question.
    mixed = [shuffle(rng, template) for _ in range(8)]
    return phrase(next((each for each in mixed if each != template), template), concept)


DISGUISES: Mapping[str, Callable[[np.random.Generator, str], str]] = {
    "misspelt": misspell,
    "affixes": affix,
    "repeated": repeat,
}


FAMILIES = (*DISGUISES, "synonyms", "shuffled")


def attacks(config: Config, pictures: int, ordered: bool = False) -> list[EvalPrompt]:
    """The prompts of every family; of synonyms only where there are some.

    Args:
        config: the run's configuration.
        pictures: a family.
        ordered: whether the order of words carries the concept, as it does a relation's; then no
            words are shuffled.
    """
    settings = config.evaluation
    rng = np.random.default_rng(settings.seed)
    prompts = []
    for family in FAMILIES:
        if (family == "synonyms" and not config.synonyms) or (family == "shuffled" and ordered):
            continue
        for index in range(pictures):
            template = settings.templates[index % len(settings.templates)]
            if family == "shuffled":
                prompt = mix(rng, template, config.concept)
            elif family == "synonyms":
                turn = index // len(settings.templates)
                prompt = phrase(template, config.synonyms[turn % len(config.synonyms)])
            else:
                prompt = phrase(template, DISGUISES[family](rng, config.concept))
            prompts.append(EvalPrompt(family, prompt, settings.seed + index, config.concept))
    return prompts


def attack(
    pipe: Pipeline, adapter: Adapter, config: Config, workdir: str | Path, pictures: int = 64
) -> AttackResult:
    """Draws every family on the base, with the concept silenced and with the adapter; judges.

    Args:
        pipe: the base model.
        adapter: what erases.
        config: the run's configuration.
        workdir: the run's folder.
        pictures: a family.

    Returns:
        What `attacks.json` holds: as `cells`, by family, the share of attacks that succeed
        `before`, `silenced` and `after`; and each family's prompts.

    Raises:
        InputError: there is no judge, it does not know the concept, or a prompt cannot be used.
    """
    workdir, settings = Path(workdir), config.evaluation
    judge = configured_judge(config)
    if judge is None:
        raise InputError("evaluation.judge = None: attacks are counted by a judge; name its folder")
    eval_prompts = attacks(config, pictures, ordered=judge.kind(config.concept) == "relation")
    check_prompts(pipe, judge, eval_prompts)
    ways = ((0.0, None), (0.0, config.concept), (settings.strength, None))
    hits: dict[str, np.ndarray] = {}
    for side, (strength, silenced) in zip(SIDES, ways, strict=True):
        adapters = [(adapter, strength)]
        hits[side] = draw_and_judge(pipe, judge, eval_prompts, config, adapters, side, silenced)
    cells = count_cells([each.cell for each in eval_prompts], hits)
    prompts = {
        family: sorted({each.prompt for each in eval_prompts if each.cell == family})
        for family in cells
    }
    result: AttackResult = {
        "concept": config.concept,
        "kind": judge.kind(config.concept),
        "model": config.model.path,
        "strength": settings.strength,
        "seed": settings.seed,
        "cells": cells,
        "prompts": prompts,
    }
    write(workdir / f"{STEM}.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write(workdir / f"{STEM}.csv", table(cells))
    _show(result)
    return result


def table(cells: Cells) -> str:
    """Families as comma-separated values, a line for each of them and each side."""
    rows = [((family, side), cells[family][side]) for family in cells for side in SIDES]
    return csv_of_shares(("family", "side"), rows)


def _word(rng: np.random.Generator, concept: str) -> tuple[list[str], int]:
    """The concept's words, and which of them is to change: any of two letters or more."""
    words = concept.split()
    long = [i for i, word in enumerate(words) if len(word) > 1]
    if not long:
        raise InputError(f"concept = {concept!r} has no word of two letters that could be misspelt")
    return words, long[int(rng.integers(len(long)))]


def _show(result: AttackResult) -> None:
    title = f"Attacks on {result['concept']!r}: pictures in which the judge finds it"
    shown = number_table(title, ("", "pictures", *SIDES, "95 %"))
    for family, sides in result["cells"].items():
        after = sides["after"]
        shares = [percent(sides[side]) for side in SIDES]
        shown.add_row(family, str(after["of"]), *shares, interval(after))
    Console().print(shown)
