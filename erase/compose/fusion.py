"""Merge adapters by least squares.

The merged adapter matches each adapter on its own concept's prompts, and changes nothing on others.
For a layer with the changes D_i [I, O] of N adapters, fusion finds the change D of rank R that
minimises

    Σ_i w_i E_i ‖h (D - D_i)‖²  +  λ E_p ‖h D‖²  +  ε ‖D‖²

where h are the layer's inputs at all denoising steps. E_i is the mean over tokens of prompts with
concept i, sampled with adapter i; E_p is the mean over tokens of prompts to preserve, sampled with
the frozen model. Each concept has equal weight, however large its change: w_i is 1 / E_i ‖h D_i‖²,
over all layers, normalised to sum to one. The concept's tokens weigh more than the words around
them, which many concepts share and for which only the mean of their changes can be matched, and
words weigh more than padding (`OTHER`, `PADDING`).
With Gram matrices G = E[h^T h] and M = Σ w_i G_i + λ G_p + ε, D = M^-1 Σ w_i G_i D_i. The best
change of rank R for this objective comes from the singular vectors of C^-1 Σ w_i G_i D_i, where
C C^T = M (reduced-rank regression).

The merged change falls short of the adapters', most of all with many concepts; a strength above 1
compensates.
Memory does not depend on N, since only sums over concepts are stored. Time is linear in the number
of prompts.
Axis letters: B prompts, L blocks, N tokens, I inputs, O outputs, R rank, T text tokens, S image
tokens, C latent channels, K noise levels.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.module import Interceptor, InterceptorContext, NextGetter
from jaxtyping import Array, Float, PyTree

from convert.adapters.names import TEXT_HALVES
from erase.config.schema import Config
from erase.data.words.templates import SLOT, as_template, phrase
from erase.data.words.word_tokens import concept_masks
from erase.methods import erase_anything
from erase.methods.parts.layer_inputs import SEEN, mean_over_steps
from erase.methods.parts.least_squares import Moments, energy
from erase.model.open import open_model
from erase.runs import load_config
from flux_jax import lora, progress, sharding
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.system.json_files import parse_json
from flux_jax.tree import nest

# Layers of dual-stream blocks that process the text.
TEXT_LAYERS = re.compile("add_|context")
# Weights of tokens: words other than the concept's, and padding.
OTHER, PADDING = 0.1, 0.01

T = TypeVar("T")
Grams = dict[str, Float[np.ndarray, "L I I"]]


@dataclass(frozen=True)
class Prompts:
    """Prompts for the model.

    Attributes:
        config: configuration of the first run, with the model and the pictures' size.
        erased: for each adapter, the same number of pairs of a sentence and the word in it for its
            concept.
        preserved: sentences without any of the concepts.
    """

    config: Config
    erased: tuple[tuple[tuple[str, str], ...], ...]
    preserved: tuple[str, ...]


def prompts(
    headers: Mapping[str, Mapping[str, str]], count: int, seed: int, keep: Sequence[str] = ()
) -> Prompts:
    """Sample sentences from the training settings in the adapters' files.

    A concept's sentences do not mention other concepts, if it has such sentences. By default the
    preserved sentences are the prompts of L_lora's pictures, the sentences with irrelevant words
    in place of the concepts, and the empty prompt, except those that mention a concept.

    Args:
        headers: metadata by file.
        count: number of sentences per adapter.
        seed: seed of the choice.
        keep: sentences to preserve, instead of the default.

    Raises:
        InputError: a file has no training settings, the count is below 1, or a sentence to preserve
            mentions a concept.
    """
    if count < 1:
        raise InputError(f"prompts = {count} must be at least 1")
    configs = [settings(file, header) for file, header in headers.items()]
    rng = np.random.default_rng(seed)
    named = [[config.concept, *config.synonyms] for config in configs]
    concepts = re.compile(
        "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in itertools.chain(*named)),
        re.IGNORECASE,
    )
    erased, known = [], [""]
    for config, words in zip(configs, named, strict=True):
        templates = [as_template(prompt, config.concept) for prompt in config.prompts]
        alone = [t for t in templates if not concepts.search(t.replace(SLOT, " "))]
        pairs = [(phrase(t, w), w) for t in alone or templates for w in words]
        erased.append(_sample(rng, pairs, count))
        known += [phrase(t, w) for t in templates for w in config.irrelevant]
        upper = config.method_settings(erase_anything.Settings).upper
        known += [] if upper.without_concept else upper.prompts
    if naming := [prompt for prompt in keep if concepts.search(prompt)]:
        raise InputError(
            f"keep: {', '.join(map(repr, naming))} mention a concept to erase; leave them out"
        )
    free = [p for p in dict.fromkeys(keep or known) if not concepts.search(p)]
    # Rounded up to a multiple of `count`, since `count` alone would drop most of them.
    preserved = _sample(rng, free, count * math.ceil(len(free) / count))
    return Prompts(configs[0], tuple(erased), preserved)


def settings(file: str, header: Mapping[str, str]) -> Config:
    """Read the configuration that an adapter was trained with from its file's header.

    Raises:
        InputError: the header has no settings, or they cannot be used.
    """
    try:
        return load_config(parse_json(header["settings"]))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{file}: its header lacks the settings of its training ({error}), which fusion needs: "
            "train it again with erase.train"
        ) from error


def _sample(rng: np.random.Generator, sentences: Sequence[T], count: int) -> tuple[T, ...]:
    """Sample `count` sentences in random order, repeating the order if there are fewer."""
    order: list[int] = rng.permutation(len(sentences)).tolist()
    return tuple(sentences[index] for index in itertools.islice(itertools.cycle(order), count))


def fuse(
    changes: Sequence[Mapping[str, np.ndarray]],
    shown: Prompts,
    rank: int,
    preserve: float,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Merge changes by running the model on all prompts: `gather`, then `solve`.

    Args:
        changes: for each adapter, A [L, I, R] and B [L, R, O] by their paths; the change is A B.
            Targets and L may differ.
        shown: prompts.
        rank: rank of the result.
        preserve: λ.
        seed: seed of the noise.

    Returns:
        The leaves A and B, and for each target the losses from `Moments.losses`.

    Raises:
        InputError: an adapter does not fit the model, or the rank or λ cannot be used.
    """
    for change in changes:
        check(change, rank, preserve)
    return solve(gather(open_model(shown.config), changes, shown, seed), rank, preserve)


