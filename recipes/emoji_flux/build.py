"""Build models/emoji-flux from scratch: drawings, captions, networks and measurements.

    python -m recipes.emoji_flux.build --workdir runs/emoji-flux --out models/emoji-flux

Stages, in order: sprites (needs npm and the extra `recipe`), tokenizers, scenes, judge, vae,
transformer, distillation, export, erasing, measure, card. Each stage saves its result in the work
folder and is skipped if the result exists; networks resume from their latest checkpoint. The
`metrics.jsonl` of each network records the seconds per update.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.typing import DTypeLike
from jaxtyping import PyTree

import flux_jax
from erase.cli.flags import begin, parse_flags
from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge_network import JudgeConfig
from flux_jax.errors import exits_cleanly
from flux_jax.models.vae import AutoencoderKL, pack, scale_latents
from flux_jax.weights.loading import build
from recipes.emoji_flux import flux_training, judge_training, sprites, tokenizers, vae_training
from recipes.emoji_flux.card import write_card
from recipes.emoji_flux.erasing import write_known
from recipes.emoji_flux.export import export
from recipes.emoji_flux.flux_training import FluxData
from recipes.emoji_flux.scenes import Scenes, make
from recipes.emoji_flux.vae_training import SceneData
from recipes.emoji_flux.world import ENTITIES, INVERSE, RELATIONS, STYLES

STAGES = ("sprites", "tokenizers", "scenes", "judge", "vae", "transformer", "distillation",
          "export", "erasing", "measure", "card")  # fmt: skip

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Declare the command's flags; a function, so that importing this module declares none."""
    flags.DEFINE_string("workdir", "runs/emoji-flux", "Folder for the results of the stages.")
    flags.DEFINE_string("out", "models/emoji-flux", "The pipeline folder to write.")
    flags.DEFINE_multi_enum(
        "stage", list(STAGES), STAGES, "Run these stages only; may be repeated."
    )
    flags.DEFINE_integer("scenes", 600_000, "Training scenes.", lower_bound=1)
    flags.DEFINE_integer("workers", 16, "Processes that generate scenes.", lower_bound=1)
    flags.DEFINE_integer("judge_updates", 14_000, "Updates of the judge.", lower_bound=1)
    flags.DEFINE_integer("vae_updates", 5000, "Updates of the autoencoder.", lower_bound=1)
    flags.DEFINE_multi_integer(
        "updates",
        [32_000, 50_000],
        "Updates of the transformer in one cycle; repeat the flag for more cycles.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "distillation_updates", 8000, "Updates of the distillation.", lower_bound=1
    )
    flags.DEFINE_integer("batch", flux_training.BATCH, "Pictures per update.", lower_bound=1)
    flags.DEFINE_integer("per_class", 4, "Prompts for each entity when measuring.", lower_bound=1)


def dtype() -> DTypeLike:
    """Compute dtype of training: bfloat16, but float32 on CPUs, where it is faster."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


@functools.cache
def scenes_of(workdir: Path) -> Scenes:
    """Load the training scenes."""
    return Scenes.load(workdir / "scenes.npz")


@functools.cache
def flux_data(workdir: Path, out: Path) -> FluxData:
    """Latents of all scenes and their captions' tokens, on the device."""
    pixels, _ = sprites.load(workdir / "sprites.npz")
    scenes = scenes_of(workdir)
    config, params = vae(workdir)
    module = build("vae", config, dtype())
    assert isinstance(module, AutoencoderKL)
    raw = vae_training.encode_all(
        module, params, SceneData.of(pixels, scenes), np.arange(len(scenes.sprite))
    )
    empty = [
        tokenizer([""], padding="max_length", max_length=tokenizers.TOKENS).input_ids[0]
        for tokenizer in tokenizers.load(out)
    ]
    return FluxData(
        pack(scale_latents(module.config, raw)),
        jnp.asarray(scenes.clip_ids),
        jnp.asarray(scenes.t5_ids),
        *(jnp.asarray(ids) for ids in empty),
    )


@functools.cache
def vae(workdir: Path) -> tuple[dict[str, Any], PyTree]:
    """Train the autoencoder, or load its last checkpoint."""
    pixels, _ = sprites.load(workdir / "sprites.npz")
    return vae_training.train(
        pixels, scenes_of(workdir), workdir / "vae", FLAGS.vae_updates, dtype=dtype()
    )


