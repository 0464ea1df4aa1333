"""What training draws from: encoded prompts, denoising trajectories, pictures to hold on to.

All of it is made once by the frozen model; afterwards the text encoders are no longer needed.
Axis letters: M sentences, V forms of a sentence (with the concept, with each synonym, with each
irrelevant word), T text tokens, E text width, P pooled width, R trajectories, D denoising steps,
F pictures, A anchors, S image tokens, C latent channels, B batch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from convert.errors import InputError
from erase import folder
from erase.config import Config
from erase.prompts import Group, as_template, draw_groups, leave_out, phrase
from erase.tokens import concept_masks
from erase.trajectories import denoised
from flux_jax.lora import init
from flux_jax.pipeline import Pipeline, batches
from flux_jax.programs import Conditioning
from flux_jax.transformer import FluxTransformer
from flux_jax.weights import abstract_params

CONCEPT, SYNONYM, POOL, FILLER = 0, 1, 2, -1


@flax.struct.dataclass
class Bank:
    """Arrays that the jitted updates index; they are made, and stacked, on the host.

    Attributes:
        sentences: sentences in all their forms, text [M, V, T, E] and pooled [M, V, P].
        masks: the tokens of the concept, or of the word in its place.
        kinds: of each form: `CONCEPT`, `SYNONYM`, the first pool of irrelevant words (`POOL`), the
            next pools, or `FILLER`.
        anchors: for each sentence what L_esd leads away from the concept to: the empty prompt, or
            the sentence with a stand-in; then, if there is one, a prompt to lead towards.
        eta: how far L_esd leads past them.
        trajectories: latents of the frozen model's denoising: before each step, then the picture.
        trajectory_sentences: the sentence that each trajectory draws.
        pictures: latents of pictures to hold on to, I_f; None if there are none.
        picture_prompts: what each of them shows, text [F, T, E] and pooled [F, P].
        edit: an adapter's tree, its scale folded in, that is part of the adapted model and stays as
            it is; None if there is none.
        regions: ones at the image tokens where a trajectory's picture shows the concept; None where
            nobody asks.
        times: the timestep t of each denoising step, falling from 1.
        image_ids: positions of the image tokens.
    """

    sentences: Conditioning
    masks: Float[Array, "M V T"]
    kinds: Int[Array, "V"]
    anchors: Conditioning
    eta: Float[Array, ""]
    trajectories: Float[Array, "R D+1 S C"]
    trajectory_sentences: Int[Array, "R"]
    pictures: Float[Array, "F S C"]
    picture_prompts: Conditioning
    times: Float[Array, "D"]
    image_ids: Float[Array, "S 3"]
    edit: PyTree = None
    regions: Float[Array, "R S"] | None = None


@dataclass(frozen=True)
class Needs:
    """What a method wants in its bank, besides the concept's sentences and their trajectories.

    Attributes:
        pools: words that take the concept's place in further forms of its sentences: synonyms, then
            pools of others.
        bare: whether those forms are the words alone.
        drawn: the form that trajectories draw; 0 has the concept.
        stand_in: word that takes the concept's place in anchors, "" leaves the place out; None has
            the empty prompt as anchor.
        towards: a prompt that becomes a further anchor.
        eta: how far L_esd leads past its anchors.
        shown: prompts of pictures to hold on to, one a picture; of none if there are none.
        folder: pictures with captions instead.
        also: prompts that are encoded besides.
        edit_rank: of an edit that the method adds to the bank; 0 if it adds none.
        regions: whether it adds regions.
    """

    pools: tuple[tuple[str, ...], ...] = ()
    bare: bool = False
    drawn: int = 0
    stand_in: str | None = None
    towards: str = ""
    eta: float = 1.0
    shown: tuple[str, ...] = ()
    folder: str | None = None
    also: tuple[str, ...] = ()
    edit_rank: int = 0
    regions: bool = False

    @property
    def forms(self) -> int:
        """V: a sentence with the concept, and with every other word."""
        return 1 + sum(map(len, self.pools))


@dataclass(frozen=True)
class Plan:
    """Everything that a bank is made of, before anything is computed.

    Attributes:
        groups: the sentences.
        masks: [M, V, T].
        kinds: of the forms, see `Bank`.
        drawn: the form that trajectories draw.
        eta: see `Bank`.
        anchors: prompts, for each sentence.
        shown: prompts, one a picture.
        also: prompts that the method asks for itself.
        pictures: the user's own, or None where the frozen model draws them.
        trajectory_seeds: of the noise, one a trajectory.
        picture_seeds: one a picture.
    """

    groups: tuple[Group, ...]
    masks: Float[np.ndarray, "M V T"]
    kinds: tuple[int, ...]
    drawn: int
    eta: float
    anchors: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...]
    also: tuple[str, ...]
    pictures: UInt8[np.ndarray, "F h w 3"] | None
    trajectory_seeds: tuple[int, ...]
    picture_seeds: tuple[int, ...]

    @property
    def prompts(self) -> list[str]:
        """Everything that is encoded: sentences form by form, anchors, pictures', all others."""
        forms = [prompt for group in self.groups for prompt in group.prompts]
        return [*forms, *itertools.chain.from_iterable(self.anchors), *self.shown, *self.also]


