r"""Run a benchmark: draw the pictures of a prompt set, judge them, and write a table.

    erase-anything benchmark --prompts unsafe-prompts4703.csv --judge nudenet \
        --adapter runs/nudity --base --out results/i2p

Prompt sets are read as they are published: I2P, COCO's captions (CSV or JSON), Ring-A-Bell, P4D,
MMA, UnlearnDiffAtk, MACE's objects, artists and people, or a text file with a prompt a line.
Columns are recognised by their names; seeds and guidance are each prompt's own where the file has
them. --where 'nudity_percentage>50' chooses rows by a column.

Each --adapter is a row of the table; adapters separated by commas are added up in one row. Without
any, the row is the base model's. Judges are nudenet (or nudenet=THRESHOLD), clip (or clip=FOLDER),
classes=FILE (CLIP; a class per line, "cat: kitty, feline" with synonyms), persons=FOLDER, q16=FILE
and emoji=FOLDER, the small model's.
--reference compares each row's pictures with a folder, by FID, or with --reference_judge by the
Fréchet distance of the features of the small model's judge.

A killed command continues when it is run again: no picture is drawn twice, and pictures that were
kept are judged by further judges without drawing. Prompts over the model's limit of tokens are cut,
as in diffusers, and counted.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from convert.adapters.paths import find_adapter, split_strength
from erase.cli.ending import ends
from erase.cli.flags import begin, define_process_flags, parse_flags
from erase.runtime.signals import listening
from flux_jax.errors import InputError, exits_cleanly, say

# Flags that only some judges use.
OF_JUDGES = {
    "find": ("emoji",),
    "erased": ("classes", "persons"),
    "clip_model": ("classes", "q16"),
    "template": ("classes",),
    "trunk": ("persons",),
}


def define_flags() -> None:
    """Declare the command's flags. A function, so that importing this module declares none."""
    flags.DEFINE_string("model", "models/emoji-flux", "Pipeline: folder, file or name on the hub.")
    flags.DEFINE_string("prompts", None, "File of the prompt set.", required=True)
    flags.DEFINE_string("column", None, "Column of the prompts, if not recognised.")
    flags.DEFINE_multi_string(
        "where", [], "Only rows such as 'nudity_percentage>50'; may be repeated, all must hold."
    )
    flags.DEFINE_integer("first", None, "Use only so many prompts, the first.", lower_bound=1)
    flags.DEFINE_multi_string(
        "adapter", [], "A row: adapter file or folder, with :STRENGTH if not 1; may be repeated."
    )
    flags.DEFINE_bool("base", False, "Also a row of the base model.")
    flags.DEFINE_multi_string("judge", [], "NAME or NAME=VALUE; may be repeated.")
    flags.DEFINE_list("find", [], "Words that the judge emoji looks for in all pictures.")
    flags.DEFINE_list("erased", [], "Classes or persons whose accuracy is counted apart.")
    flags.DEFINE_string(
        "clip_model", None, "CLIP of the judges classes and q16; by default the published one."
    )
    flags.DEFINE_string(
        "template", None, "Text of a class for the judge classes; by default 'a photo of the {}'."
    )
    flags.DEFINE_string(
        "trunk", None, "MobileNetV2's weights, for the judge persons; by default in its folder."
    )
    flags.DEFINE_string("reference", None, "Folder of pictures to compare with, by FID.")
    flags.DEFINE_string(
        "reference_judge", None, "Judge's folder: compare its features instead of FID's."
    )
    flags.DEFINE_string("fid_weights", None, "FID's network; by default the package fetches it.")
    flags.DEFINE_integer("steps", 28, "Euler steps.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Guidance of all prompts; by default their own, or 3.5.")
    flags.DEFINE_integer("height", None, "Pixels; by default the model's size.", lower_bound=1)
    flags.DEFINE_integer("width", None, "Pixels; by default the model's size.", lower_bound=1)
    flags.DEFINE_bool("own_sizes", False, "Use the sizes in the prompt set.")
    flags.DEFINE_integer("seed", 0, "Seed of the first prompt, if the set has none.")
    flags.DEFINE_integer("batch", 16, "Pictures generated at once.", lower_bound=1)
    flags.DEFINE_bool("keep_pictures", True, "Keep pictures as PNG files.")
    flags.DEFINE_string("out", None, "Folder for results and pictures.", required=True)
    define_process_flags()


