"""Write a configuration for a concept: sentences and words for it, to read and edit.

    erase-anything new guitar --model models/emoji-flux --out runs/guitar.py

Synonyms come from the model's folder, else from WordNet, with the definition of the chosen sense;
`--sense 2` chooses another. Fields that are not in the file get the model's defaults.
"""

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from convert.arguments import Parser
from convert.tables import Table, show
from erase.config.schema import KINDS, PARTS_OF_SPEECH, Config
from erase.methods.settings.erase_anything import Settings
from flux_jax.errors import InputError, exits_cleanly, nearest, printable, say

INDENT = " " * 8
WIDTH = 92
HEAD = '''"""Erase a concept. Written by `erase-anything new`, to be edited.

    erase-anything train --config FILE --workdir runs/NAME

Other fields get the model's defaults, then those in erase/config/schema.py.
"""

from ml_collections import ConfigDict

from erase.runs import configure


def get_config(preset: str = "") -> ConfigDict:
    """Configure the run; `--config FILE:paper` uses the values of a preset."""
    return configure(
        preset,
'''


def compose(changes: dict[str, Any]) -> tuple[Config, str, list[str]]:
    """Build the configuration of a concept, with its synonyms.

    Args:
        changes: fields set by the user, including the concept and the model.

    Returns:
        The configuration, the source of its synonyms, and notes on what is missing.

    Raises:
        InputError: a field cannot be used, or the model lists its things and the concept is none.
    """
    from erase.config import model_file
    from erase.runs import configure, load_runs
    from erase.runs.defaults import of_model
    from flux_jax.weights.hub import NAME, check_shipped

    path, concept = changes["model"]["path"], changes["concept"]
    check_shipped(path)
    # A path in an existing folder, such as "models/x", is not a name on the hub.
    on_hub = NAME.fullmatch(path) and not Path(path).parent.is_dir()
    if not Path(path).exists() and not on_hub:
        raise InputError(f"model = {path!r} does not exist; check the path")
    if of_model(path) is None and on_hub:
        raise InputError(
            f"model = {path!r} is not a local folder, and on the hub only models named FLUX.1-... "
            "are known without a download: check the path, or download the model and give its "
            "folder"
        )
    model = model_file.read(path)
    if model and model.things and model.find(concept) is None:
        names = [thing.phrase for thing in model.things]
        near = nearest(concept, names)
        hint = near if near.startswith("did") else f"choose from {path}/{model_file.FILE}"
        raise InputError(
            f"concept = {concept[:60]!r} is none of the {len(names)} things that the model knows; "
            f"{hint}"
        )
    config = load_runs(configure(**changes))[""]
    # Imports JAX, so it comes after the quick checks.
    from erase.methods.planning.configured import with_synonyms

    config, source = with_synonyms(config)
    return config, source, list(missing(config))


def missing(config: Config) -> Iterator[str]:
    """Describe what a run would lack, and how to provide it."""
    if not config.synonyms:
        yield (
            "No other word for the concept: Acc_g is not counted, and L_rsc leads only towards "
            "other things. Add `synonyms`, or choose another `sense`."
        )
    if config.evaluation.judge is None:
        yield (
            "No judge: there are pictures before and after, but no counts. Set a judge's folder, "
            'evaluation={"judge": ...}.'
        )
    if not config.method_settings(Settings).upper.prompts:
        yield (
            "No other pictures to preserve: L_lora preserves those of the first sentence, as in "
            'the paper. Set others, upper={"prompts": (...)}.'
        )


