"""The four losses of EraseAnything, as pure functions of the transformer's outputs.

All losses are computed in float32. Velocity is v = ε - x_0, on x_t = (1 - t) x_0 + t ε.
Axis letters: B batch, S image tokens, C latent channels, T text tokens, N = T + S tokens (text
first), L dual-stream blocks, H heads, K irrelevant words, G concept tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Keeps the gradient of the norm finite where a feature is zero.
TINY = 1e-12


def esd_target(
    conditional: Float[Array, "B S C"],
    unconditional: Float[Array, "B S C"],
    towards: Float[Array, "B S C"],
    eta: float | Float[Array, ""],
) -> Float[Array, "B S C"]:
    """Compute the target velocity of an erased prompt, which points away from the concept.

    ESD's negative guidance, the paper's Eq. 2 with its norm in the right place:
    v(towards) - η (v(c) - v(∅)). All velocities are the frozen base model's, at the same x_t.

    Args:
        conditional: velocity for the prompt with the concept.
        unconditional: velocity for the empty prompt.
        towards: velocity for what replaces the concept; usually for the empty prompt too.
        eta: η.
    """
    conditional, unconditional, towards = (
        v.astype(jnp.float32) for v in (conditional, unconditional, towards)
    )
    return jax.lax.stop_gradient(towards - eta * (conditional - unconditional))


def squared_error(
    velocity: Float[Array, "B S C"], target: Float[Array, "B S C"]
) -> Float[Array, ""]:
    """Mean squared error; with `esd_target` as the target, this is L_esd."""
    return jnp.mean(jnp.square(velocity.astype(jnp.float32) - target.astype(jnp.float32)))


def attention_to_concept(mass: Float[Array, "L B H N"], text_tokens: int) -> Float[Array, ""]:
    """L_attn: mean attention of image queries to the concept's tokens, in [0, 1].

    The paper's Eq. 3 as a mean over blocks, batch, heads and image queries, so that its weight
    does not depend on the resolution.

    Args:
        mass: attention to the concept's tokens, summed over them, for every query.
        text_tokens: T.
    """
    return jnp.mean(mass[..., text_tokens:].astype(jnp.float32))


def attention_to_concept_released(mass: Float[Array, "L B H N G"]) -> Float[Array, ""]:
    """L_attn as in the authors' code: the norm over heads, summed over queries and tokens.

    Σ_n Σ_g ‖P[last block, :, n, g]‖₂, mean over the batch. Text queries are included. The sum
    grows with the resolution, so its weight is small (1e-3).

    Args:
        mass: attention to each of the concept's tokens, for every query; zeros for other tokens.
    """
    last = mass[-1].astype(jnp.float32)
    norms = jnp.sqrt(jnp.sum(jnp.square(last), axis=1) + TINY) - TINY**0.5
    return jnp.mean(jnp.sum(norms, axis=(1, 2)))


def flow_matching(
    velocity: Float[Array, "B S C"], clean: Float[Array, "B S C"], noise: Float[Array, "B S C"]
) -> Float[Array, ""]:
    """L_lora, the paper's Eq. 4: flow matching, so that u_t is denoised to the picture.

    Args:
        velocity: prediction at (1 - t) clean + t noise.
        clean: latents of pictures to preserve.
        noise: the noise that was mixed in.
    """
    return squared_error(velocity, noise.astype(jnp.float32) - clean.astype(jnp.float32))


def attention_features(mass: Float[Array, "L B H N"], text_tokens: int) -> Float[Array, "L B S"]:
    """Compute a word's attention features over the picture, F of the paper's Eq. 5.

    The attention columns of the word's tokens, averaged over tokens and heads, of image queries
    only, and scaled to length 1 in each block. The sum over tokens gives the same result as their
    mean, because the length is normalised.

    Args:
        mass: attention to the word's tokens, summed over them, for every query.
        text_tokens: T.
    """
    columns = mass[..., text_tokens:].astype(jnp.float32).mean(axis=2)
    return columns * jax.lax.rsqrt(jnp.sum(jnp.square(columns), -1, keepdims=True) + TINY)


def attention_features_released(mass: Float[Array, "L B H N"]) -> Float[Array, "1 B N"]:
    """F as in the authors' code: the first head of the last block, with text queries."""
    columns = mass[-1:, :, 0].astype(jnp.float32)
    return columns * jax.lax.rsqrt(jnp.sum(jnp.square(columns), -1, keepdims=True) + TINY)


def reverse_contrastive(
    concept: Float[Array, "L B S"],
    synonym: Float[Array, "L B S"],
    irrelevant: Float[Array, "L B K S"],
    temperature: float,
    form: str = "infonce",
) -> Float[Array, ""]:
    """L_rsc: pulls the concept's features towards irrelevant words' and away from its synonym's.

    Three forms, each the mean over blocks and batch, with gradients through F only:

    - "infonce" assigns the roles as the paper's text does: -log(Σ_k e^{F·F_k/τ} /
      (e^{F·F_syn/τ} + Σ_k e^{F·F_k/τ})) >= 0.
    - "literal" is the paper's Eq. 5 with its sign corrected, because minimising it as printed would
      do the reverse: log(e^{F·F_syn/τ} / Σ_k e^{F·F_k/τ}); only τ bounds it below.
    - "released" is what the authors' code minimises, with the synonym as the centre:
      log(e^{F_syn·F/τ} / (e^{F_syn·F/τ} + Σ_k e^{F_syn·F_k/τ})).

    Args:
        concept: F.
        synonym: F_syn.
        irrelevant: F_k.
        temperature: τ.
        form: "infonce", "literal" or "released".
    """
    synonym, irrelevant = jax.lax.stop_gradient((synonym, irrelevant))
    to_synonym = jnp.sum(concept * synonym, axis=-1) / temperature
    centre = synonym if form == "released" else concept
    to_others = jnp.einsum("lbs,lbks->lbk", centre, irrelevant) / temperature
    margin = to_synonym - jax.nn.logsumexp(to_others, axis=-1)
    if form == "released":
        return -jnp.mean(jax.nn.softplus(-margin))
    return jnp.mean(margin if form == "literal" else jax.nn.softplus(margin))


def adaptive_sum(
    erasing: Float[Array, ""], preserving: Float[Array, ""], balance: Float[Array, ""]
) -> Float[Array, ""]:
    """Combine both levels' losses as in EraseAnything++: w/(1+w) preserving + 1/(1+w) erasing.

    Args:
        erasing: weighted loss of the lower level.
        preserving: weighted loss of the upper level.
        balance: w, clipped to 0 from below; grows as the preserving loss gets worse.
    """
    w = jax.lax.stop_gradient(jnp.maximum(balance, 0))
    return (w * preserving + erasing) / (1 + w)
