"""GPU time of adapters and pictures, from operations and two measurements on one H100.

Operations are those of `erase.methods.planning.flops.Pass`. A step that denoises to a random step
of the adapted model's trajectory passes half of the steps on average. The frozen model counts in
every update, although the bank may store what it says: the hours are the most that a run takes. The
products of adapters, optimisers and closed-form solutions are left out, as are compilation, reading
weights and judging.
Letters: S image tokens, T text tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from erase.config.schema import Config
from erase.data.words.irrelevant import listed
from erase.methods import METHODS, method_of
from erase.methods.planning.flops import MEASURED, Pass
from erase.methods.settings import concept_ablation, eap, erase_anything, esd, meta_unlearning
from flux_jax.models.transformer import FluxConfig
from flux_jax.pipeline import Pipeline

# Seconds a picture at 512 x 512, 28 steps, 512 text tokens and batches of 8 (docs/benchmark.md).
PICTURE, PICTURE_STEPS, PICTURE_SIDE, PICTURE_TEXT = 1.11, 28, 512, 512


@dataclass(frozen=True)
class Passes:
    """Operations of the passes of which a method's iteration consists.

    Attributes:
        plain: velocity; the backward pass is the gradient of the adapter.
        mass: velocity, and attention to the concept.
        dual: attention to the concept, without the single-stream blocks.
        steps: of a trajectory.
    """

    plain: Pass
    mass: Pass
    dual: Pass
    steps: int

    @classmethod
    def of(cls, sizes: FluxConfig, image_tokens: int, text_tokens: int, steps: int) -> "Passes":
        """Return the passes of a sample with S and T tokens."""
        return cls(
            Pass(sizes, image_tokens, text_tokens),
            Pass(sizes, image_tokens, text_tokens, mass=True),
            Pass(sizes, image_tokens, text_tokens, mass=True, single=False),
            steps,
        )

    @property
    def update(self) -> int:
        """A velocity with the gradient of the adapter."""
        return self.plain.forward + self.plain.backward

    def latents(self, trajectories: str) -> int:
        """What x_t costs: nothing on kept trajectories, half a denoising on the student's."""
        return self.plain.forward * (self.steps - 1) // 2 if trajectories == "student" else 0

    def esd(self, trajectories: str, anchors: int = 1) -> int:
        """L_esd: x_t, the frozen model's velocities, and the adapted one's with its gradient."""
        return self.latents(trajectories) + (1 + anchors) * self.plain.forward + self.update


def _erase_anything(config: Config, passes: Passes) -> int:
    own = config.method_settings(erase_anything.Settings)
    lower, upper, count = own.lower, own.upper, 0
    if lower.esd:
        adapted = passes.mass if lower.attn else passes.plain
        anchors = 2 if lower.erase_to else 1
        count += adapted.forward + adapted.backward + (1 + anchors) * passes.plain.forward
    else:
        count += passes.dual.forward + passes.dual.backward
    count += passes.latents(lower.trajectories)
    if upper.lora:
        count += passes.update + (upper.lora_target != "noise") * passes.plain.forward
    if upper.rsc:
        dual = passes.dual
        count += dual.forward + dual.backward + (1 + upper.negatives) * dual.forward
    return count


def _concept_ablation(config: Config, passes: Passes) -> int:
    own = config.method_settings(concept_ablation.Settings)
    anchor = passes.plain.forward if own.target == "model" else 0
    return passes.update + anchor + (passes.update if own.prior else 0)


def _esd(config: Config, passes: Passes) -> int:
    own = config.method_settings(esd.Settings)
    return passes.esd(own.trajectories, 2 if own.erase_to else 1)


def _eap(config: Config, passes: Passes) -> int:
    own = config.method_settings(eap.Settings)
    # The harm to the chosen word has its own latents. The search asks for it again, with a gradient
    # through both models' velocities.
    harm = passes.latents(own.trajectories) + passes.update + passes.plain.forward
    search = passes.latents(own.trajectories) + harm + passes.plain.backward
    return passes.esd(own.trajectories) + harm + search


def _meta_unlearning(config: Config, passes: Passes) -> int:
    own = config.method_settings(meta_unlearning.Settings)
    # L_keep, the inner steps, and L_keep after them.
    return passes.esd(own.trajectories) + (2 + own.inner_steps) * passes.update


def _mace(config: Config, passes: Passes) -> int:
    del config
    return passes.dual.forward + passes.dual.backward


ITERATION: Mapping[str, Callable[[Config, Passes], int]] = {
    "erase_anything": _erase_anything,
    "concept_ablation": _concept_ablation,
    "esd": _esd,
    "eap": _eap,
    "meta_unlearning": _meta_unlearning,
    "mace": _mace,
    # In closed form.
    "uce": lambda config, passes: 0,
}


def passes_of(config: Config, pipe: Pipeline) -> Passes:
    """Return the passes of a run's samples."""
    tokens = len(pipe.image_ids(config.height, config.width))
    length = pipe.tokenizer_2.model_max_length
    return Passes.of(pipe.transformer.config, tokens, length, config.steps)


def prepared(config: Config) -> int:
    """Return the number of pictures that the frozen model draws before a run's training."""
    method = method_of(config)
    needs = method.needs(config, listed(config), None)
    trajectories = config.bank.trajectories if method.steps(config) else 0
    return trajectories + len(needs.shown) + len(needs.also)


def iterations(config: Config) -> int:
    """Return a run's iterations; 0 for a closed form."""
    return config.iterations if METHODS[config.method].steps(config) else 0


def training_seconds(config: Config, pipe: Pipeline) -> float:
    """Estimate the seconds of a run on one H100: its preparation and its iterations.

    Args:
        config: configuration of the run.
        pipe: the frozen model, opened for it; its weights are not read.
    """
    passes = passes_of(config, pipe)
    operations = ITERATION[config.method](config, passes) * config.batch_size
    measured = Pass(pipe.transformer.config, (PICTURE_SIDE // 16) ** 2, PICTURE_TEXT).forward
    picture = PICTURE * config.steps * passes.plain.forward / (PICTURE_STEPS * measured)
    return prepared(config) * picture + iterations(config) * operations / MEASURED
