"""Train text encoders and transformer together by flow matching, then distil the guidance.

Axis letters: B batch, N scenes, T text tokens, S image tokens, C packed latent channels.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from flux_jax.models.vae import latent_ids
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.tree import flatten, nest
from flux_jax.weights.loading import build
from recipes.emoji_flux import fit

TRANSFORMER: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 32,
    # diffusers fixes the base at 10,000, made for grids of 64 x 64. Position axes of 14
    # channels leave 1, 0.27 and 0.07 rad per token: enough to distinguish 8 x 8 positions.
    "axes_dims_rope": [4, 14, 14],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 128,
    "num_attention_heads": 6,
    "num_layers": 4,
    "num_single_layers": 6,
    "out_channels": None,
    "patch_size": 1,
    "pooled_projection_dim": 16,
}
GRID = 16
BATCH = 256
# Share of captions dropped, so that the model also learns the empty prompt.
DROP_CAPTION = 0.1
# Share of pooled vectors dropped: most of them, so that the content has to come through the joint
# attention, as it does in FLUX.1.
DROP_POOLED = 0.9
# Share of a batch whose times are uniform instead of logit-normal.
UNIFORM_TIMES = 0.25
GUIDANCE = (1.0, 5.0)


class FluxData(flax.struct.PyTreeNode):
    """Training data on the device."""

    latents: Float[Array, "N S C"]
    clip_ids: Int[Array, "N T"]
    t5_ids: Int[Array, "N T"]
    empty_clip: Int[Array, "T"]
    empty_t5: Int[Array, "T"]


def text_configs(clip_vocabulary: int, clip_end: int, t5_vocabulary: int, tokens: int) -> dict:
    """Configurations of the two text encoders for given vocabularies."""
    clip = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "attention_dropout": 0.0,
        "bos_token_id": clip_end - 1,
        "eos_token_id": clip_end,
        "pad_token_id": clip_end,
        "hidden_act": "quick_gelu",
        "hidden_size": TRANSFORMER["pooled_projection_dim"],
        "intermediate_size": 64,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": tokens,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "projection_dim": TRANSFORMER["pooled_projection_dim"],
        "vocab_size": clip_vocabulary,
    }
    t5 = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_ff": 256,
        "d_kv": 32,
        "d_model": TRANSFORMER["joint_attention_dim"],
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.0,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "num_decoder_layers": 4,
        "num_heads": 4,
        "num_layers": 4,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": t5_vocabulary,
    }
    return {"text_encoder": clip, "text_encoder_2": t5}


def initial_params(key: PRNGKeyArray, modules: dict[str, Any]) -> dict[str, PyTree]:
    """Initialise randomly; modulations, the guidance embedder's and the final layer's output are 0.

    With zero gates every block starts as the identity (adaLN-Zero, DiT).
    """
    ids = jnp.zeros((1, 8), jnp.int32)
    one = jnp.zeros(1)
    config = modules["transformer"].config
    inputs = {
        "text_encoder": (ids,),
        "text_encoder_2": (ids,),
        "transformer": (
            jnp.zeros((1, 4, config.in_channels)),
            jnp.zeros((1, 4, config.joint_attention_dim)),
            jnp.zeros((1, config.pooled_projection_dim)),
            one,
            jnp.zeros((4, 3)),
            one,
        ),
    }
    params = {
        name: modules[name].init(jax.random.fold_in(key, index), *inputs[name])["params"]
        for index, name in enumerate(sorted(inputs))
    }
    flat = flatten(params["transformer"])
    for path in flat:
        if "/linear/" in path or path.startswith(("proj_out/", "guidance_embedder/linear_2/")):
            flat[path] = jnp.zeros_like(flat[path])
    params["transformer"] = nest(flat)
    # T5 does not divide its scores by the root of the head width, so the queries start smaller.
    t5 = params["text_encoder_2"]
    t5["blocks"]["attn"]["q"]["kernel"] /= np.sqrt(modules["text_encoder_2"].config.d_kv)
    # Tokens start as large as what the blocks add to them.
    t5["token_embedder"]["embedding"] *= np.sqrt(modules["text_encoder_2"].config.d_model)
    return params


def draw_times(middling: PRNGKeyArray, uniform: PRNGKeyArray, batch: int) -> Float[Array, "B"]:
    """Sample times t, logit-normal ones and `UNIFORM_TIMES` of uniform ones.

    Logit-normal, as most of what has to be learnt lies in the middle (SD3, section 3.1); some are
    uniform, since logit-normal ones almost never cover the first steps of sampling.

    Args:
        middling: random key of the logit-normal times.
        uniform: random key of the uniform times.
        batch: B.
    """
    normal = jax.nn.sigmoid(jax.random.normal(middling, (batch,)))
    even = jax.random.uniform(uniform, (batch,))
    return jnp.where(jnp.arange(batch) < UNIFORM_TIMES * batch, even, normal)


def draw_batch(
    modules: dict[str, Any],
    params: PyTree,
    key: PRNGKeyArray,
    data: FluxData,
    batch: int,
) -> tuple[Array, Array, Array, Conditioning, Conditioning]:
    """Sample a batch for flow matching.

    Returns:
        x_t and the velocity ε - x_0 [B, S, C], t [B], the captions' conditioning and the empty
        prompt's.
    """
    keys = jax.random.split(key, 6)
    rows = jax.random.randint(keys[0], (batch,), 0, len(data.latents))
    clean = data.latents[rows].astype(jnp.float32)
    noise = jax.random.normal(keys[1], clean.shape)
    time = draw_times(keys[2], keys[5], batch)
    dropped = jax.random.bernoulli(keys[3], DROP_CAPTION, (batch, 1))
    clip_ids = jnp.where(dropped, data.empty_clip, data.clip_ids[rows])
    t5_ids = jnp.where(dropped, data.empty_t5, data.t5_ids[rows])
    without_pooled = jax.random.bernoulli(keys[4], DROP_POOLED, (batch, 1))

    def encode(clip_ids: Array, t5_ids: Array, keep: Array) -> Conditioning:
        text = modules["text_encoder_2"].apply(
            {"params": params["text_encoder_2"]}, t5_ids.astype(jnp.int32)
        )
        pooled = modules["text_encoder"].apply(
            {"params": params["text_encoder"]}, clip_ids.astype(jnp.int32)
        )
        return Conditioning(text, jnp.where(keep, pooled, 0))

    caption = encode(clip_ids, t5_ids, ~without_pooled)
    empty = encode(data.empty_clip[None], data.empty_t5[None], jnp.ones((1, 1), bool))
    empty = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape[1:])), empty)
    empty = empty.replace(pooled=jnp.where(without_pooled, 0, empty.pooled))
    wide = time[:, None, None]
    return (1 - wide) * clean + wide * noise, noise - clean, time, caption, empty


def predict(
    modules: dict[str, Any],
    params: PyTree,
    x: Array,
    time: Array,
    text: Conditioning,
    guidance: Any,
) -> Array:
    """The transformer's velocity in float32."""
    model = Denoiser(modules["transformer"], params, latent_ids(GRID, GRID), guidance)
    return model.velocity(x, text, time).astype(jnp.float32)


