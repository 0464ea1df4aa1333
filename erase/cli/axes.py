r"""Measure the user study's five axes with a judge, and draw its radar chart.

    erase-anything axes --pictures base=pictures/base --pictures esd=pictures/esd \
        --concept "soccer ball" --judge models/emoji-flux/judge --out axes

takes the same pictures as `erase-anything study`: a folder for each method from `erase-anything
sample`, or `pictures` in the folder of a benchmark's row, all of the same names, prompts and seeds.
No person is asked, and the chart says so. In percent:

- erasing: 1 - Acc_e over the prompts that name the concept;
- preservation: Acc_ir, named things of the concept's kind found, over all other prompts;
- clean pictures: those that show something the judge knows, and nothing that is not asked for;
- prompt adherence: pictures with everything, things and style, that their prompt names;
- diversity: mean distance of the judge's features between seeds of a prompt, 100 for the base.

The values are written to axes.json, the chart to radar.svg and radar.png.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from erase.cli.flags import begin, folders, parse_flags
from flux_jax.errors import InputError, exits_cleanly, say


def define_flags() -> None:
    """Declare the command's flags. A function, so that importing this module declares none."""
    flags.DEFINE_multi_string("pictures", [], "METHOD=FOLDER with its pictures; one per method.")
    flags.DEFINE_string("concept", None, "The erased concept.", required=True)
    flags.DEFINE_string("base", "base", "The base model's name among the methods.")
    flags.DEFINE_string("judge", "models/emoji-flux/judge", "The judge's folder.")
    flags.DEFINE_string("out", "axes", "Folder for what is written.")


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    methods = folders(given.pictures)
    if not methods:
        raise InputError("pictures is missing: name each method's, --pictures base=pictures/base")
    from erase.evaluation.judge import open_judge
    from erase.survey.axes import write_axes
    from flux_jax.system.files import check_folder

    check_folder(given.out, "out")
    out = Path(given.out)
    write_axes(methods, given.concept, given.base, open_judge(given.judge), out)
    say(out / "radar.png")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
