"""From configurations to prepared runs: synonyms, sentences, irrelevant words, plan and folder.

In two steps. `resolve_runs` needs no model, so that a command can refuse what does not fit before
it opens one; `prepare` then makes all else. Neither writes anything.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from erase.config.schema import Config
from erase.data.plan import Plan
from erase.data.words.irrelevant import Words
from erase.data.words.sentences import Sentences, add_generated_prompts
from erase.methods.configured import irrelevant_words, plan_of, with_synonyms
from erase.runs import RunConfig
from erase.runtime import processes
from erase.runtime.results import RunRecord
from flux_jax.pipeline import Pipeline


@dataclass(frozen=True)
class ResolvedRun:
    """A run whose synonyms are known.

    Attributes:
        config: with its synonyms.
        synonyms_source: where they come from, or why there are none, in words.
    """

    config: Config
    synonyms_source: str

    def description(self, command: str) -> RunRecord:
        """What the run's `config.json` holds.

        Args:
            command: how the run was started.
        """
        values = dataclasses.asdict(self.config)
        values |= {"command": command, "synonyms_from": self.synonyms_source}
        # Through JSON, so that it compares with what an earlier start wrote.
        return json.loads(json.dumps(values))


@dataclass(frozen=True)
class PreparedRun:
    """All that is known of a run before anything is computed for it.

    Attributes:
        name: "" where it is the only one.
        config: with its synonyms, and the generated sentences among its prompts.
        synonyms_source: where the synonyms come from, in words.
        sentences: those that a language model wrote, and their source.
        irrelevant: words for other things, and their source.
        plan: what its bank is made of.
        folder: its own, in which what it writes stands.
    """

    name: str
    config: Config
    synonyms_source: str
    sentences: Sentences
    irrelevant: Words
    plan: Plan
    folder: Path


def resolve_runs(configs: Mapping[str, Config]) -> dict[str, ResolvedRun]:
    """Runs with their synonyms, by name; no weights are read.

    Raises:
        InputError: a concept has no such sense, or the database that NLTK found is damaged.
    """
    return {name: ResolvedRun(*with_synonyms(config)) for name, config in configs.items()}


def runs_with_synonyms(configs: Mapping[str, Config]) -> dict[str, Config]:
    """Configurations with their synonyms, for commands that need no more; see `resolve_runs`."""
    return {name: run.config for name, run in resolve_runs(configs).items()}


def prepare(
    resolved: Mapping[str, ResolvedRun], pipe: Pipeline, workdir: Path
) -> dict[str, PreparedRun]:
    """Prepares runs; nothing is written, and no more than tokenizers of the model is used.

    Args:
        resolved: the runs, by name.
        pipe: the frozen model.
        workdir: holds the runs' folders, whose sentences and words serve where they keep any.

    Raises:
        InputError: a kept file is damaged, a list of words is too short, or a prompt or a size
            cannot be used.
    """
    folders = {name: workdir / name for name in resolved}
    # One process asks the language model; the others hear from it.
    prompted = processes.from_first(
        lambda: {n: add_generated_prompts(run.config, folders[n]) for n, run in resolved.items()},
        dict[str, tuple[RunConfig, Sentences]],
    )
    irrelevant = processes.from_first(
        lambda: {n: irrelevant_words(config, folders[n]) for n, (config, _) in prompted.items()},
        dict[str, Words],
    )
    return {
        name: PreparedRun(
            name=name,
            config=config,
            synonyms_source=resolved[name].synonyms_source,
            sentences=sentences,
            irrelevant=irrelevant[name],
            plan=plan_of(config, pipe, irrelevant[name]),
            folder=folders[name],
        )
        for name, (config, sentences) in prompted.items()
    }


def configs_of(runs: Mapping[str, PreparedRun]) -> dict[str, Config]:
    """The runs' configurations, by name."""
    return {name: run.config for name, run in runs.items()}


def plans_of(runs: Mapping[str, PreparedRun]) -> dict[str, Plan]:
    """What the runs' banks are made of, by name."""
    return {name: run.plan for name, run in runs.items()}


def shared_settings(configs: Mapping[str, Config]) -> Config:
    """A configuration to read what all runs of a command share; see `erase.runs`.

    Runs that train at once differ in few fields (their concept, words and seed among them), which
    must not be read from it.
    """
    return next(iter(configs.values()))
