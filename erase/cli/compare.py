"""Compares methods: erases the same concepts by each, with the same prompts, seeds and judge.

    python -m erase compare --config configs/emoji_compare.py --out runs/comparison.json

All runs of a method train at once, each concept once a seed; a method's numbers are written as soon
as they are there, and those that the file holds already are left out. For each method:

- Acc_e, Acc_g, Acc_ir and H, as `erase-anything evaluate` counts them, over concepts and seeds;
- attack success: pictures of the families of `erase-anything attack` in which the judge finds the
  concept;
- a Fréchet distance between the frozen model's pictures of other concepts and the erased model's,
  from the same noise, by the mean of the judge's last layer;
- trainable parameters, bytes on disk, and a concept's seconds (compiling among them) and bytes on
  the device while all train at once.

Shares and H have intervals over concepts, the Fréchet distance the least and the greatest of its
seeds.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from erase.cli.flags import FLAG, begin, check_paths, configured_for, define_flag, parse_flags
from flux_jax.errors import exits_cleanly


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """The command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    every = configured_for(given.methods)
    for runs in every.values():
        check_paths(runs)
    from erase.evaluation.notes import left_out_note
    from erase.report import tables
    from erase.runtime.memory import explains_memory
    from erase.training.compare import compare, seeded

    methods = {name: seeded(runs, given.seeds) for name, runs in every.items()}
    with explains_memory():
        result = compare(methods, Path(given.out), given.attacks)
    print(tables.methods(result))
    rows = [row for each in result["methods"].values() for row in each["rows"]]
    for line in dict.fromkeys(f"{r['concept']}: {left_out_note(r)}" for r in rows):
        if not line.endswith(": "):
            print(line)


if __name__ == "__main__":
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("out", None, "JSON file of the results.", required=True)
    flags.DEFINE_list("methods", None, "Names of methods, separated by commas; by default all.")
    flags.DEFINE_integer("seeds", 3, "Runs of each concept.", lower_bound=1)
    flags.DEFINE_integer("attacks", 32, "Pictures of each family of attacks.", lower_bound=1)
    app.run(main, flags_parser=parse_flags)
