"""Write a run's report: one self-contained HTML file, readable without a network.

    erase-anything report --workdir runs/soccer-ball

writes it again from the files in the run's folder.
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
    from erase.report.report import write

    say(write(flags.FLAGS.workdir))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    app.run(main, flags_parser=parse_flags)
