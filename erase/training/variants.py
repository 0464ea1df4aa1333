"""Train variants of runs for comparisons, with result files that can be resumed."""

import contextlib
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from erase.config.schema import Config, Evaluation
from erase.data.words.language_model import describe
from erase.model import digest
from erase.model.adapters import read_adapter
from erase.runtime import processes, run_folder, signals
from erase.runtime.cache import Cache, digest_of
from erase.runtime.files import write
from erase.runtime.results import MethodRecord
from erase.runtime.run_folder import CHECKPOINTS, METRICS
from erase.training import checkpoints, guard
from erase.training.export import write_adapter
from erase.training.make_adapters import make_adapters
from erase.training.prepare import prepare, resolve_runs, shared_settings
from erase.training.resume_check import differences
from flux_jax.errors import InputError, RunError, counted, shortened
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.system.json_files import read_typed

ResultT = TypeVar("ResultT")

# Settings that change the speed of a measurement, not its result.
SPEED = ("mesh", "checkpoints", "guard", "bank.batch", "evaluation.batch")
# Settings that results do not depend on, not even in the last bit.
FREE = ("mesh", "checkpoints", "guard", "kind", "sense")


def resume_results(
    kind: type[ResultT], out: Path, head: Mapping[str, object], parts: str, what: str
) -> ResultT:
    """Return the results that a file already contains, or empty results.

    Args:
        kind: `TypedDict` of the file's content.
        out: the file.
        head: entries that identify the results.
        parts: key of the individual results.
        what: name of the content, for messages.

    Raises:
        InputError: the file contains other results, or is damaged.
    """
    result: Any = {**head, parts: {}}
    if out.is_file():
        result = read_typed(kind, out, mend="name another file")
    if {key: result.get(key) for key in head} != head:
        raise InputError(f"out = {str(out)!r} holds another {what}: name another file")
    return cast(ResultT, result)


def unmeasured(
    out: Path, measured: Mapping[str, MethodRecord], methods: Mapping[str, Mapping[str, Config]]
) -> dict[str, dict[str, Any]]:
    """Return the settings of the methods that a file does not contain yet, by method.

    The settings are those of a method's first run.

    Args:
        out: the file.
        measured: the file's record of each method, which includes its `settings`.
        methods: the runs of each method, by method and run.

    Raises:
        InputError: the file contains one of them with other settings.
    """
    fresh = {}
    for name, runs in methods.items():
        # Through JSON, to compare with the file's content.
        now = json.loads(json.dumps(asdict(shared_settings(runs))))
        if name not in measured:
            fresh[name] = now
        elif lines := list(differences(measured[name].get("settings", {}), now, SPEED)):
            raise InputError(
                f"out = {str(out)!r} holds {name} with other settings: name another file\n       "
                + "\n       ".join(lines)
            )
    return fresh


def learnt_from(config: Config) -> Config:
    """Return the settings that training depends on; all others have their defaults."""
    return config if config.early_stop.every else replace(config, evaluation=Evaluation())


@dataclass(frozen=True)
class Intermediate:
    """Intermediate results of a comparison, in a folder beside its file; it resumes with them.

    Attributes:
        root: the folder; removed when the comparison is finished.
        files: digest of the files that its runs read.
    """

    root: Path
    files: str

    @classmethod
    def of(
        cls, out: Path, result: MutableMapping[str, Any], configs: Mapping[str, Config]
    ) -> "Intermediate":
        """Open the intermediate results, and record the files that the runs read in the result.

        Args:
            out: JSON file of the results.
            result: content of the file; one of an earlier version has no `inputs`.
            configs: configurations of all runs, by name.

        Raises:
            InputError: a file has changed since the file's results were computed.
        """
        records: dict[str, digest.FileRecord] = {}
        for evaluation in (False, True):
            for each in digest.of_runs(configs, evaluation=evaluation).values():
                records |= each
        now = {name: each.sha256 for name, each in sorted(records.items())}
        there = result.get("inputs") or now
        # Other methods may read more files.
        if changed := sorted(name for name in there if now.get(name) != there[name]):
            raise InputError(
                f"out = {str(out)!r} was computed with other files: {shortened(changed[0])} "
                f"({counted(len(changed), 'file')} in all) changed since; restore it, or name "
                "another file"
            )
        result["inputs"] = now
        first = shared_settings(configs)
        how = [first.model.dtype, first.model.quantize, first.text_tokens]
        return cls(out.with_name(f"{out.name}.cache"), digest_of([now, how]))

    def part(self, name: str, inputs: object) -> Cache:
        """Open the cache of a part, which depends on the files and further inputs."""
        return Cache.opened(self.root, name, [self.files, inputs])

    def repeat_encoding(self, pipe: Pipeline) -> None:
        """Encode what was encoded before an interruption, in the same batches: the same bits."""
        for prompts, batch in self.part("encoded", None).value("all", list):
            pipe.remember(prompts, batch)

    def save_encoding(self, pipe: Pipeline) -> None:
        """Save what `repeat_encoding` needs; call this before a result is saved."""
        self.part("encoded", None).write("all", json.dumps(pipe.encoded).encode())

    def remove(self) -> None:
        """Remove all intermediate results."""
        if processes.first():
            shutil.rmtree(self.root, ignore_errors=True)