def check(change: Mapping[str, np.ndarray], rank: int, preserve: float) -> None:
    """Check the rank and λ for a change.

    Raises:
        InputError: λ is negative or not finite, the rank is below 1 or above a layer's maximum, or
            a layer is outside the blocks.
    """
    if not (preserve >= 0 and math.isfinite(preserve)):
        raise InputError(f"preserve = {preserve} must be a number of at least 0")
    if outside := sorted({p.rpartition("/")[0] for p, leaf in change.items() if leaf.ndim < 3}):
        raise InputError(
            f"fusion supports only layers of blocks, and {', '.join(outside)} are outside them; "
            "compose by sum or svd"
        )
    if text := sorted(TEXT_HALVES & change.keys()):
        raise InputError(
            f"fusion does not support changes of text tokens only, such as {text[0][:-2]}; compose "
            "by sum or svd"
        )
    for path in change:
        most = min(change[path].shape[1], change[f"{path[:-1]}B"].shape[2])
        if path.endswith("/A") and not 1 <= rank <= most:
            raise InputError(f"rank = {rank} must be from 1 to {most} for {path[:-2]}")


def gather(
    pipe: Pipeline, changes: Sequence[Mapping[str, np.ndarray]], shown: Prompts, seed: int
) -> dict[str, Moments]:
    """Compute the moments of every target's inputs by running the model on all prompts.

    Args:
        pipe: the frozen model.
        changes: changes of each adapter, see `fuse`.
        shown: prompts.
        seed: seed of the noise.

    Raises:
        InputError: an adapter does not fit the model.
    """
    changes = completed(changes, pipe.shapes)
    everything = [*(s for pairs in shown.erased for s, _ in pairs), *shown.preserved]
    pipe.remember(everything, shown.config.bank.batch)
    pipe.release("text_encoder", "text_encoder_2")
    targets = tuple(sorted({path.rpartition("/")[0] for path in changes[0]}))
    moments = {target: Moments.zeros(changes[0], target) for target in targets}
    walk = functools.partial(grams, pipe, shown.config, targets, seed=seed)
    count = len(shown.erased[0])
    for change, pairs in progress.bar(
        zip(changes, shown.erased, strict=True), total=len(changes), desc="concepts"
    ):
        sentences, words = zip(*pairs, strict=True)
        masks = concept_masks(pipe.tokenizer_2, sentences, words)
        seen = walk(change, sentences, masks + (1 - masks) * _weights(pipe, sentences, OTHER))
        leaves = {t: (seen[t], change[f"{t}/A"], change[f"{t}/B"]) for t in targets}
        asked = sum(energy(*each) for each in leaves.values())
        if not asked:
            raise InputError(f"the adapter of {words[0]!r} changes nothing; leave it out")
        for target in targets:
            moments[target].add(*leaves[target], 1 / asked)
    still = {path: np.zeros_like(leaf) for path, leaf in changes[0].items()}
    for batch in progress.bar(list(_chunks(shown.preserved, count)), desc="preserved"):
        seen = walk(still, batch, _weights(pipe, batch, 1.0))
        for target in targets:
            moments[target].preserve(seen[target])
    return moments


