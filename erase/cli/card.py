"""Write an adapter's model card: what it erases, how well, how to use it, its limits and licence.

    erase-anything card --workdir runs/soccer-ball

writes the card of a run again, from the files in its folder. The card is Markdown with the header
that the Hugging Face hub reads.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from erase.cli.flags import begin, parse_flags
from flux_jax.errors import exits_cleanly, say


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    from erase.runtime import run_folder
    from erase.runtime.files import read_json

    # Checked first, since the following imports take a second.
    read_json(Path(flags.FLAGS.workdir) / run_folder.CONFIG, run_folder.MISSING)
    from erase.report.card import of_run

    say(of_run(flags.FLAGS.workdir))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    app.run(main, flags_parser=parse_flags)
