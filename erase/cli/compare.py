"""Compare methods: erase the same concepts by each, with the same prompts, seeds and judge.

    erase-anything compare --config configs/emoji_compare.py --out runs/comparison.json

All runs of a method train at once, each concept once per seed. Results are written after each
method; methods that the file already contains are skipped. For each method:

- Acc_e, Acc_g, Acc_ir and H of `erase-anything evaluate`, over concepts and seeds;
- attack success: the share of pictures from the prompt families of `erase-anything attack` in
  which the judge finds the concept;
- the Fréchet distance between pictures of other concepts from the frozen model and from the erased
  model, from the same noise, by the mean of the judge's last layer;
- trainable parameters, bytes on disk, and per concept the seconds (with compilation) and the bytes
  on the device while all train at once.

Shares and H have intervals over concepts; the Fréchet distance has the minimum and maximum over
seeds.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from erase.cli.ending import ends
from erase.cli.flags import FLAG, begin, check_paths, configured_for, define_flag, parse_flags
from erase.runtime.signals import listening
from flux_jax.errors import exits_cleanly, say


@exits_cleanly
@listening()
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    every = configured_for(given.methods)
    for runs in every.values():
        check_paths(runs)
    from erase.evaluation.notes import left_out_note
    from erase.report import tables
    from erase.runtime import lock
    from erase.runtime.memory import explains_memory
    from erase.training.compare import compare, seeded

    methods = {name: seeded(runs, given.seeds) for name, runs in every.items()}
    with explains_memory(), lock.locked([lock.of_file(Path(given.out))]):
        result = compare(methods, Path(given.out), given.attacks)
    say(tables.methods(result))
    rows = [row for each in result["methods"].values() for row in each["rows"]]
    for line in dict.fromkeys(f"{r['concept']}: {left_out_note(r)}" for r in rows):
        if not line.endswith(": "):
            say(line)


if __name__ == "__main__":
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("out", None, "JSON file for the results.", required=True)
    flags.DEFINE_list("methods", None, "Methods, separated by commas; by default all.")
    flags.DEFINE_integer("seeds", 3, "Runs per concept.", lower_bound=1)
    flags.DEFINE_integer("attacks", 32, "Pictures per family of attacks.", lower_bound=1)
    with ends():
        app.run(main, flags_parser=parse_flags)
