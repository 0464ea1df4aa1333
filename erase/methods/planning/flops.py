"""Floating-point operations of FLUX.1's transformer, counted from its sizes.

The count covers the products of dense layers and of attention, with two operations per
multiply-add. It leaves out norms, activations, rotary positions, the products of a low-rank
adapter, and the recomputation in a checkpointed backward pass.
Letters: T text tokens, S image tokens, N both, C model width, E text width.
"""

from dataclasses import dataclass

from erase.config.schema import Config
from erase.data.plan import stores_velocities
from erase.data.words.irrelevant import listed
from erase.methods import erase_anything
from flux_jax.models.blocks import MLP_RATIO
from flux_jax.models.layers import SINUSOID_CHANNELS
from flux_jax.models.transformer import FluxConfig
from flux_jax.pipeline import Pipeline


@dataclass(frozen=True)
class Pass:
    """One pass of a sample through the transformer.

    Attributes:
        sizes: configuration of the transformer.
        image_tokens: S.
        text_tokens: T.
        mass: whether dual-stream blocks also return the attention to a group of tokens, which
            costs a second attention.
        single: whether the pass includes the single-stream blocks and the velocity.
    """

    sizes: FluxConfig
    image_tokens: int
    text_tokens: int
    mass: bool = False
    single: bool = True

    @property
    def forward(self) -> int:
        """Operations of the forward pass."""
        return self._embedding + self._modulation + self._output + self._dense + self._attention

    @property
    def backward(self) -> int:
        """Operations of the gradient of an adapter on text queries and keys of all dual blocks.

        Frozen weights have no gradient, so a dense layer costs the same backward as forward. Both
        factors of an attention product have a gradient, so it costs twice as much. Embeddings and
        modulation vectors do not depend on the adapter.
        """
        return self._output + self._dense + 2 * self._attention

    @property
    def _tokens(self) -> int:
        return self.image_tokens + self.text_tokens

    @property
    def _blocks(self) -> int:
        return self.sizes.num_layers + self.sizes.num_single_layers * self.single

    @property
    def _embedding(self) -> int:
        sizes, width = self.sizes, self.sizes.width
        sinusoids = (1 + sizes.guidance_embeds) * (SINUSOID_CHANNELS + width)
        vectors = sinusoids + sizes.pooled_projection_dim + width
        tokens = self.image_tokens * sizes.in_channels
        return 2 * width * (vectors + tokens + self.text_tokens * sizes.joint_attention_dim)

    @property
    def _modulation(self) -> int:
        single = 3 * self.sizes.num_single_layers + 2
        vectors = 2 * 6 * self.sizes.num_layers + single * self.single
        return 2 * vectors * self.sizes.width**2

    @property
    def _output(self) -> int:
        channels = self.sizes.out_channels or self.sizes.in_channels
        return 2 * self.image_tokens * self.sizes.width * channels * self.single

    @property
    def _dense(self) -> int:
        # Both kinds of block: queries, keys, values, the output projection, the MLP's two layers.
        weights = (4 + 2 * MLP_RATIO) * self.sizes.width**2
        return 2 * self._tokens * weights * self._blocks

    @property
    def _attention(self) -> int:
        times = self._blocks + self.sizes.num_layers * self.mass
        return 2 * 2 * self._tokens**2 * self.sizes.width * times


def iteration(config: Config, sizes: FluxConfig, image_tokens: int, text_tokens: int) -> int:
    """Count the operations of both updates, for one sample.

    Args:
        config: configuration in which all four losses have weights and latents come from the bank.
        sizes: configuration of the transformer.
        image_tokens: S.
        text_tokens: T.
    """
    plain = Pass(sizes, image_tokens, text_tokens)
    full = Pass(sizes, image_tokens, text_tokens, mass=True)
    dual = Pass(sizes, image_tokens, text_tokens, mass=True, single=False)
    # L_esd and L_attn share the adapted pass; the frozen model sees the concept and the anchors,
    # unless the bank stores what it says.
    settings = config.method_settings(erase_anything.Settings)
    anchors = 2 if settings.lower.erase_to else 1
    lower = full.forward + full.backward
    if not stores_velocities(config, erase_anything.needs(config, listed(config), None)):
        lower += (1 + anchors) * plain.forward
    # L_rsc: a pass for the concept, and passes without gradient for the synonym and other words.
    upper = settings.upper
    words = 1 + upper.negatives if upper.rsc_features == "adapted" else 0
    contrast = dual.forward + dual.backward + words * dual.forward
    base = plain.forward if upper.lora_target != "noise" and not upper.noises else 0
    return lower + contrast + plain.forward + plain.backward + base


# Operations per second of EraseAnything's iteration at 512 x 512 on an H100 in bfloat16, and their
# share of its fastest matrix product, from docs/results/flux.json (`benchmarks.speed.flux`).
MEASURED = 4.48e14
SHARE = 0.62
# Shorter iterations mostly start programs, so that their operations say nothing about their time.
MIN_SECONDS = 0.01


def estimate(config: Config, pipe: Pipeline, runs: int) -> str:
    """Estimate the training time on an H100, in one line.

    Args:
        config: configuration of any of the runs.
        pipe: the frozen model; its weights are not read.
        runs: number of runs trained at once.
    """
    if config.method != "erase_anything":
        return f"Time: estimated only for erase_anything, not for {config.method}."
    tokens = len(pipe.image_ids(config.height, config.width))
    length = pipe.tokenizer_2.model_max_length
    sizes = pipe.transformer.config
    seconds = runs * config.batch_size * iteration(config, sizes, tokens, length) / MEASURED
    if seconds < MIN_SECONDS:
        return "Time: not estimated for a model this small, which would not keep a GPU busy."
    return (
        f"Time on one H100 in bfloat16, whatever this machine has: about {seconds:.2g} s an "
        f"iteration, {seconds * config.iterations / 60:.2g} minutes for {config.iterations}; "
        f"estimated at the {SHARE:.0%} of its fastest matrix product that was measured there at "
        "512 x 512. Preparation, compilation and evaluation are not included."
    )
