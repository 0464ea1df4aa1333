"""Prompts that disguise the concept: misspellings, affixes, repetitions, synonyms, other orders.

The paper's Appendix B. Except for synonyms, prompts are generated randomly from the evaluation's
seed.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np

from erase.attacks import families
from erase.config.schema import Config
from erase.data.words.templates import phrase, shuffle
from erase.evaluation.eval_prompts import EvalPrompt
from flux_jax.errors import InputError

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


FAMILIES = families.DISGUISES


def attacks(
    config: Config, pictures: int, ordered: bool = False, among: Collection[str] = FAMILIES
) -> list[EvalPrompt]:
    """Return the prompts of every family; without synonyms, that family is left out.

    Args:
        config: the run's configuration.
        pictures: number of pictures per family.
        ordered: whether the concept depends on the order of words, as a relation does; then the
            shuffled family is left out.
        among: the families that are wanted; a family's prompts do not depend on the others'.
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
    return [each for each in prompts if each.cell in among]


def _word(rng: np.random.Generator, concept: str) -> tuple[list[str], int]:
    """Return the concept's words, and the index of one to change, of two letters or more."""
    words = concept.split()
    long = [i for i, word in enumerate(words) if len(word) > 1]
    if not long:
        raise InputError(f"concept = {concept!r} has no word of two letters that could be misspelt")
    return words, long[int(rng.integers(len(long)))]