def runs_digest(configs: Mapping[str, Config]) -> str:
    """Return a digest of all settings of runs that their results depend on."""
    return digest_of(
        {n: {k: v for k, v in asdict(c).items() if k not in FREE} for n, c in configs.items()}
    )


def train_variant(
    configs: Mapping[str, Config], pipe: Pipeline, intermediate: Intermediate | None = None
) -> tuple[dict[str, Adapter], dict[str, int], float]:
    """Train a variant's runs; with a folder for intermediate results, training resumes there.

    Returns:
        The adapters and the number of iterations of each, by the run's name, and the seconds of
        training, including compilation.

    Raises:
        InputError: a setting does not fit the model, or a run diverged.
        PreemptedError: the system requested a stop; with `intermediate`, all is saved.
    """
    if intermediate is None:
        with tempfile.TemporaryDirectory() as folder:
            return _train(configs, pipe, Path(folder))
    # Variants of the evaluation share their training.
    learnt = {name: learnt_from(config) for name, config in configs.items()}
    cache = intermediate.part("training", runs_digest(learnt))
    workdir = cache.folder / "runs"
    if (trained := _trained(configs, cache, workdir)) is not None:
        return trained
    workdir.mkdir(parents=True, exist_ok=True)
    adapters, iterations, seconds = _train(configs, pipe, workdir)
    digests = {}
    for name, adapter in adapters.items():
        processes.from_first(
            functools.partial(write_adapter, adapter, configs[name], workdir / name)
        )
        digests[name] = digest.of_adapter(adapter)
    intermediate.save_encoding(pipe)
    content = {"digests": digests, "iterations": iterations, "seconds": seconds}
    cache.write("trained", json.dumps(content).encode())
    return adapters, iterations, seconds


def _trained(
    configs: Mapping[str, Config], cache: Cache, workdir: Path
) -> tuple[dict[str, Adapter], dict[str, int], float] | None:
    """Return what `train_variant` saved; None if it has not finished or a file is damaged."""
    if (content := cache.read("trained")) is None:
        return None
    saved = json.loads(content)
    try:
        adapters = {name: read_adapter(workdir / name) for name in configs}
    except InputError:
        return None
    if any(digest.of_adapter(adapters[name]) != saved["digests"][name] for name in configs):
        return None
    return adapters, saved["iterations"], saved["seconds"]


def _train(
    configs: Mapping[str, Config], pipe: Pipeline, workdir: Path
) -> tuple[dict[str, Adapter], dict[str, int], float]:
    """Train runs in a folder, from its latest checkpoint if there is one."""
    runs = prepare(resolve_runs(configs), pipe, workdir)
    for run in runs.values():
        run.folder.mkdir(exist_ok=True)
        # A restart must not ask a language model again.
        write(run.folder / run_folder.IRRELEVANT, describe(run.irrelevant))
        if run.config.more_prompts:
            write(run.folder / run_folder.SENTENCES, describe(run.sentences))
    logs = {name: run.folder / METRICS for name, run in runs.items()}
    earlier = max(
        _seconds(log, checkpoints.steps_in(workdir / CHECKPOINTS)) for log in logs.values()
    )
    began = time.perf_counter()
    with signals.listening() as stop:
        adapters = make_adapters(runs, pipe, workdir, stop)
    if lost := [name for name in runs if name not in adapters]:
        raise RunError(guard.no_adapter(lost, shared_settings(configs).guard))
    seconds = round(earlier + time.perf_counter() - began, 1)
    counts = {n: len(log.read_text().splitlines()) for n, log in logs.items() if log.is_file()}
    return adapters, dict.fromkeys(configs, 0) | counts, seconds


def _seconds(log: Path, steps: Sequence[int]) -> float:
    """Return the seconds of the iterations before an interruption, up to the last checkpoint."""
    total = 0.0
    for line in log.read_text("utf-8", "replace").splitlines() if steps and log.is_file() else ():
        with contextlib.suppress(ValueError):
            record = run_folder.parse_record(line)
            total += (record["seconds"] or 0.0) if (record["step"] or 0) <= steps[-1] else 0.0
    return total
