"""What a run takes for its concept, shown before anything costs time, and with its results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from erase.runtime.results import IrrelevantRecord, RunRecord, SentencesRecord
from flux_jax.errors import counted

# Sentences, and words of a list, that are shown; runs in one table.
SENTENCES, WORDS, RUNS = 3, 12, 4


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        name: what it is.
        words: the first of them, as text, and how many there are where there are more.
        source: where they come from; "" where nobody asks.
    """

    name: str
    words: str
    source: str = ""


def lines(
    concept: str,
    prompts: Sequence[str],
    prompts_from: str,
    synonyms: Sequence[str],
    synonyms_from: str,
    others: Sequence[str],
    others_from: str,
) -> list[Line]:
    """The words of a run.

    Args:
        concept: what is erased.
        prompts: sentences with it.
        prompts_from: where they come from.
        synonyms: other words for it.
        synonyms_from: where they come from, with the sense that was taken.
        others: words for other things.
        others_from: where they come from.
    """
    quoted = [f"“{prompt}”" for prompt in prompts]
    return [
        Line("concept", concept),
        Line("sentences", _first(quoted, SENTENCES), prompts_from),
        Line("synonyms", _first(synonyms, WORDS), synonyms_from),
        Line("other things", _first(others, WORDS), others_from),
    ]


def of_run(config: RunRecord, further: SentencesRecord, others: IrrelevantRecord) -> list[Line]:
    """The words of a run as its folder keeps them; earlier versions kept less.

    Args:
        config: what its `config.json` holds.
        further: what its `sentences.json` holds, if it has one.
        others: what its `irrelevant.json` holds.
    """
    named = [word for pool in others.get("pools", ()) for word in pool]
    return lines(
        config.get("concept", ""),
        [*config.get("prompts", ()), *further.get("sentences", ())],
        further.get("source", "the configuration"),
        config.get("synonyms", ()),
        config.get("synonyms_from", ""),
        named or config.get("irrelevant", ()),
        others.get("source", ""),
    )


def show(runs: Mapping[str, Sequence[Line]]) -> None:
    """Prints the words of runs, of the first few where there are many.

    Args:
        runs: their lines by name; the name is empty where there is only one.
    """
    table = Table(title="What is erased, and the words for it")
    for heading in ("", "words", "from"):
        table.add_column(heading, overflow="fold")
    for name in list(runs)[:RUNS]:
        for line in runs[name]:
            what = f"{name}: {line.name}" if name and line.name == "concept" else line.name
            # Words may look like markup.
            table.add_row(Text(what), Text(line.words), Text(line.source))
        table.add_section()
    console = Console()
    console.print(table)
    if len(runs) > RUNS:
        console.print(
            f"... and of {counted(len(runs) - RUNS, 'more run')}; each one's config.json has them."
        )


def _first(words: Sequence[str], count: int) -> str:
    """The first words, and the number of all where there are more."""
    if not words:
        return "none"
    more = f", ... ({len(words)} in all)" if len(words) > count else ""
    return f"{', '.join(words[:count])}{more}"
