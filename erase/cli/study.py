r"""Ask people about pictures of several methods, as the paper's user study does, and analyse it.

    erase-anything study --pictures base=pictures/base --pictures esd=pictures/esd \
        --concept "soccer ball" --out study

writes `study.html`, which works offline and which all raters get with a number of their own, and
`key.json`, which they do not get. A folder holds a method's pictures from `erase-anything sample`;
the names, prompts and seeds of all methods are the same.

    erase-anything study --answers answers --key study/key.json --out study

reads the raters' files and writes means, intervals, agreement and tests (`result.json`,
`result.csv`) and the radar chart of the paper's Figure 5 (`radar.svg`, `radar.png`).
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from erase.cli.flags import begin, folders, parse_flags
from flux_jax.errors import InputError, exits_cleanly, say


def define_flags() -> None:
    """Declare the command's flags. A function, so that importing this module declares none."""
    flags.DEFINE_multi_string("pictures", [], "METHOD=FOLDER with its pictures; one per method.")
    flags.DEFINE_string("concept", None, "The erased concept.")
    flags.DEFINE_integer("seed", 0, "With a rater's number, decides the order of what is shown.")
    flags.DEFINE_string("answers", None, "Folder with the raters' files, JSON or CSV.")
    flags.DEFINE_string("key", None, "The questionnaire's key.json.")
    flags.DEFINE_string("out", "study", "Folder for what is written.")


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    if bool(given.answers) == bool(given.pictures):
        raise InputError("give --pictures to make a questionnaire, or --answers to analyse one")
    if given.answers:
        if not given.key or not Path(given.answers).is_dir():
            raise InputError("give --answers with the raters' folder and --key with its key.json")
        from erase.survey.result import analyse_folder

        analyse_folder(Path(given.answers), Path(given.key), Path(given.out))
        return
    methods = folders(given.pictures)
    if not given.concept:
        raise InputError("concept is missing: name what was erased, --concept 'soccer ball'")
    from erase.survey.result import make

    for file in make(methods, given.concept, given.seed, Path(given.out)):
        say(file)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
