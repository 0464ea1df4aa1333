"""What training draws from: encoded prompts, denoising trajectories, pictures to hold on to.

All of it is made once by the frozen model; afterwards the text encoders are no longer needed.
Axis letters: M sentences, V forms of a sentence (concept, synonym, K irrelevant words), T text
tokens, E text width, P pooled width, R trajectories, D denoising steps, F pictures, A anchors,
S image tokens, C latent channels, B batch.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from tqdm import tqdm

from erase.config import Config
from erase.prompts import Group, as_template, draw_groups, phrase
from erase.tokens import concept_masks
from flux_jax.pipeline import Conditioning, Pipeline, apply_transformer
from flux_jax.sampling import denoise
from flux_jax.transformer import FluxTransformer


@flax.struct.dataclass
class Bank:
    """Arrays that the jitted updates index.

    Attributes:
        sentences: sentences in all their forms, text [M, V, T, E] and pooled [M, V, P].
        masks: the tokens of the concept, or of the word in its place.
        anchors: the empty prompt and, if the configuration names another one, `erase_to`.
        trajectories: latents of the frozen model's denoising, before each step.
        trajectory_sentences: the sentence that each trajectory draws.
        pictures: latents of I_f.
        picture_prompts: what each of them shows, text [F, T, E] and pooled [F, P].
        times: the timestep t of each denoising step, falling from 1.
        image_ids: positions of the image tokens.
    """

    sentences: Conditioning
    masks: Float[Array, "M V T"]
    anchors: Conditioning
    trajectories: Float[Array, "R D S C"]
    trajectory_sentences: Int[Array, "R"]
    pictures: Float[Array, "F S C"]
    picture_prompts: Conditioning
    times: Float[Array, "D"]
    image_ids: Float[Array, "S 3"]


@dataclass(frozen=True)
class Plan:
    """Everything that a bank is made of, before anything is computed.

    Attributes:
        groups: the sentences.
        masks: [M, V, T].
        anchors: prompts.
        pictures: prompts, one a picture.
        trajectory_seeds: of the noise, one a trajectory.
        picture_seeds: one a picture.
    """

    groups: tuple[Group, ...]
    masks: Float[np.ndarray, "M V T"]
    anchors: tuple[str, ...]
    pictures: tuple[str, ...]
    trajectory_seeds: tuple[int, ...]
    picture_seeds: tuple[int, ...]


def plan(config: Config, pipe: Pipeline, irrelevant: Sequence[Sequence[str]]) -> Plan:
    """Draws sentences and seeds and finds the concept's tokens; cheap, and complete in its checks.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        irrelevant: pools of words for other things.

    Raises:
        InputError: a concept is not in its prompt, a prompt is over the token limit, or the
            picture's size does not fit the model.
    """
    pipe.grid(config.height, config.width)
    rng = np.random.default_rng(config.seed)
    groups = draw_groups(
        rng,
        config.prompts,
        config.concept,
        config.synonyms if config.upper.rsc else (),
        irrelevant,
        count=config.bank.sentences,
        negatives=config.upper.negatives,
        shuffled=config.bank.shuffled,
    )
    masks = [concept_masks(pipe.tokenizer_2, group.prompts, group.words) for group in groups]
    full = phrase(as_template(config.prompts[0], config.concept), config.concept)
    shown = config.upper.prompts or (full,)
    anchors = ("", config.lower.erase_to) if config.lower.erase_to else ("",)
    pictures = tuple(shown[i % len(shown)] for i in range(config.upper.pictures))
    pipe.tokenize([*anchors, *pictures])
    seeds = rng.integers(2**31, size=config.bank.trajectories + config.upper.pictures).tolist()
    return Plan(
        groups=tuple(groups),
        masks=np.stack(masks),
        anchors=anchors,
        pictures=pictures,
        trajectory_seeds=tuple(seeds[: config.bank.trajectories]),
        picture_seeds=tuple(seeds[config.bank.trajectories :]),
    )


def make(config: Config, pipe: Pipeline, planned: Plan) -> Bank:
    """Encodes the prompts and runs the frozen model, in batches of one size, with progress bars.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        planned: what `plan` drew.
    """
    forms = [prompt for group in planned.groups for prompt in group.prompts]
    encoded = _encode(pipe, [*forms, *planned.anchors, *planned.pictures], config.bank.batch)
    ends = np.cumsum([len(forms), len(planned.anchors)])
    of_forms, anchors, picture_prompts = (
        encoded[rows] for rows in np.split(np.arange(len(encoded.text)), ends)
    )
    shape = planned.masks.shape[:2]
    sentences = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), of_forms)

    rows = np.arange(config.bank.trajectories) % config.bank.sentences
    both = jax.tree.map(
        lambda forms, prompts: jnp.concatenate([forms[rows, 0], prompts]),
        sentences,
        picture_prompts,
    )
    runs = _denoise(config, pipe, both, (*planned.trajectory_seeds, *planned.picture_seeds))
    image_ids = pipe.image_ids(config.height, config.width)
    return Bank(
        sentences=sentences,
        masks=jnp.asarray(planned.masks),
        anchors=anchors,
        trajectories=jnp.asarray(runs[: len(rows), :-1]),
        trajectory_sentences=jnp.asarray(rows),
        pictures=jnp.asarray(runs[len(rows) :, -1]),
        picture_prompts=picture_prompts,
        times=jnp.asarray(pipe.schedule.sigmas(config.steps, len(image_ids))[:-1]),
        image_ids=image_ids,
    )  # pyright: ignore[reportCallIssue]


def _batches(count: int, size: int, title: str) -> Iterator[np.ndarray]:
    """Row numbers in batches of one size, the last filled up, so that nothing compiles twice."""
    with tqdm(total=count, desc=title) as bar:
        for start in range(0, count, size):
            yield np.minimum(np.arange(start, start + size), count - 1)
            bar.update(min(size, count - start))


def _encode(pipe: Pipeline, prompts: Sequence[str], batch: int) -> Conditioning:
    """Encodes every prompt once, however often it occurs."""
    unique = list(dict.fromkeys(prompts))
    parts = [
        pipe.encode([unique[i] for i in rows])
        for rows in _batches(len(unique), batch, "encoding prompts")
    ]
    places = np.array([unique.index(prompt) for prompt in prompts])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[places], *parts)


def _denoise(
    config: Config, pipe: Pipeline, conditioning: Conditioning, seeds: Sequence[int]
) -> Float[np.ndarray, "B D+1 S C"]:
    """Trajectories of the frozen model, kept on the host until all are there."""
    image_ids = pipe.image_ids(config.height, config.width)
    sigmas = jnp.asarray(pipe.schedule.sigmas(config.steps, len(image_ids)))
    parts = []
    for rows in _batches(len(seeds), config.bank.batch, "denoising"):
        noise = pipe.noise([seeds[i] for i in rows], config.height, config.width)
        run = _trajectories(
            pipe.transformer,
            pipe.params["transformer"],
            noise,
            conditioning[rows],
            image_ids,
            config.guidance,
            sigmas,
        )
        parts.append(np.asarray(run))
    return np.concatenate(parts)[: len(seeds)]


@functools.partial(jax.jit, static_argnames="transformer")
def _trajectories(
    transformer: FluxTransformer,
    params: PyTree,
    noise: Float[Array, "B S C"],
    conditioning: Conditioning,
    image_ids: Float[Array, "S 3"],
    guidance: Array,
    sigmas: Float[Array, "D+1"],
) -> Float[Array, "B D+1 S C"]:
    def velocity(latents: Array, time: Array) -> Array:
        times = jnp.broadcast_to(time, latents.shape[:1])
        predicted, _ = apply_transformer(
            transformer, params, None, latents, conditioning, times, image_ids, guidance
        )
        assert predicted is not None
        return predicted

    run = denoise(velocity, noise, sigmas, keep_trajectory=True)
    return run.swapaxes(0, 1).astype(transformer.dtype)