def text_of(config: Config, source: str, lacks: Iterable[str], given: dict[str, Any]) -> str:
    """Write the text of the configuration file.

    Args:
        config: the configuration, with its synonyms.
        source: source of the synonyms.
        lacks: notes on what is missing.
        given: fields set by the user; the kind, part of speech and sense are written if set.
    """
    lines = [f"concept={literal(config.concept)},"]
    lines.append(f'model={{"path": {literal(config.model.path)}}},')
    plain = {name: given[name] for name in ("kind", "part_of_speech", "sense") if given.get(name)}
    if config.kind and "kind" not in plain:
        plain = {"kind": config.kind, **plain}
    lines += [f"{name}={literal(value)}," for name, value in plain.items()]
    lines += ['# Sentences with the concept in place of "{}".', *listed("prompts", config)]
    lines += comment(f"Other words for it: {source}.")
    lines += listed("synonyms", config) if config.synonyms else ['# synonyms=("...",),']
    lines += ["# Words for other things.", *listed("irrelevant", config)]
    evaluation = config.evaluation
    lines += ["# Pictures before and after.", "evaluation={"]
    for name in ("templates", "others"):
        if values := getattr(evaluation, name):
            lines += [f'    "{name}": (', *(f"        {literal(v)}," for v in values), "    ),"]
    lines.append("},")
    for each in lacks:
        lines += comment(each)
    return HEAD + "".join(f"{INDENT}{line}\n" for line in lines) + "    )\n"


def listed(name: str, config: Config) -> list[str]:
    """Format a field of several texts, one per line."""
    return [f"{name}=(", *(f"    {literal(text)}," for text in getattr(config, name)), "),"]


def literal(text: str) -> str:
    """Format a text as a Python literal, in double quotes if it contains none."""
    written = repr(text)
    return f'"{written[1:-1]}"' if written[0] == "'" and '"' not in text else written


def comment(text: str) -> list[str]:
    """Format any text as comment lines."""
    plain = " ".join(printable(text).split())
    return textwrap.wrap(
        plain, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def table_of(config: Config, source: str, lacks: Iterable[str]) -> Table:
    """Summarize the file for the terminal."""
    upper = config.method_settings(Settings).upper
    rows = {
        "kind": config.kind or config.part_of_speech,
        "sentences": "\n".join(config.prompts[:6]) + more(config.prompts, 6),
        "other words": ", ".join(config.synonyms) or "none",
        "from": source,
        "other things": ", ".join(config.irrelevant),
        "pictures to keep": ", ".join(upper.prompts[:3]) + more(upper.prompts, 3)
        or "those of the first sentence",
        "size": f"{config.height} x {config.width}, {config.iterations} iterations",
        "judge": config.evaluation.judge or "none",
        "missing": "\n".join(lacks) or "nothing",
    }
    table = Table("", "", title=f"Erasing {config.concept}", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def more(values: Sequence[str], shown: int) -> str:
    """Format the number of values that are not shown."""
    return f" and {len(values) - shown} more" if len(values) > shown else ""


def file_name(concept: str) -> str:
    """Name a file after a concept, with letters, digits and _ only."""
    word = re.sub(r"\W+", "_", concept.casefold()).strip("_")[:60]
    return f"{word or 'concept'}.py"


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = Parser("erase-anything new", __doc__)
    parser.add_argument("concept", metavar="CONCEPT", help="concept to erase")
    parser.add_argument("--model", required=True, help="folder, or name on the hub")
    parser.add_argument("--out", type=Path, help="file to write; by default CONCEPT.py")
    parser.add_argument("--kind", choices=KINDS, help="by default from the model")
    parser.add_argument(
        "--part_of_speech", choices=PARTS_OF_SPEECH, help="for WordNet; by default noun"
    )
    parser.add_argument("--sense", help="sense in WordNet: a number, or a name such as turtle.n.02")
    options = parser.parse_args(arguments)
    given = {
        name: value
        for name in ("kind", "part_of_speech", "sense")
        if (value := getattr(options, name)) is not None
    }
    out = options.out or Path(file_name(options.concept))
    if out.exists():
        raise InputError(f"out = {str(out)!r} already exists: choose another file with --out")
    model = {"path": options.model}
    config, source, lacks = compose({"concept": options.concept, "model": model} | given)
    from erase.runtime.files import write

    write(out, text_of(config, source, lacks, given))
    show(table_of(config, source, lacks))
    command = ["erase-anything", "train", "--config", str(out), "--workdir", f"runs/{out.stem}"]
    say(f"Wrote {out}. Edit it as you like, then run\n\n    {shlex.join(command)}\n")


if __name__ == "__main__":
    main()