def checked_rows(adapters: Sequence[str], base: bool) -> list[str]:
    """Return the adapters of each row, and check that they exist.

    Raises:
        InputError: an adapter is missing or named twice, or a name is.
    """
    for row in adapters:
        for text in row.split(","):
            if not text.strip():
                raise InputError(
                    f"adapter = {row!r:.100} has a name missing; name a file or folder"
                )
            find_adapter(split_strength(text)[0])
    if twice := [row for row in adapters if adapters.count(row) > 1]:
        raise InputError(f"adapter = {twice[0]!r} is there twice; name it once")
    return [*([""] if base or not adapters else []), *adapters]


def check_used(given: Any, judges: Iterable[str]) -> None:
    """Check that flags of judges belong to a judge that is named.

    Raises:
        InputError: one does not.
    """
    there = {text.partition("=")[0] for text in judges}
    for flag, needed in OF_JUDGES.items():
        if given[flag].value and not there.intersection(needed):
            raise InputError(f"{flag} is for --judge {' or '.join(needed)}, which is not there")
    for flag in ("fid_weights", "reference_judge"):
        if given[flag].value is not None and given.reference is None:
            raise InputError(f"{flag} is for --reference, which is not there")
    if given.fid_weights is not None and given.reference_judge is not None:
        raise InputError("fid_weights and reference_judge are both there; leave one out")


def check_reference(folder: str, keep: bool) -> None:
    """Check that pictures are kept, and that there is a folder to compare them with.

    Raises:
        InputError: there is not.
    """
    if not Path(folder).is_dir():
        raise InputError(f"reference = {folder!r} is not a folder; check the path")
    if not keep:
        raise InputError("reference: FID needs --keep_pictures")


@exits_cleanly
@listening()
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv, "prompts are given with --prompts")
    given = flags.FLAGS
    from erase.benchmark.prompt_sets import read_prompt_set
    from erase.benchmark.registry import JudgeOptions, open_distance, open_judge, parse_judge
    from flux_jax.settings import check_sampling, check_seeds
    from flux_jax.system.files import check_folder
    from flux_jax.weights.hub import check_model

    check_sampling(given.steps, given.guidance or 0.0)
    prompts = read_prompt_set(given.prompts, given.column, given.where)
    for text in given.judge:
        parse_judge(text)
    check_used(given, given.judge)
    check_seeds([given.seed, given.seed + len(prompts.prompts[: given.first]) - 1])
    check_folder(given.out, "out")
    rows = checked_rows(given.adapter, given.base)
    if not given.judge and not given.keep_pictures:
        raise InputError("judge is missing: without --keep_pictures nothing would be left")
    if given.reference is not None:
        check_reference(given.reference, given.keep_pictures)
    check_model(given.model)
    from erase.runtime import lock, processes

    processes.initialise(given)
    from erase.benchmark.run import BenchmarkOptions, benchmark
    from erase.report.benchmarks import write_tables
    from erase.runtime.memory import explains_memory, mends_of_drawing

    options = BenchmarkOptions(
        given.steps,
        given.guidance,
        given.height,
        given.width,
        given.own_sizes,
        given.seed,
        given.batch,
        given.first,
        given.keep_pictures,
        None if given.reference is None else Path(given.reference),
        given.fid_weights,
        given.reference_judge,
    )
    judging = JudgeOptions(
        tuple(given.find), tuple(given.erased), given.trunk, given.clip_model, given.template
    )
    out = Path(given.out)
    mends = mends_of_drawing(given.batch, given.height, given.width)
    with processes.first_speaks(), explains_memory(mends):
        judges = {text: open_judge(text, judging) for text in given.judge}
        if given.reference is not None:
            # Before drawing, since its package may be missing.
            open_distance(given.fid_weights, given.reference_judge)
        with lock.locked([lock.of_folder(out)]):
            result = benchmark(given.model, prompts, rows, judges, out, options)
            say(write_tables(out, [result]))


if __name__ == "__main__":
    define_flags()
    with ends():
        app.run(main, flags_parser=parse_flags)