def plan(config: Config, pipe: Pipeline, needs: Needs) -> Plan:
    """Draws sentences and seeds and finds the concept's tokens; cheap, and complete in its checks.

    Args:
        config: the run's configuration.
        pipe: the frozen model.
        needs: what the run's method wants.

    Raises:
        InputError: a concept is not in its prompt, a prompt is over the token limit, or the
            picture's size does not fit the model.
    """
    pipe.grid(config.height, config.width)
    rng = np.random.default_rng(config.seed)
    words = [(word, kind) for kind, pool in enumerate(needs.pools, SYNONYM) for word in pool]
    stand_in = [] if needs.stand_in is None else [needs.stand_in]
    groups = draw_groups(
        rng,
        config.prompts,
        config.concept,
        [*(word for word, _ in words), *stand_in],
        count=config.bank.sentences,
        shuffled=config.bank.shuffled,
    )
    origins = [group.prompts[-1] if stand_in else "" for group in groups]
    groups = [group.first(1 + len(words)) for group in groups]
    masks = [_masks(pipe, group, needs.bare) for group in groups]
    if needs.bare:
        groups = [replace(g, prompts=(g.prompts[0], *g.words[1:])) for g in groups]
    pictures, shown = None, needs.shown
    if needs.folder:
        pictures, shown = folder.read(Path(needs.folder), config.height, config.width)
    further = (needs.towards,) if needs.towards else ()
    forms = [prompt for group in groups for prompt in group.prompts]
    pipe.tokenize([*needs.also, *origins, *further, *shown, *forms])
    seeds = rng.integers(2**31, size=config.bank.trajectories + len(shown)).tolist()
    return Plan(
        groups=tuple(groups),
        masks=np.stack(masks),
        kinds=(CONCEPT, *(kind for _, kind in words)),
        drawn=needs.drawn,
        eta=needs.eta,
        anchors=tuple((origin, *further) for origin in origins),
        shown=shown,
        also=needs.also,
        pictures=pictures,
        trajectory_seeds=tuple(seeds[: config.bank.trajectories]),
        picture_seeds=tuple(seeds[config.bank.trajectories :]),
    )


def _masks(pipe: Pipeline, group: Group, bare: bool) -> Float[np.ndarray, "V T"]:
    """The tokens of each form's word; the authors' code looks for all where the concept stood."""
    if not bare:
        return concept_masks(pipe.tokenizer_2, group.prompts, group.words)
    concept = concept_masks(pipe.tokenizer_2, group.prompts[:1], group.words[0])
    return np.repeat(concept, len(group.words), axis=0)


def kept_prompts(
    config: Config, prompts: Sequence[str], count: int, without_concept: bool = False
) -> tuple[str, ...]:
    """Prompts of pictures that the frozen model draws, to be held on to.

    Args:
        config: the run's configuration.
        prompts: what they show, in turn; with none the first sentence, with the concept.
        count: of the pictures.
        without_concept: whether its words are left out.
    """
    templates = prompts or (as_template(config.prompts[0], config.concept),)
    if without_concept:
        templates = [
            leave_out(as_template(t, config.concept), config.part_of_speech) for t in templates
        ]
    shown = [phrase(template, config.concept) for template in templates]
    return tuple(shown[i % len(shown)] for i in range(count))