def completed(
    changes: Sequence[Mapping[str, np.ndarray]], shapes: PyTree
) -> list[dict[str, np.ndarray]]:
    """Pad changes with zeros, so that all have the same targets in all of the model's blocks.

    Args:
        changes: changes of each adapter, see `fuse`.
        shapes: shapes of the transformer's parameters.

    Raises:
        InputError: an adapter does not fit the model.
    """
    for change in changes:
        lora.check(nest(change), shapes)
    known = lora.kernels(shapes)
    targets = sorted({path.rpartition("/")[0] for change in changes for path in change})
    out = []
    for change in changes:
        leaves = {}
        for target in targets:
            depth, inputs, outputs = known[target].shape
            for path, shape in ((f"{target}/A", (inputs, 1)), (f"{target}/B", (1, outputs))):
                leaf = change.get(path, np.zeros((0, *shape)))
                leaves[path] = np.pad(leaf, [(0, depth - len(leaf)), (0, 0), (0, 0)])
        out.append(leaves)
    return out


def solve(
    moments: Mapping[str, Moments], rank: int, preserve: float
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Solve for the change of each target, and compute its losses; see `fuse`."""
    flat, losses = {}, {}
    for target, seen in progress.bar(moments.items(), desc="solving"):
        a, b = seen.solve(rank, preserve)
        flat |= {f"{target}/A": a, f"{target}/B": b}
        losses[target] = seen.losses(a, b)
    return flat, losses


def _weights(pipe: Pipeline, sentences: Sequence[str], word: float) -> Float[np.ndarray, "B T"]:
    """Weights of tokens: `word` for words, `PADDING` for padding."""
    _, ids = pipe.tokenize(sentences)
    return np.where(ids == pipe.tokenizer_2.pad_token_id, PADDING, word).astype(np.float32)


def _chunks(sentences: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    yield from (sentences[start : start + size] for start in range(0, len(sentences), size))


def grams(
    pipe: Pipeline,
    config: Config,
    targets: tuple[str, ...],
    change: Mapping[str, np.ndarray],
    sentences: Sequence[str],
    weights: Float[np.ndarray, "B T"],
    *,
    seed: int,
) -> Grams:
    """Mean Gram matrices of layers' inputs while the adapted model generates pictures.

    Args:
        pipe: the frozen model.
        config: configuration with the pictures' size, steps and guidance.
        targets: stacked dense layers.
        change: A and B by their paths.
        sentences: one per picture.
        weights: weights of their tokens in the mean.
        seed: seed of the first picture's noise.
    """
    noise = pipe.noise(range(seed, seed + len(sentences)), config.height, config.width)
    ids = pipe.image_ids(config.height, config.width)
    sigmas = jnp.asarray(pipe.schedule.sigmas(config.steps, len(ids)), jnp.float32)
    tree = nest({path: jnp.asarray(leaf, jnp.float32) for path, leaf in change.items()})
    samples = sharding.share_out(pipe.mesh, (noise, pipe.encode(sentences), weights))
    model = pipe.denoiser(ids, config.guidance).replace(lora=tree)
    with jax.set_mesh(pipe.mesh):
        found = _grams(model, *samples, sigmas, targets=targets)
    return {target: np.asarray(gram, np.float64) for target, gram in found.items()}


@functools.partial(jax.jit, static_argnames="targets")
def _grams(
    model: Denoiser,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    weights: Float[Array, "B T"],
    sigmas: Float[Array, "K"],
    *,
    targets: tuple[str, ...],
) -> dict[str, Float[Array, "L I I"]]:
    return mean_over_steps(model, noise, conditioning, sigmas, _capture_grams(targets, weights))


def _capture_grams(targets: Sequence[str], weights: Float[Array, "B T"]) -> Interceptor:
    """Capture the weighted mean of h^T h over the inputs h of some layers, in float32."""

    def interceptor(
        call: NextGetter, args: tuple[Any, ...], kwargs: dict[str, Any], context: InterceptorContext
    ) -> object:
        layer = context.module
        if context.method_name == "__call__" and "/".join(layer.path) in targets:
            h = args[0].reshape(len(args[0]), -1, args[0].shape[-1])
            w = of_tokens("/".join(layer.path), weights, h.shape[1])
            gram = jnp.einsum(
                "bni,bnj->ij", w[..., None] * h, h, preferred_element_type=jnp.float32
            )
            layer.sow(SEEN, "gram", gram / w.sum())
        return call(*args, **kwargs)

    return interceptor


def of_tokens(target: str, weights: Float[Array, "B T"], tokens: int) -> Float[Array, "B N"]:
    """Weights of a layer's tokens: as given for text tokens, `PADDING` for all others.

    Args:
        target: path of the layer, which determines whether it processes text, image or both.
        weights: weights of the text tokens.
        tokens: N.
    """
    if "norm" in target or (target.startswith("dual_blocks") and not TEXT_LAYERS.search(target)):
        return jnp.full((len(weights), tokens), PADDING)
    if target.startswith("dual_blocks"):
        return weights
    # In single-stream blocks the text tokens come first.
    return jnp.pad(weights, ((0, 0), (0, tokens - weights.shape[1])), constant_values=PADDING)
