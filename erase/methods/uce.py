"""UCE: maps the concept's tokens to the outputs of others in closed form (Gandikota et al., 2024).

For every target W, W' minimises

    Σ ‖W' c - W g‖² + p Σ ‖W' k - W k‖² + λ ‖W' - W‖²

where c is the layer's input at the concept's last token, g at the last token of its guide, and k at
that of prompts to preserve; biases do not change. The input of a layer in a block depends on the
denoising step: c, g and k are means over the frozen model's denoising. The change has as many
ranks as there are c, so an adapter represents it exactly.
"""

import numpy as np
from jaxtyping import Int

from erase.config.schema import Config
from erase.data.bank import Bank
from erase.data.plan import Needs, Plan
from erase.data.words.irrelevant import Words
from erase.data.words.templates import phrase
from erase.data.words.word_tokens import marks
from erase.methods.base import Method
from erase.methods.parts import closed_form
from erase.methods.parts.closed_form import Ridge
from erase.methods.parts.layer_inputs import kernels, text_inputs
from erase.methods.settings.uce import FIELDS, Settings, kept_prompts
from flux_jax.lora import Adapter, unscaled
from flux_jax.pipeline import Pipeline
from flux_jax.tree import nest


def erased(config: Config) -> list[tuple[str, str]]:
    """Return prompts with the concept, each with the word that names it there."""
    settings = config.method_settings(Settings)
    words = (config.concept, *(config.synonyms if settings.synonyms else ()))
    return [(phrase(template, word), word) for template in settings.templates for word in words]


def guides(config: Config) -> list[tuple[str, str]]:
    """Return the guide of each prompt of `erased`, with its word."""
    settings = config.method_settings(Settings)
    count = len(erased(config)) // len(settings.templates)
    pairs = [
        (phrase(t, settings.guide) if settings.guide else "", settings.guide)
        for t in settings.templates
    ]
    return [pair for pair in pairs for _ in range(count)]


def last_tokens(pipe: Pipeline, pairs: list[tuple[str, str]]) -> Int[np.ndarray, "B 1"]:
    """Return the position of the last token of each prompt's word, or of a wordless prompt."""
    prompts, words = zip(*pairs, strict=True)
    _, ids = pipe.tokenize(prompts)
    # The last token is the end of text; an empty prompt has no other.
    ends = (ids != pipe.tokenizer_2.pad_token_id).sum(axis=1) - 1
    of_phrase = np.zeros_like(ids)
    if named := [row for row, word in enumerate(words) if word]:
        of_phrase[named] = marks(
            pipe.tokenizer_2, [prompts[row] for row in named], [words[row] for row in named]
        )
    present = of_phrase.any(axis=1)
    last = of_phrase.shape[1] - 1 - np.argmax(of_phrase[:, ::-1], axis=1)
    return np.where(present, last, np.maximum(ends - 1, 0))[:, None].astype(np.int32)


def exports(
    config: Config, pipe: Pipeline, planned: Plan, bank: Bank | None, adapter: Adapter
) -> Adapter:
    """Return the closed-form change of every target.

    Raises:
        InputError: the input of a target is not text tokens, or its system is singular.
    """
    del planned, bank, adapter
    settings, targets = config.method_settings(Settings), config.adapter.targets
    ridge = Ridge(settings.ridge, name="uce.ridge")
    groups = (erased(config), guides(config), kept_prompts(config))
    pairs = [pair for group in groups for pair in group]
    prompts = [prompt for prompt, _ in pairs]
    seen = text_inputs(pipe, config, targets, prompts, last_tokens(pipe, pairs))
    ends = np.cumsum([len(group) for group in groups])[:-1]
    flat = {}
    for target in targets:
        factors = []
        weights = kernels(pipe, target)
        for kernel, vectors in zip(weights, seen[target][:, :, 0], strict=True):
            c, g, k = np.split(vectors, ends)
            factors.append(closed_form.edit(kernel, c, g, k, ridge, preserve=settings.preserve))
        flat |= closed_form.leaves(target, factors)
    return unscaled(nest(flat))


def needs(config: Config, words: Words, pipe: Pipeline | None) -> Needs:
    """Request only encoded prompts; nothing is sampled from the bank."""
    del words, pipe
    groups = (erased(config), guides(config), kept_prompts(config))
    return Needs(also=tuple(prompt for group in groups for prompt, _ in group))


METHOD = Method(
    title="UCE",
    fields=FIELDS,
    needs=needs,
    steps=lambda config: {},
    compiled=lambda config: None,
    weights=lambda config: {},
    exports=exports,
)
