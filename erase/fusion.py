"""One change in the place of many: what each adapter does to its own concept, and little else.

For a layer with the changes D_i [I, O] of N adapters, fusion finds the change D of a rank R that
minimises

    1/N Σ_i E_i ‖h (D - D_i)‖²  +  λ E_p ‖h D‖²  +  ε ‖D‖²

where h are the layer's inputs, all tokens at all denoising steps: E_i is their mean on prompts with
concept i, drawn with adapter i; E_p on prompts to preserve, drawn with the frozen model. With Gram
matrices G = E[h^T h] and M = 1/N Σ G_i + λ G_p + ε, D = M^-1 1/N Σ G_i D_i; of all changes of rank
R the one that is closest to it for the objective comes from the singular vectors of C^-1 1/N Σ G_i
D_i, where C C^T = M (reduced-rank regression).

Memory does not depend on N: only Σ G_i and Σ G_i D_i are kept. Time is linear in the prompts.
Axis letters: B prompts, L blocks, I inputs, O outputs, R rank, T text tokens, S image tokens, C
latent channels, P pooled width.
"""

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from scipy.linalg import eigh, solve_triangular
from tqdm import tqdm

from convert.errors import InputError
from convert.mapping import flatten, nest
from erase.config import Config
from erase.model import open_model
from erase.prompts import as_template, phrase
from erase.runs import load_config
from flux_jax import mesh as meshes
from flux_jax.lora import stacked
from flux_jax.pipeline import Pipeline
from flux_jax.programs import Conditioning, apply_transformer
from flux_jax.transformer import FluxTransformer

SEEN = "seen"
# ε in means of M's diagonal: what makes M safe to invert, and moves nothing else.
RIDGE = 1e-6

Grams = dict[str, Float[np.ndarray, "L I I"]]


@dataclass(frozen=True)
class Prompts:
    """What the model is shown.

    Attributes:
        config: of the first run, which says the model and the pictures' size.
        erased: for each adapter equally many sentences with its concept.
        preserved: sentences with none of the concepts.
    """

    config: Config
    erased: tuple[tuple[str, ...], ...]
    preserved: tuple[str, ...]


def prompts(headers: Mapping[str, Mapping[str, str]], count: int, seed: int) -> Prompts:
    """Sentences from the settings that adapters were trained with, as their files tell.

    Preserved are the prompts of L_lora's pictures, the sentences with irrelevant words in the
    concepts' places, and the empty prompt, unless one of the concepts is named there.

    Args:
        headers: metadata by file.
        count: of each adapter's sentences.
        seed: of the choice.

    Raises:
        InputError: a file does not tell its settings, or the count is below 1.
    """
    if count < 1:
        raise InputError(f"prompts = {count} must be at least 1")
    configs = [_settings(file, header) for file, header in headers.items()]
    rng = np.random.default_rng(seed)
    named = [[config.concept, *config.synonyms] for config in configs]
    erased, kept = [], [""]
    for config, words in zip(configs, named, strict=True):
        templates = [as_template(prompt, config.concept) for prompt in config.prompts]
        erased.append(_drawn(rng, [phrase(t, w) for t in templates for w in words], count))
        kept += [phrase(t, w) for t in templates for w in config.irrelevant]
        kept += [] if config.upper.without_concept else config.upper.prompts
    concepts = re.compile(
        "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in itertools.chain(*named)),
        re.IGNORECASE,
    )
    free = [prompt for prompt in dict.fromkeys(kept) if not concepts.search(prompt)]
    # As many of these as of each concept's would leave most of them out.
    preserved = _drawn(rng, free, count * math.ceil(len(free) / count))
    return Prompts(configs[0], tuple(erased), preserved)


def _settings(file: str, header: Mapping[str, str]) -> Config:
    try:
        return load_config(json.loads(header["settings"]))
    except (KeyError, ValueError, InputError) as error:
        raise InputError(
            f"{file}: its header does not tell the settings of its training ({error}); fusion "
            "needs them: train it again with erase.train"
        ) from error


def _drawn(rng: np.random.Generator, sentences: Sequence[str], count: int) -> tuple[str, ...]:
    """So many of the sentences in random order, from the start again if there are fewer."""
    order: list[int] = rng.permutation(len(sentences)).tolist()
    return tuple(sentences[index] for index in itertools.islice(itertools.cycle(order), count))


