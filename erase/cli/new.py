"""Writes a configuration for a concept: sentences and words for it, to be read and changed.

    python -m erase new guitar --model models/emoji-flux --out runs/guitar.py

Other words for the concept come from the model's folder, else from WordNet, with the definition of
the sense that was taken; `--sense 2` takes another. What the file does not say follows the model.
"""

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from convert.arguments import Parser
from erase.config.schema import KINDS, PARTS_OF_SPEECH, Config
from erase.methods.settings.erase_anything import Settings
from flux_jax.errors import InputError, exits_cleanly, nearest, printable

INDENT = " " * 8
WIDTH = 92
HEAD = '''"""Erases a concept; written by `erase-anything new`, to be changed.

    erase-anything train --config FILE --workdir runs/NAME

What is not said here follows the model, then the defaults in erase/config/schema.py.
"""

from ml_collections import ConfigDict

from erase.runs import configure


def get_config(preset: str = "") -> ConfigDict:
    """The run; `--config FILE:paper` has the values of a preset."""
    return configure(
        preset,
'''


def compose(changes: dict[str, Any]) -> tuple[Config, str, list[str]]:
    """The configuration of a concept with its synonyms, where these come from, what is missing.

    Args:
        changes: fields that the user gives; the concept and the model among them.

    Raises:
        InputError: a field cannot be used, or the model knows its things and not this one.
    """
    from erase.config import model_file
    from erase.runs import configure, load_runs
    from erase.runs.defaults import of_model
    from flux_jax.weights.hub import NAME

    path, concept = changes["model"]["path"], changes["concept"]
    # What lies in a folder that is here, as "models/x" would, is no name on the hub.
    on_hub = NAME.fullmatch(path) and not Path(path).parent.is_dir()
    if not Path(path).exists() and not on_hub:
        raise InputError(f"model = {path!r} does not exist; check the path")
    if of_model(path) is None and on_hub:
        raise InputError(
            f"model = {path!r} is no folder here, and on the hub only models named FLUX.1-... are "
            "known before they are fetched: check the path, or fetch the model and give its folder"
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
    # Imports JAX, which whatever is refused above need not wait for.
    from erase.methods.configured import with_synonyms

    config, source = with_synonyms(config)
    return config, source, list(missing(config))


def missing(config: Config) -> Iterator[str]:
    """What a run would go without, and what to do about it."""
    if not config.synonyms:
        yield (
            "No other word for the concept: Acc_g is not counted, and L_rsc leads towards other "
            "things alone. Name some in `synonyms`, or another `sense`."
        )
    if config.evaluation.judge is None:
        yield (
            "No judge: there are pictures before and after, but no counts. Name a judge's folder "
            'as evaluation={"judge": ...}.'
        )
    if not config.method_settings(Settings).upper.prompts:
        yield (
            "No other pictures to hold on to: L_lora holds on to those of the first sentence, as "
            'the paper does. Name others as upper={"prompts": (...)}.'
        )


def text_of(config: Config, source: str, lacks: Iterable[str], given: dict[str, Any]) -> str:
    """The configuration's file.

    Args:
        config: with its synonyms.
        source: where these come from.
        lacks: what is missing.
        given: fields that the user has given; of those without words of their own all are written.
    """
    lines = [f"concept={literal(config.concept)},"]
    lines.append(f'model={{"path": {literal(config.model.path)}}},')
    plain = {name: given[name] for name in ("kind", "part_of_speech", "sense") if given.get(name)}
    if config.kind and "kind" not in plain:
        plain = {"kind": config.kind, **plain}
    lines += [f"{name}={literal(value)}," for name, value in plain.items()]
    lines += ['# Sentences with the concept, which stands at "{}".', *listed("prompts", config)]
    lines += comment(f"Other words for it: {source}.")
    lines += listed("synonyms", config) if config.synonyms else ['# synonyms=("...",),']
    lines += ["# Words for other things.", *listed("irrelevant", config)]
    evaluation = config.evaluation
    lines += ["# What is drawn before and after.", "evaluation={"]
    for name in ("templates", "others"):
        if values := getattr(evaluation, name):
            lines += [f'    "{name}": (', *(f"        {literal(v)}," for v in values), "    ),"]
    lines.append("},")
    for each in lacks:
        lines += comment(each)
    return HEAD + "".join(f"{INDENT}{line}\n" for line in lines) + "    )\n"


def listed(name: str, config: Config) -> list[str]:
    """A field with texts, a line each."""
    return [f"{name}=(", *(f"    {literal(text)}," for text in getattr(config, name)), "),"]


def literal(text: str) -> str:
    """A text as Python has it, in double quotes where it holds none."""
    written = repr(text)
    return f'"{written[1:-1]}"' if written[0] == "'" and '"' not in text else written


def comment(text: str) -> list[str]:
    """A text as comments, whatever it holds."""
    plain = " ".join(printable(text).split())
    return textwrap.wrap(
        plain, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def table_of(config: Config, source: str, lacks: Iterable[str]) -> Table:
    """What the file holds, for the terminal."""
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
    table = Table("", "", title=Text(printable(f"Erasing {config.concept}")), show_header=False)
    for name, value in rows.items():
        # As text, since square brackets would be taken for markup.
        table.add_row(name, Text(printable(value)))
    return table


def more(values: Sequence[str], shown: int) -> str:
    """How many of a list are not shown."""
    return f" and {len(values) - shown} more" if len(values) > shown else ""


def file_name(concept: str) -> str:
    """A file's name for a concept, of letters, digits and _ alone."""
    word = re.sub(r"\W+", "_", concept.casefold()).strip("_")[:60]
    return f"{word or 'concept'}.py"


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = Parser("erase new", __doc__)
    parser.add_argument("concept", metavar="CONCEPT", help="what is to be erased")
    parser.add_argument("--model", required=True, help="folder, or name on the hub")
    parser.add_argument("--out", type=Path, help="the file; by default CONCEPT.py")
    parser.add_argument("--kind", choices=KINDS, help="by default what the model knows")
    parser.add_argument(
        "--part_of_speech", choices=PARTS_OF_SPEECH, help="for WordNet; by default noun"
    )
    parser.add_argument("--sense", help="in WordNet: its number, or a name such as turtle.n.02")
    options = parser.parse_args(arguments)
    given = {
        name: value
        for name in ("kind", "part_of_speech", "sense")
        if (value := getattr(options, name)) is not None
    }
    out = options.out or Path(file_name(options.concept))
    if out.exists():
        raise InputError(f"out = {str(out)!r} exists already: name another file with --out")
    model = {"path": options.model}
    config, source, lacks = compose({"concept": options.concept, "model": model} | given)
    from erase.runtime.files import write

    write(out, text_of(config, source, lacks, given))
    Console().print(table_of(config, source, lacks))
    command = ["erase-anything", "train", "--config", str(out), "--workdir", f"runs/{out.stem}"]
    print(f"{out} is written; change what you like, then\n\n    {shlex.join(command)}\n")


if __name__ == "__main__":
    main()
