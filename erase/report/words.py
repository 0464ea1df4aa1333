"""The words of a run, as the terminal shows them before training and the report afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convert import tables
from erase.runtime.results import IrrelevantRecord, RunRecord, SentencesRecord
from flux_jax.errors import counted

# At most so many sentences, words of a list and runs are shown in a table.
SENTENCES, WORDS, RUNS = 3, 12, 4


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        name: what the words are used for.
        words: the first of them as text, and their number if there are more.
        source: of the words; "" if it is not recorded.
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
        concept: the erased concept.
        prompts: sentences with it.
        prompts_from: their source.
        synonyms: other words for it.
        synonyms_from: their source, with the sense in WordNet.
        others: words for other concepts.
        others_from: their source.
    """
    quoted = [f"“{prompt}”" for prompt in prompts]
    return [
        Line("concept", concept),
        Line("sentences", _first(quoted, SENTENCES), prompts_from),
        Line("synonyms", _first(synonyms, WORDS), synonyms_from),
        Line("other things", _first(others, WORDS), others_from),
    ]


def of_run(config: RunRecord, further: SentencesRecord, others: IrrelevantRecord) -> list[Line]:
    """The words of a run from the files in its folder; earlier versions wrote fewer.

    Args:
        config: content of `config.json`.
        further: content of `sentences.json`; empty without that file.
        others: content of `irrelevant.json`; empty without that file.
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
    """Prints the words of runs, at most of the first `RUNS`.

    Args:
        runs: their lines by name; the name of a single run is empty.
    """
    table = tables.Table(title="Words of the run" if len(runs) == 1 else "Words of the runs")
    for heading in ("use", "words", "source"):
        table.add_column(heading, overflow="fold")
    for name in list(runs)[:RUNS]:
        for line in runs[name]:
            what = f"{name}: {line.name}" if name and line.name == "concept" else line.name
            table.add_row(what, line.words, line.source)
        table.add_section()
    tables.show(table)
    if len(runs) > RUNS:
        tables.show(
            f"... and {counted(len(runs) - RUNS, 'more run')}: see the config.json of each."
        )


def _first(words: Sequence[str], count: int) -> str:
    """The first words, and the number of all if there are more."""
    if not words:
        return "none"
    more = f", ... ({len(words)} in all)" if len(words) > count else ""
    return f"{', '.join(words[:count])}{more}"
