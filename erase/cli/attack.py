r"""Attack an erased concept: disguised prompts, or searches with access to the model.

    erase-anything attack --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball
    erase-anything attack --config configs/emoji_soccer_ball.py --workdir runs/soccer-ball \
        --family inversion,tokens

An attack succeeds if the judge still finds the concept. By default the prompts are disguised as in
the paper's Appendix B. The share of successes is reported for the adapter, for the base model,
which does not understand every disguise either, and for the paper's attention map erasure (Fig. 3),
which needs no training: it mutes the concept's tokens, where the prompt has them. Families that
search attack the base model and the adapter: what fails on the base says nothing on the adapter.

inversion    trains the embedding of a new token through the erased model
tokens       searches for words by projected gradients through the erased model
ring_a_bell  searches for prompts near the concept in the text encoder's space
relearn      trains the erased model further on the concept's pictures; control: harmless pictures

Writes `attacks.json`, `attacks.csv` and the report to the workdir; for several runs, to the folder
of each run, and a summary to the workdir. Another choice of families or budgets replaces them.
Interrupted, the same command resumes; finished, it writes only the report again.
Prompts, except those with synonyms, are sampled from a generator seeded by the evaluation's seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from erase.attacks import families
from erase.cli import evaluate
from erase.cli.ending import ends
from erase.cli.flags import begin, parse_flags
from erase.runtime.signals import listening
from flux_jax.errors import InputError, exits_cleanly, say

# A file of every model in diffusers' layout.
MODEL = "model_index.json"


def define_budgets() -> None:
    """Declare the flags of the families and their budgets."""
    names = ", ".join(families.FAMILIES)
    flags.DEFINE_multi_string(
        "family", [], f"Families of attacks, by commas or repeated: {names}; default: disguises."
    )
    whole = {
        "restarts": "Searches at once, from different starts.",
        "steps": "Steps of the gradient.",
        "batch": "Points of the pictures per step and restart.",
        "examples": "Pictures of the concept that the base model draws to search with.",
        "candidates": "Candidates that each step of a token search rates.",
        "tokens": "Tokens in the concept's place, or of a prompt.",
        "population": "Candidates of a genetic search.",
        "generations": "Generations of a genetic search.",
    }
    for name, text in whole.items():
        flags.DEFINE_integer(name, None, f"{text} {_defaults(name)}")
    fractions = {
        "rate": "Learning rate; of a token relative to the embeddings' standard deviation.",
        "mutation": "Probability that a token of a child is replaced.",
        "eta": "How much of the concept's direction is added to a prompt's encoding.",
    }
    for name, text in fractions.items():
        flags.DEFINE_float(name, None, f"{text} {_defaults(name)}")
    flags.DEFINE_bool(
        "own_words", None, "Whether found prompts may spell the concept or its synonyms."
    )


def _defaults(name: str) -> str:
    """The defaults of a field of budgets, as text."""
    found = {
        family: getattr(search.budget(), name)
        for family, search in families.SEARCHES.items()
        if hasattr(search.budget(), name)
    }
    return f"({', '.join(f'{family}: {value:g}' for family, value in found.items())})"


def wanted_families(given: Any) -> Mapping[str, families.Budget | None]:
    """Return the families and budgets that the flags specify.

    Raises:
        InputError: a family is unknown, or a budget cannot be used.
    """
    names = [name.strip() for text in given.family for name in text.split(",")]
    values = {name: getattr(given, name) for name in families.BUDGETS}
    return families.chosen(names, {n: v for n, v in values.items() if v is not None})


def refuse_merged(path: str) -> None:
    """Refuse a whole model in the adapter's place.

    Raises:
        InputError: the folder is a model, such as one with a merged adapter.
    """
    if (Path(path) / MODEL).is_file():
        raise InputError(
            f"adapter = {path!r:.100} is a whole model: an attack needs the base model and the "
            "adapter apart, and a merged model has no base; name the adapter's file by --adapter"
        )


@exits_cleanly
@listening()
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    # Before a folder is locked.
    wanted_families(flags.FLAGS)
    refuse_merged(flags.FLAGS.adapter or flags.FLAGS.workdir)
    attack_runs(argv)


@evaluate.locks_folders
def attack_runs(argv: Sequence[str]) -> None:
    """Attack the runs that the flags configure."""
    begin(argv)
    pictures, wanted = flags.FLAGS.pictures, wanted_families(flags.FLAGS)
    runs = evaluate.read_runs(flags.FLAGS)
    from erase.attacks.attack import STEM, attack, attack_inputs, finished_attack
    from erase.evaluation.summary import write_summary
    from erase.report import report
    from erase.runtime import run_folder
    from erase.runtime.memory import explains_memory

    workdir = Path(flags.FLAGS.workdir)
    results = {
        name: finished_attack(
            run.folder, attack_inputs(run.files, run.adapter, run.config, pictures, wanted)
        )
        for name, run in runs.items()
    }
    if all(results.values()):
        say(f"{workdir}: attacked already; to repeat it, remove {STEM}.json")
    else:
        pipe = evaluate.open_model_of(runs)
        for name, run in runs.items():
            with explains_memory():
                results[name] = attack(
                    pipe, run.adapter, run.config, run.folder, pictures, run.files, wanted
                )
    for run in runs.values():
        if (run.folder / run_folder.CONFIG).is_file():
            report.write(run.folder)
    if len(runs) > 1:
        every = {name: result for name, result in results.items() if result is not None}
        write_summary(workdir, every, STEM)


if __name__ == "__main__":
    evaluate.define_flags()
    flags.adopt_module_key_flags(evaluate)
    flags.DEFINE_integer("pictures", 64, "Pictures per family.", lower_bound=1)
    define_budgets()
    with ends():
        app.run(main, flags_parser=parse_flags)