def fuse(
    changes: Sequence[Mapping[str, np.ndarray]],
    shown: Prompts,
    rank: int,
    preserve: float,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """The one change, by running the model on all prompts: `gather`, then `solve`.

    Args:
        changes: of each adapter, A [L, I, R] and B [L, R, O] by their paths: the change is A B.
        shown: prompts.
        rank: of the result.
        preserve: λ.
        seed: of the noise.

    Returns:
        The leaves A and B, and for each target how much `Moments.losses` says is lost.

    Raises:
        InputError: an adapter does not fit the model, or the rank or λ cannot be used.
    """
    check(changes[0], rank, preserve)
    return solve(gather(open_model(shown.config), changes, shown, seed), rank, preserve)


def check(change: Mapping[str, np.ndarray], rank: int, preserve: float) -> None:
    """Makes sure that `solve` can be asked for a rank and λ.

    Raises:
        InputError: λ is negative or no number, or the rank is below 1 or above what a layer has.
    """
    if not (preserve >= 0 and math.isfinite(preserve)):
        raise InputError(f"preserve = {preserve} must be a number from 0 on")
    for path in change:
        most = min(change[path].shape[1], change[f"{path[:-1]}B"].shape[2])
        if path.endswith("/A") and not 1 <= rank <= most:
            raise InputError(f"rank = {rank} must be from 1 to {most} for {path[:-2]}")


def gather(
    pipe: Pipeline, changes: Sequence[Mapping[str, np.ndarray]], shown: Prompts, seed: int
) -> dict[str, "Moments"]:
    """What the objective needs of every target's inputs, by running the model on all prompts.

    Args:
        pipe: the frozen model.
        changes: of each adapter, see `fuse`.
        shown: prompts.
        seed: of the noise.

    Raises:
        InputError: an adapter does not fit the model.
    """
    everything = [*itertools.chain(*shown.erased), *shown.preserved]
    pipe.remember(everything, shown.config.bank.batch)
    pipe.release("text_encoder", "text_encoder_2")
    targets = tuple(sorted({path.rpartition("/")[0] for path in changes[0]}))
    moments = {target: Moments.zeros(changes[0], target) for target in targets}
    walk = functools.partial(grams, pipe, shown.config, targets, seed=seed)
    count = len(shown.erased[0])
    for change, sentences in tqdm(
        zip(changes, shown.erased, strict=True), total=len(changes), desc="concepts"
    ):
        seen = walk(change, sentences)
        for target in targets:
            moments[target].add(seen[target], change[f"{target}/A"], change[f"{target}/B"])
    still = {path: np.zeros_like(leaf) for path, leaf in changes[0].items()}
    for batch in tqdm(list(_chunks(shown.preserved, count)), desc="preserved"):
        seen = walk(still, batch)
        for target in targets:
            moments[target].preserve(seen[target])
    return moments


def solve(
    moments: Mapping[str, "Moments"], rank: int, preserve: float
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """The change of each target, and what is lost; see `fuse`."""
    flat, losses = {}, {}
    for target, seen in tqdm(moments.items(), desc="solving"):
        a, b = seen.solve(rank, preserve)
        flat |= {f"{target}/A": a, f"{target}/B": b}
        losses[target] = seen.losses(a, b)
    return flat, losses


def _chunks(sentences: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    yield from (sentences[start : start + size] for start in range(0, len(sentences), size))


@dataclass
class Moments:
    """What the objective needs of a target's inputs; sums over adapters, in double precision.

    Attributes:
        erased: Σ G_i.
        wanted: Σ G_i D_i.
        asked: Σ E_i ‖h D_i‖².
        adapters: N.
        preserved: Σ G_p.
        batches: of preserved prompts.
    """

    erased: Float[np.ndarray, "L I I"]
    wanted: Float[np.ndarray, "L I O"]
    preserved: Float[np.ndarray, "L I I"]
    asked: float = 0.0
    adapters: int = 0
    batches: int = 0

    @classmethod
    def zeros(cls, change: Mapping[str, np.ndarray], target: str) -> "Moments":
        """Nothing seen yet, in a target's shapes."""
        blocks, inputs, _ = change[f"{target}/A"].shape
        square = (blocks, inputs, inputs)
        wanted = np.zeros((blocks, inputs, change[f"{target}/B"].shape[-1]))
        return cls(np.zeros(square), wanted, np.zeros(square))

    def add(
        self,
        gram: Float[np.ndarray, "L I I"],
        a: Float[np.ndarray, "L I R"],
        b: Float[np.ndarray, "L R O"],
    ) -> None:
        """An adapter's inputs on its own prompts, and its change A B."""
        wanted = (gram @ a) @ b
        self.erased += gram
        self.wanted += wanted
        self.asked += float(np.sum((a.swapaxes(-1, -2) @ wanted) * b))
        self.adapters += 1

    def preserve(self, gram: Float[np.ndarray, "L I I"]) -> None:
        """Inputs on prompts to preserve."""
        self.preserved += gram
        self.batches += 1

    def solve(
        self, rank: int, preserve: float
    ) -> tuple[Float[np.ndarray, "L I R"], Float[np.ndarray, "L R O"]]:
        """The objective's minimum among changes of a rank, as its A and B."""
        solved = []
        for erased, preserved, wanted in zip(self.erased, self.preserved, self.wanted, strict=True):
            matrix = erased / self.adapters + preserve * preserved / max(1, self.batches)
            matrix[np.diag_indices_from(matrix)] += RIDGE * np.trace(matrix) / len(matrix)
            root = np.linalg.cholesky(matrix)
            inner = solve_triangular(root, wanted / self.adapters, lower=True)
            # The right singular vectors alone, and as few as are asked for: minutes become seconds.
            last = inner.shape[1] - 1
            squares, v = eigh(inner.T @ inner, subset_by_index=[last - rank + 1, last])
            half = np.maximum(squares, np.finfo(np.float64).tiny) ** 0.25
            a = solve_triangular(root.T, inner @ v / half)
            solved.append((a, half[:, None] * v.T))
        a, b = zip(*solved, strict=True)
        return np.stack(a), np.stack(b)

    def losses(
        self, a: Float[np.ndarray, "L I R"], b: Float[np.ndarray, "L R O"]
    ) -> dict[str, float]:
        """How far a change A B is from what was wanted, in shares of Σ E_i ‖h D_i‖².

        Returns:
            `missing`: Σ E_i ‖h (D - D_i)‖²; `spilled`: N E_p ‖h D‖².
        """

        def energy(gram: np.ndarray) -> float:
            return float(np.sum((a.swapaxes(-1, -2) @ gram @ a @ b) * b))

        overlap = float(np.sum((a.swapaxes(-1, -2) @ self.wanted) * b))
        missing = energy(self.erased) - 2 * overlap + self.asked
        spilled = self.adapters * energy(self.preserved) / max(1, self.batches)
        asked = self.asked or 1.0
        return {"missing": missing / asked, "spilled": spilled / asked}


def grams(
    pipe: Pipeline,
    config: Config,
    targets: tuple[str, ...],
    change: Mapping[str, np.ndarray],
    sentences: Sequence[str],
    *,
    seed: int,
) -> Grams:
    """Mean Gram matrices of layers' inputs while the adapted model draws.

    Args:
        pipe: the frozen model.
        config: says the pictures' size, steps and guidance.
        targets: stacked dense layers.
        change: A and B by their paths.
        sentences: one a picture.
        seed: of the first picture's noise.
    """
    noise = pipe.noise(range(seed, seed + len(sentences)), config.height, config.width)
    ids = pipe.image_ids(config.height, config.width)
    sigmas = jnp.asarray(pipe.schedule.sigmas(config.steps, len(ids)), jnp.float32)
    lora = nest({path: jnp.asarray(leaf, jnp.float32) for path, leaf in change.items()})
    samples = meshes.share_out(pipe.mesh, (noise, pipe.encode(sentences)))
    params = pipe.params["transformer"]
    with jax.set_mesh(pipe.mesh):
        found = _grams(
            pipe.transformer, params, lora, *samples, ids, config.guidance, sigmas, targets=targets
        )
    return {target: np.asarray(gram, np.float64) for target, gram in found.items()}


@functools.partial(jax.jit, static_argnames=("transformer", "targets"))
def _grams(
    transformer: FluxTransformer,
    params: PyTree,
    lora: PyTree,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    image_ids: Float[Array, "S 3"],
    guidance: Array,
    sigmas: Float[Array, "steps+1"],
    *,
    targets: tuple[str, ...],
) -> dict[str, Float[Array, "L I I"]]:
    def step(carry: tuple[Array, Any], levels: tuple[Array, Array]) -> tuple[Any, None]:
        (latents, sums), (level, following) = carry, levels
        times = jnp.broadcast_to(level, latents.shape[:1])
        given = (latents, conditioning, times, image_ids, guidance)
        with nn.intercept_methods(_keeping(targets)):
            out: Any = apply_transformer(transformer, params, lora, *given, mutable=[SEEN])
        (velocity, _), seen = out
        kept = flatten(seen[SEEN])
        means = {target: kept[f"{target}/gram"][0] for target in targets}
        sums = {target: sums[target] + means[target] for target in targets}
        return (latents + (following - level) * velocity.astype(jnp.float32), sums), None

    kernels = stacked(params)
    squares = {target: (*kernels[target].shape[:2], kernels[target].shape[1]) for target in targets}
    zeros = {target: jnp.zeros(square) for target, square in squares.items()}
    (_, sums), _ = jax.lax.scan(step, (noise, zeros), (sigmas[:-1], sigmas[1:]))
    return {target: total / (len(sigmas) - 1) for target, total in sums.items()}


def _keeping(targets: Sequence[str]) -> Callable[..., Any]:
    """Keeps the mean of h^T h of the inputs of some layers, in float32."""

    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if context.method_name == "__call__" and "/".join(layer.path) in targets:
            (h,) = args
            gram = jnp.einsum("bti,btj->ij", h, h, preferred_element_type=jnp.float32)
            layer.sow(SEEN, "gram", gram / (h.shape[0] * h.shape[1]))
        return call(*args, **kwargs)

    return interceptor