def build_modules(configs: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Build the three modules that are trained here."""
    names = ("transformer", "text_encoder", "text_encoder_2")
    # Blocks as narrow as these run faster without a loop over them.
    return {name: build(name, configs[name], dtype).clone(unroll=True) for name in names}


def matching_loss(
    modules: dict[str, Any], batch: int, params: PyTree, key: PRNGKeyArray, data: FluxData
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Flow matching: mean squared error of the velocity, at guidance 1."""
    x, target, time, caption, _ = draw_batch(modules, params, key, data, batch)
    velocity = predict(modules, params["transformer"], x, time, caption, 1.0)
    return jnp.mean(jnp.square(velocity - target)), {}


def distillation_loss(
    modules: dict[str, Any],
    batch: int,
    params: PyTree,
    key: PRNGKeyArray,
    data: tuple[FluxData, PyTree],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean squared error to the teacher's classifier-free guidance, g sampled from `GUIDANCE`.

    Args:
        modules: from `build_modules`.
        batch: pictures per update.
        params: the student transformer's.
        key: random key.
        data: scenes, and the teacher's parameters under the names of all three modules.
    """
    scenes, teacher = data
    batch_key, guidance_key = jax.random.split(key)
    x, _, time, caption, empty = draw_batch(modules, teacher, batch_key, scenes, batch)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), caption, empty)
    twice = jnp.concatenate([x, x]), jnp.concatenate([time, time])
    pair = predict(modules, teacher["transformer"], *twice, both, 1.0)
    conditional, unconditional = jnp.split(pair, 2)
    guidance = jax.random.uniform(guidance_key, (batch,), minval=GUIDANCE[0], maxval=GUIDANCE[1])
    wide = guidance[:, None, None]
    target = jax.lax.stop_gradient(unconditional + wide * (conditional - unconditional))
    velocity = predict(modules, params, x, time, caption, guidance)
    return jnp.mean(jnp.square(velocity - target)), {}


def train(
    configs: dict[str, Any],
    data: FluxData,
    folder: Path,
    cycles: Sequence[int],
    batch: int = BATCH,
    dtype: DTypeLike = jnp.bfloat16,
) -> dict[str, PyTree]:
    """Train text encoders and transformer from scratch at guidance 1.

    Training runs in cycles (SGDR, without its growing periods): each starts from the average of the
    previous one, with a fresh optimiser and the full learning rate, so that training can be
    extended later.

    Args:
        configs: `config.json` of the three modules.
        data: latents and tokens of the scenes.
        folder: for one subfolder per cycle.
        cycles: updates of each cycle; the learning rate rises and falls once per cycle.
        batch: pictures per update.
        dtype: compute dtype.

    Returns:
        Averaged parameters under transformer, text_encoder and text_encoder_2.
    """
    modules = build_modules(configs, dtype)
    loss = functools.partial(matching_loss, modules, fit.per_device(batch))
    params = initial_params(jax.random.key(1), modules)
    for cycle, updates in enumerate(cycles, start=1):
        optimizer = fit.adamw(1e-3, updates)
        params = fit.fit(
            fit.start(params, optimizer),
            loss,
            data,
            optimizer,
            updates,
            folder / str(cycle),
            title=f"transformer {cycle}/{len(cycles)}",
            seed=cycle,
        )
    return params


def distil(
    configs: dict[str, Any],
    teacher: dict[str, PyTree],
    data: FluxData,
    folder: Path,
    updates: int,
    batch: int = BATCH,
    dtype: DTypeLike = jnp.bfloat16,
) -> PyTree:
    """Distil classifier-free guidance into the guidance embedding, as in FLUX.1 [dev].

    The student learns v(x, c, g) = v_u + g (v_c - v_u) for g in `GUIDANCE`; the text encoders
    are unchanged.

    Returns:
        The student's averaged transformer parameters.
    """
    modules = build_modules(configs, dtype)
    optimizer = fit.adamw(5e-4, updates)
    # A copy, since the state is donated while the teacher is still in use.
    state = fit.start(jax.tree.map(jnp.copy, teacher["transformer"]), optimizer)
    loss = functools.partial(distillation_loss, modules, fit.per_device(batch))
    return fit.fit(
        state, loss, (data, teacher), optimizer, updates, folder, title="distillation", seed=0
    )
