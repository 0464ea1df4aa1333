"""Precomputed training data: encoded prompts, denoising trajectories, pictures to preserve.

The frozen model computes it once; afterwards the text encoders are no longer needed.
Axis letters: M sentences, V forms of a sentence (with the concept, with each synonym, with each
irrelevant word), T text tokens, E text width, P pooled width, R trajectories, D denoising steps,
N = D + 1 noise levels, F pictures, A anchors, W = A + 1, S image tokens, C latent channels,
B batch,
K noises, U = V - 1 forms without the concept, E early steps, L blocks, Q tokens.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from erase.config.schema import Config
from erase.data.plan import FILLER, Needs, stores_velocities
from flux_jax.errors import InputError
from flux_jax.lora import init
from flux_jax.models.transformer import FluxTransformer
from flux_jax.programs import Conditioning
from flux_jax.weights.loading import abstract_params


class Bank(flax.struct.PyTreeNode):
    """Arrays that the jitted updates index; computed and stacked on the host.

    Attributes:
        sentences: encoded sentences in all their forms, text [M, V, T, E] and pooled [M, V, P].
        masks: ones at the tokens of the concept, or of the word in its place.
        kinds: kind of each form: `CONCEPT`, `SYNONYM`, the first pool of irrelevant words (`POOL`),
            the next pools, or `FILLER`.
        anchors: for each sentence, the prompts that L_esd leads the concept to: the empty prompt or
            the sentence with a stand-in, and optionally a further prompt to lead towards.
        eta: how far L_esd leads past the anchors.
        trajectories: latents of the frozen model's denoising: before each step, then the picture.
        trajectory_sentences: index of each trajectory's sentence.
        pictures: latents of pictures to preserve, I_f; None if there are none.
        picture_prompts: prompts of these pictures, text [F, T, E] and pooled [F, P].
        edit: tree of an adapter with its scale folded in, a fixed part of the adapted model; None
            if there is none.
        regions: ones at the image tokens where a trajectory's picture shows the concept; None if
            the method does not need them.
        times: timestep t of each denoising step, falling from 1.
        image_ids: positions of the image tokens.
        velocities: the frozen model's velocities before each step of the trajectories, for the
            concept and for each anchor, in this order; not a number where the run samples no point.
            None if updates compute them.
        noises: K noises of each picture to preserve, each for the step of
            `erase.data.velocities.noise_steps`; None if updates sample noise.
        noise_velocities: the frozen model's velocities at the pictures with these noises.
        features: the frozen model's attention features of the words in the concept's place, in
            the first E steps of the trajectories, for L blocks and Q image tokens (and text
            tokens, if the method uses them); None if updates compute them.
    """

    sentences: Conditioning
    masks: Float[Array, "M V T"]
    kinds: Int[Array, "V"]
    anchors: Conditioning
    eta: Float[Array, ""]
    trajectories: Float[Array, "R N S C"]
    trajectory_sentences: Int[Array, "R"]
    pictures: Float[Array, "F S C"]
    picture_prompts: Conditioning
    times: Float[Array, "D"]
    image_ids: Float[Array, "S 3"]
    edit: PyTree = None
    regions: Float[Array, "R S"] | None = None
    velocities: Float[Array, "R D W S C"] | None = None
    noises: Float[Array, "F K S C"] | None = None
    noise_velocities: Float[Array, "F K S C"] | None = None
    features: Float[Array, "R E U L Q"] | None = None


def bank_shapes(
    config: Config,
    transformer: FluxTransformer,
    image_tokens: int,
    text_tokens: int,
    needs: Needs,
) -> Bank:
    """Shapes and types of one run's bank, as `jax.ShapeDtypeStruct`, without allocating memory.

    Args:
        config: the run's configuration.
        transformer: the frozen model.
        image_tokens: S.
        text_tokens: T.
        needs: data that the run's method needs.
    """
    forms, shown = needs.forms, len(needs.shown)
    sizes, dtype, count = transformer.config, transformer.dtype, config.bank
    # Typed as Any, since shapes replace the arrays here.
    of: Any = jax.ShapeDtypeStruct
    nothing: Any = None

    def conditioning(*lead: int) -> Conditioning:
        return Conditioning(
            of((*lead, text_tokens, sizes.joint_attention_dim), dtype),
            of((*lead, sizes.pooled_projection_dim), dtype),
        )

    def latents(*lead: int) -> Any:
        return of((*lead, image_tokens, sizes.in_channels), dtype)

    edit: Any = None
    if needs.edit_rank:
        params, targets = abstract_params("transformer", asdict(sizes)), config.adapter.targets
        edit = jax.eval_shape(lambda: init(jax.random.key(0), params, targets, needs.edit_rank))
    bank = Bank(
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
    )
    stored = _stored_shapes(config, transformer, image_tokens, text_tokens, needs)
    return bank.replace(**stored)


def _stored_shapes(
    config: Config,
    transformer: FluxTransformer,
    image_tokens: int,
    text_tokens: int,
    needs: Needs,
) -> dict[str, Any]:
    """Shapes of what updates look up instead of running the frozen model, by the bank's field."""
    sizes, shown, shapes = transformer.config, len(needs.shown), {}
    points = config.bank.trajectories, config.steps
    values = image_tokens, sizes.in_channels
    if stores_velocities(config, needs):
        shapes["velocities"] = (*points, 3 if needs.towards else 2, *values)
    if shown and needs.noises:
        shapes |= dict.fromkeys(("noises", "noise_velocities"), (shown, needs.noises, *values))
    if wanted := needs.features:
        blocks = 1 if wanted.last else sizes.num_layers
        tokens = image_tokens + text_tokens * wanted.text
        shapes["features"] = (points[0], wanted.steps, needs.forms - 1, blocks, tokens)
    dtype = transformer.dtype
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


def stack_banks(banks: Sequence[Bank]) -> Bank:
    """Stack the banks of runs trained at once: every leaf gets a leading axis, unless shared.

    `times` and `image_ids` are the same for all runs. Runs with fewer forms are padded with
    fillers, which are never sampled, and runs with fewer anchors with their last anchor.

    Raises:
        InputError: runs preserve different numbers of pictures.
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
        anchor_rows = np.minimum(np.arange(anchors), bank.anchors.text.shape[1] - 1)
        # Beside the anchors' velocities is the concept's, in front.
        velocities = bank.velocities
        if velocities is not None:
            velocities = velocities[:, :, np.concatenate([[0], 1 + anchor_rows])]
        features = bank.features
        if features is not None:
            # Those of the forms after the concept.
            features = features[:, :, rows[1:] - 1]
        return bank.replace(
            sentences=bank.sentences[:, rows],
            masks=bank.masks[:, rows],
            kinds=np.pad(bank.kinds, (0, missing), constant_values=FILLER),
            anchors=bank.anchors[:, anchor_rows],
            velocities=velocities,
            features=features,
        )

    together = jax.tree.map(lambda *leaves: np.stack(leaves), *map(filled, banks))
    return together.replace(times=banks[0].times, image_ids=banks[0].image_ids)


def run_axes() -> Bank:
    """Axis of the runs in stacked banks, for `jax.vmap`; None for shared arrays."""
    axes: dict[str, Any] = dict.fromkeys((field.name for field in fields(Bank)), 0)
    axes |= {"times": None, "image_ids": None}
    return Bank(**axes)
