"""A tiny transformer, a bank of random arrays and an adapter with a non-zero effect.

Axis letters: M sentences, V forms, T text tokens, R trajectories, D steps, F pictures, S image
tokens, C latent channels, E text width, P pooled width.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from erase.config.schema import AdapterConfig, MeshConfig
from erase.data.bank import Bank
from erase.data.plan import CONCEPT, POOL, SYNONYM
from erase.methods.erase_anything import lower_losses, upper_losses
from erase.methods.parts.compiled import StepContext
from erase.methods.parts.forward import RunInputs
from erase.methods.parts.step import State
from erase.methods.planning.configured import context_of, start
from erase.methods.settings.erase_anything import Lower, Upper
from erase.runs import RunConfig
from erase.runtime.mesh import make_mesh
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.models.vae import latent_ids
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.weights.loading import abstract_params

M, V, T, R, D, F = 3, 5, 6, 4, 4, 2
SIZES = {
    "in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 6,
    "guidance_embeds": True,
    "axes_dims_rope": (2, 2, 4),
}
CONFIG = RunConfig(
    concept="cat",
    batch_size=4,
    adapter=AdapterConfig(rank=2, alpha=3.0),
    lower=Lower(esd=1.0, attn=2.0, eta=1.5),
    upper=Upper(lora=0.5, rsc=0.25, early=0.5, temperature=0.5),
)


def random_tree(shapes: Any, seed: int, scale: float = 0.3) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), shapes
    )


def make_bank(anchors: int = 1, seed: int = 5) -> Bank:
    """A bank of random arrays, with as many irrelevant words as are sampled."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def conditioning(*lead: int) -> Conditioning:
        return Conditioning(normal(*lead, T, 12), normal(*lead, 6))

    ids = latent_ids(4, 6)
    masks = np.zeros((M, V, T), np.float32)
    for m, v in np.ndindex(M, V):
        masks[m, v, [v % T, (m + v + 1) % T]] = 1
    return Bank(
        sentences=conditioning(M, V),
        masks=jnp.asarray(masks),
        kinds=jnp.array([CONCEPT, SYNONYM, POOL, POOL, POOL]),
        anchors=conditioning(M, anchors),
        eta=jnp.asarray(CONFIG.lower.eta),
        trajectories=normal(R, D + 1, len(ids), 8),
        trajectory_sentences=jnp.arange(R) % M,
        pictures=normal(F, len(ids), 8),
        picture_prompts=conditioning(F),
        times=jnp.array([1.0, 0.8, 0.5, 0.2]),
        image_ids=ids,
    )


MODEL = FluxTransformer(FluxConfig.from_dict(SIZES))
CONTEXT = context_of(CONFIG, MODEL, make_mesh(MeshConfig(), 1, 1))
KEY = jax.random.key(7)
KEYS = KEY[None]


def with_levels(context: StepContext, **changes: Any) -> StepContext:
    """The context with other settings of EraseAnything's levels."""
    return replace(context, settings=replace(context.settings, **changes))


PARAMS = random_tree(abstract_params("transformer", SIZES), 1)
BANK = make_bank()
LORA = random_tree(start(KEY, PARAMS, CONFIG).lora, 2)


def fresh() -> State:
    return start(KEY, PARAMS, CONFIG)


def start_of(method: str) -> State:
    """State before the first update of another method."""
    return start(KEY, PARAMS, replace(CONFIG, method=method))


def every(*trees: Any) -> Any:
    """Trees of runs, as the updates take them; stacked by NumPy, which compiles nothing."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)


def run(tree: Any, index: int = 0) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[index]), tree)


def scaled(lora: dict) -> dict:
    """alpha / rank = 1.5, folded into every B."""
    return jax.tree.map_with_path(
        lambda path, leaf: leaf * 1.5 if path[-1].key == "B" else leaf, lora
    )


@jax.jit
def alone(
    params: dict,
    lora: dict | None,
    latents: jax.Array,
    prompt: Conditioning,
    time: jax.Array,
    guidance: float = 3.5,
) -> tuple[jax.Array, jax.Array]:
    """Velocity and all attention weights of one sample, without a batch axis."""
    tree = None if lora is None else scaled(lora)
    velocity, out = Denoiser(MODEL, params, latent_ids(4, 6), guidance, tree).predict(
        latents[None], jax.tree.map(lambda leaf: leaf[None], prompt), time, attention="weights"
    )
    return velocity[0], out["attention"][:, 0]


@partial(jax.jit, static_argnames="context")
def lower(lora: dict, *, params: dict, bank: Bank, key: jax.Array, context: StepContext) -> Any:
    return lower_losses(lora, RunInputs.of(context, params, bank), key)


@partial(jax.jit, static_argnames="context")
def upper(lora: dict, *, params: dict, bank: Bank, key: jax.Array, context: StepContext) -> Any:
    return upper_losses(lora, RunInputs.of(context, params, bank), key)
