"""Attacks: prompts that disguise the concept, and their success according to the judge.

The paper's Appendix B; `erase.cli.attack` describes what is compared. Except for synonyms, prompts
are generated randomly from the evaluation's seed.
Axis letters: B pictures, h w picture sides.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from convert.tables import show
from erase.config.schema import Config
from erase.data.words.templates import phrase, shuffle
from erase.evaluation.eval_prompts import (
    EvalPrompt,
    check_prompts,
    configured_judge,
    draw_and_judge,
    inputs_digest,
)
from erase.evaluation.percent import csv_of_shares, interval, number_table, percent
from erase.evaluation.statistics import count_cells
from erase.runtime import finished
from erase.runtime.cache import Cache
from erase.runtime.files import write
from erase.runtime.results import AttackResult, Cells
from erase.runtime.run_folder import ATTACKS_STEM as STEM
from erase.runtime.run_folder import CACHE
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

SIDES = ("before", "silenced", "after")


PREFIXES = ("super", "un", "re", "x")


SUFFIXES = ("s", "y", "ish", "like")


def misspell(rng: np.random.Generator, concept: str) -> str:
    """Misspell the concept in one place: a letter is doubled or left out, or two are swapped."""
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
            # Swapping equal letters changes nothing, and leaving one out may leave none.
            words[at] = word + word[-1]
    return " ".join(words)


def affix(rng: np.random.Generator, concept: str) -> str:
    """Add a prefix or suffix to the concept, or stretch its end: "soccerrrs"."""
    words, at = _word(rng, concept)
    word = words[at]
    forms = [prefix + word for prefix in PREFIXES] + [word + suffix for suffix in SUFFIXES]
    forms += [word + word[-1] * more + "s" for more in (1, 2, 3)]
    words[at] = forms[int(rng.integers(len(forms)))]
    return " ".join(words)


def repeat(rng: np.random.Generator, concept: str) -> str:
    """Repeat the concept two or three times."""
    return " ".join([concept] * int(rng.integers(2, 4)))


def mix(rng: np.random.Generator, template: str, concept: str) -> str:
    """Shuffle the prompt's words, if they have another order."""
    # Do not separate the concept's words, which would change the concept.
    mixed = [shuffle(rng, template) for _ in range(8)]
    return phrase(next((each for each in mixed if each != template), template), concept)


DISGUISES: Mapping[str, Callable[[np.random.Generator, str], str]] = {
    "misspelt": misspell,
    "affixes": affix,
    "repeated": repeat,
}


FAMILIES = (*DISGUISES, "synonyms", "shuffled")


def attacks(config: Config, pictures: int, ordered: bool = False) -> list[EvalPrompt]:
    """Return the prompts of every family; without synonyms, that family is left out.

    Args:
        config: the run's configuration.
        pictures: number of pictures per family.
        ordered: whether the concept depends on the order of words, as a relation does; then the
            shuffled family is left out.
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
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    workdir: str | Path,
    pictures: int = 64,
    files: str | None = None,
) -> AttackResult:
    """Attack the base model, the base with the concept's tokens muted, and the adapter.

    An interrupted attack resumes from the batches of pictures saved in `cache/`.

    Args:
        pipe: the base model.
        adapter: the erasing adapter.
        config: the run's configuration.
        workdir: the run's folder.
        pictures: number of pictures per family.
        files: digest of the files that are read, by `erase.model.digest`; with None nothing is
            saved, and an interrupted attack starts again.

    Returns:
        Content of `attacks.json`: in `cells`, by family, the share of successful attacks `before`,
        `silenced` and `after`; and each family's prompts.

    Raises:
        InputError: there is no judge, it does not know the concept, or a prompt cannot be used.
        PreemptedError: the system requested a stop; the pictures so far are saved.
    """
    workdir, settings = Path(workdir), config.evaluation
    judge = configured_judge(config)
    if judge is None:
        raise InputError("evaluation.judge = None: attacks need a judge; name its folder")
    eval_prompts = attacks(config, pictures, ordered=judge.kind(config.concept) == "relation")
    check_prompts(pipe, judge, eval_prompts)
    inputs, cache = "", None
    if files is not None:
        inputs = attack_inputs(files, adapter, config, pictures)
        if (earlier := finished_attack(workdir, inputs)) is not None:
            # Encoded in the same order as without an interruption, since rounding depends on it.
            pipe.remember([each.prompt for each in eval_prompts], settings.batch)
            return earlier
        cache = Cache.opened(workdir / CACHE, STEM, inputs)
    ways = ((0.0, None), (0.0, config.concept), (settings.strength, None))
    hits: dict[str, np.ndarray] = {}
    for side, (strength, silenced) in zip(SIDES, ways, strict=True):
        adapters, saved = [(adapter, strength)], cache and cache.part(side)
        hits[side] = draw_and_judge(
            pipe, judge, eval_prompts, config, adapters, side, silenced, saved
        )
    result = _result(config, judge.kind(config.concept), eval_prompts, hits)
    write(workdir / f"{STEM}.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write(workdir / f"{STEM}.csv", table(result["cells"]))
    if cache is not None:
        finished.finish(workdir, STEM, inputs, [f"{STEM}.json", f"{STEM}.csv"])
        cache.remove()
    _show(result)
    return result


def _result(
    config: Config, kind: str, eval_prompts: Sequence[EvalPrompt], hits: Mapping[str, np.ndarray]
) -> AttackResult:
    """Return the content of `attacks.json`."""
    settings = config.evaluation
    cells = count_cells([each.cell for each in eval_prompts], hits)
    prompts = {
        family: sorted({each.prompt for each in eval_prompts if each.cell == family})
        for family in cells
    }
    return {
        "concept": config.concept,
        "kind": kind,
        "model": config.model.path,
        "strength": settings.strength,
        "seed": settings.seed,
        "cells": cells,
        "prompts": prompts,
    }


def attack_inputs(files: str, adapter: Adapter, config: Config, pictures: int) -> str:
    """Return a digest of everything that an attack's result depends on; see `attack`."""
    return inputs_digest(files, adapter, config, {"pictures": pictures})


def finished_attack(workdir: Path, inputs: str) -> AttackResult | None:
    """Return the result of an attack that is finished; None if it is not.

    Args:
        workdir: the run's folder.
        inputs: from `attack_inputs`.
    """
    return finished.read(workdir, STEM, inputs, f"{STEM}.json")


def table(cells: Cells) -> str:
    """Format the families as comma-separated values, with a line for each family and side."""
    rows = [((family, side), cells[family][side]) for family in cells for side in SIDES]
    return csv_of_shares(("family", "side"), rows)


def _word(rng: np.random.Generator, concept: str) -> tuple[list[str], int]:
    """Return the concept's words, and the index of one to change, of two letters or more."""
    words = concept.split()
    long = [i for i, word in enumerate(words) if len(word) > 1]
    if not long:
        raise InputError(f"concept = {concept!r} has no word of two letters that could be misspelt")
    return words, long[int(rng.integers(len(long)))]


def _show(result: AttackResult) -> None:
    title = f"Attacks on {result['concept']!r}: pictures in which the judge detects it"
    headings = ("change of the prompt", "pictures", *SIDES, "95 % interval")
    shown = number_table(title, headings)
    for family, sides in result["cells"].items():
        after = sides["after"]
        shares = [percent(sides[side]) for side in SIDES]
        shown.add_row(family, str(after["of"]), *shares, interval(after))
    show(shown)