def configs(workdir: Path, out: Path) -> dict[str, Any]:
    """`config.json` of every component, with the vocabulary sizes of the tokenizers."""
    clip, t5 = tokenizers.load(out)
    assert isinstance(clip.eos_token_id, int)
    texts = flux_training.text_configs(len(clip), clip.eos_token_id, len(t5), tokenizers.TOKENS)
    return {"transformer": flux_training.TRANSFORMER, "vae": vae(workdir)[0], **texts}


@functools.cache
def teacher(workdir: Path, out: Path) -> dict[str, PyTree]:
    """Train the text encoders and the transformer, or load their last checkpoint."""
    return flux_training.train(
        configs(workdir, out),
        flux_data(workdir, out),
        workdir / "transformer",
        FLAGS.updates,
        FLAGS.batch,
        dtype(),
    )


@functools.cache
def student(workdir: Path, out: Path) -> PyTree:
    """Distil the guidance, or load the last checkpoint."""
    return flux_training.distil(
        configs(workdir, out),
        teacher(workdir, out),
        flux_data(workdir, out),
        workdir / "distillation",
        FLAGS.distillation_updates,
        FLAGS.batch,
        dtype(),
    )


def judge(workdir: Path, out: Path) -> None:
    """Train the judge and write its folder."""
    pixels, _ = sprites.load(workdir / "sprites.npz")
    labels = JudgeConfig(tuple(entity.name for entity in ENTITIES), STYLES, RELATIONS)
    inverse = judge_training.inverse_relations(labels.relations, INVERSE)
    judge_training.train(
        judge_training.judge_data(pixels, scenes_of(workdir), inverse),
        labels,
        workdir / "judge",
        out / "judge",
        FLAGS.judge_updates,
        dtype=dtype(),
    )


def write(workdir: Path, out: Path) -> None:
    """Write the pipeline folder."""
    params = {
        **teacher(workdir, out),
        "transformer": student(workdir, out),
        "vae": vae(workdir)[1],
    }
    export(out, configs(workdir, out), params)


def judge_samples(workdir: Path, out: Path) -> None:
    """Measure the exported pipeline with the exported judge."""
    from recipes.emoji_flux.measure import measure

    _, sprite_of = sprites.load(workdir / "sprites.npz")
    measure(
        flux_jax.load(out),
        NetworkJudge.load(out / "judge"),
        workdir / "measure",
        per_class=FLAGS.per_class,
        available=sprite_of >= 0,
    )


def draw_scenes(workdir: Path, out: Path) -> None:
    """Generate the training scenes."""
    pixels, sprite_of = sprites.load(workdir / "sprites.npz")
    scenes = make(pixels, sprite_of, out, seed=0, count=FLAGS.scenes, workers=FLAGS.workers)
    scenes.save(workdir / "scenes.npz")


@exits_cleanly
def main(argv: list[str]) -> None:
    """Run the chosen stages in order."""
    begin(argv)
    workdir, out = Path(FLAGS.workdir), Path(FLAGS.out)
    stages: dict[str, tuple[Callable[[], Any], Path | None]] = {
        "sprites": (
            lambda: sprites.build(workdir / "npm", workdir / "sprites.npz"),
            workdir / "sprites.npz",
        ),
        "tokenizers": (lambda: tokenizers.build(out), out / "tokenizer_2"),
        "scenes": (lambda: draw_scenes(workdir, out), workdir / "scenes.npz"),
        "judge": (lambda: judge(workdir, out), None),
        "vae": (lambda: vae(workdir), None),
        "transformer": (lambda: teacher(workdir, out), None),
        "distillation": (lambda: student(workdir, out), None),
        "export": (lambda: write(workdir, out), None),
        "erasing": (lambda: write_known(out), None),
        "measure": (lambda: judge_samples(workdir, out), None),
        "card": (lambda: write_card(workdir, out), None),
    }
    for name, (run, result) in stages.items():
        if name in FLAGS.stage and not (result and result.exists()):
            print(f"stage {name}", flush=True)
            run()


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