def make(config: Config, pipe: Pipeline, planned: Plan) -> Bank:
    """Runs the frozen model, in batches of one size, with progress bars.

    Args:
        config: the run's configuration.
        pipe: the frozen model; what it does not remember of the plan's prompts it encodes.
        planned: what `plan` drew.

    Returns:
        The bank, on the host.
    """
    pipe.remember(planned.prompts, config.bank.batch)

    def recall(prompts: Sequence[Sequence[str]]) -> Conditioning:
        rows = [pipe.recall(row) for row in prompts]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    sentences = recall([group.prompts for group in planned.groups])
    anchors, picture_prompts = recall(planned.anchors), None
    rows = np.arange(config.bank.trajectories) % config.bank.sentences
    prompts, seeds = sentences[rows, planned.drawn], planned.trajectory_seeds
    if planned.shown:
        picture_prompts = pipe.recall(planned.shown)
    if drawn := picture_prompts is not None and planned.pictures is None:
        prompts = jax.tree.map(lambda *both: np.concatenate(both), prompts, picture_prompts)
        seeds += planned.picture_seeds
    runs = denoised(config, pipe, prompts, seeds)
    pictures = runs[len(rows) :, -1] if drawn else None
    if planned.pictures is not None:
        pictures = np.concatenate(
            [
                np.asarray(pipe.encode_pictures(planned.pictures[batch]), pipe.transformer.dtype)
                for batch in batches(len(planned.pictures), config.bank.batch, "encoding pictures")
            ]
        )[: len(planned.pictures)]
    image_ids = pipe.image_ids(config.height, config.width)
    # NumPy's arrays stand where the devices' will.
    made: dict[str, Any] = {
        "sentences": sentences,
        "masks": planned.masks,
        "kinds": np.asarray(planned.kinds, np.int32),
        "anchors": anchors,
        "eta": np.float32(planned.eta),
        "trajectories": runs[: len(rows)],
        "trajectory_sentences": rows.astype(np.int32),
        "pictures": pictures,
        "picture_prompts": picture_prompts,
        "times": np.asarray(pipe.schedule.sigmas(config.steps, len(image_ids))[:-1], np.float32),
        "image_ids": np.asarray(image_ids),
    }
    return Bank(**made)


def shapes(
    config: Config,
    transformer: FluxTransformer,
    image_tokens: int,
    text_tokens: int,
    needs: Needs,
) -> Bank:
    """Shapes and types of the bank of one run, as `jax.ShapeDtypeStruct`; needs no memory.

    Args:
        config: the run's configuration.
        transformer: the frozen model.
        image_tokens: S.
        text_tokens: T.
        needs: what the run's method wants.
    """
    forms, shown = needs.forms, len(needs.shown)
    sizes, dtype, count = transformer.config, transformer.dtype, config.bank
    # Shapes stand where arrays will.
    of: Any = jax.ShapeDtypeStruct
    nothing: Any = None

    def conditioning(*lead: int) -> Conditioning:
        return Conditioning(
            of((*lead, text_tokens, sizes.joint_attention_dim), dtype),
            of((*lead, sizes.pooled_projection_dim), dtype),
        )  # pyright: ignore[reportCallIssue]

    def latents(*lead: int) -> Array:
        return of((*lead, image_tokens, sizes.in_channels), dtype)

    edit: Any = None
    if needs.edit_rank:
        params, targets = abstract_params("transformer", asdict(sizes)), config.adapter.targets
        edit = jax.eval_shape(lambda: init(jax.random.key(0), params, targets, needs.edit_rank))
    return Bank(
        sentences=conditioning(count.sentences, forms),
        masks=of((count.sentences, forms, text_tokens), jnp.float32),
        kinds=of((forms,), jnp.int32),
        anchors=conditioning(count.sentences, 2 if needs.towards else 1),
        eta=of((), jnp.float32),
        trajectories=latents(count.trajectories, config.steps + 1),
        trajectory_sentences=of((count.trajectories,), jnp.int32),
        pictures=latents(shown) if shown else nothing,
        picture_prompts=conditioning(shown) if shown else nothing,
        times=of((config.steps,), jnp.float32),
        image_ids=of((image_tokens, 3), jnp.float32),
        edit=edit,
        regions=of((count.trajectories, image_tokens), jnp.float32) if needs.regions else None,
    )  # pyright: ignore[reportCallIssue]


def stack(banks: Sequence[Bank]) -> Bank:
    """One bank for runs that train at once: every leaf gets a leading axis, but what they share.

    `times` and `image_ids` are the same for all. Runs with fewer forms get fillers, which are
    never drawn, and runs with fewer anchors their last one again.

    Raises:
        InputError: runs hold on to different numbers of pictures.
    """
    counts = {0 if bank.pictures is None else len(bank.pictures) for bank in banks}
    if len(counts) > 1:
        raise InputError(
            f"upper.folder: runs that train at once need equally many pictures, not {counts}"
        )
    forms = max(bank.masks.shape[1] for bank in banks)
    anchors = max(bank.anchors.text.shape[1] for bank in banks)

    def filled(bank: Bank) -> Bank:
        rows = np.minimum(np.arange(forms), bank.masks.shape[1] - 1)
        missing = forms - len(bank.kinds)
        return bank.replace(  # pyright: ignore[reportAttributeAccessIssue]
            sentences=bank.sentences[:, rows],
            masks=bank.masks[:, rows],
            kinds=np.pad(bank.kinds, (0, missing), constant_values=FILLER),
            anchors=bank.anchors[:, np.minimum(np.arange(anchors), bank.anchors.text.shape[1] - 1)],
        )

    together = jax.tree.map(lambda *leaves: np.stack(leaves), *map(filled, banks))
    return together.replace(times=banks[0].times, image_ids=banks[0].image_ids)
