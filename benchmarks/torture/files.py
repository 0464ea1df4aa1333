"""Damaged files: each is read, or refused with a message; none takes long or much memory.

    python -m benchmarks.torture.run --parts files

Every reader gets files that are valid but for one damage.
"""

import contextlib
import io
import random
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from benchmarks.experiments.study import StudyResult
from benchmarks.torture import samples, weights
from benchmarks.torture.mutations import damage, put
from benchmarks.torture.row import Row
from convert import inspect
from convert.adapters.files import read_adapter, read_layers
from erase.compose import fusion
from erase.data import captioned_folder
from erase.data.words.irrelevant import Words
from erase.data.words.language_model import read_kept
from erase.data.words.sentences import Sentences
from erase.evaluation.emoji_judge import NetworkJudge
from erase.report import card, report
from erase.runs import configure, load_runs
from erase.runtime import run_folder
from erase.runtime.records import read_run
from erase.training import checkpoints, variants
from erase.training.resume_check import differences
from flux_jax.errors import EraseError
from flux_jax.models.tokenizers import read_tokenizer
from flux_jax.sampling import Schedule
from flux_jax.weights.loading import COMPONENTS, abstract_params
from flux_jax.weights.mapping import check
from flux_jax.weights.safetensors_files import read_component
from flux_jax.weights.source import TorchSource, open_source, read_schedule

# Seconds after which a reader hangs.
LIMIT = 10.0
SEED = 7


@dataclass(frozen=True)
class Reader:
    """A reader, and files for it.

    Attributes:
        what: name in the table.
        tries: number of damaged files in a whole test.
        make: writes a folder of valid files.
        read: reads the folder.
        files: glob patterns of the files to damage.
    """

    what: str
    tries: int
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ("**/*",)


class HangsError(BaseException):
    """A reader has not ended in time; not caught by `except Exception`."""


def _read_log(folder: Path) -> None:
    log = folder / run_folder.METRICS
    run_folder.lines_until(log, 4)
    list(run_folder.read_records(log))


def _read_run(folder: Path) -> None:
    head = {"question": "q", "concepts": ["cat"], "seeds": [0], "pictures": 4}
    for read in (
        lambda: report.write(folder),
        lambda: card.of_run(folder),
        lambda: read_kept(Sentences, folder / run_folder.SENTENCES),
        lambda: read_kept(Words, folder / run_folder.IRRELEVANT),
        lambda: variants.resume_results(
            StudyResult, folder / "results.json", head, "variants", "study"
        ),
        lambda: list(differences(read_run(folder, complete=False), {"concept": "cat"})),
    ):
        with contextlib.suppress(EraseError):
            read()


def _read_configs(folder: Path) -> None:
    for name, component in COMPONENTS.items():
        with contextlib.suppress(EraseError):
            source = open_source(folder, name)
            sizes: Any = component.config(source.config)
            assert sizes is not None
            if isinstance(source, TorchSource) and name.startswith("text_encoder"):
                check(source.table, source.tensors, abstract_params(name, source.config))
    with contextlib.suppress(EraseError):
        Schedule.from_dict(read_schedule(folder, guidance=True)).sigmas(4, 64)
    load_runs(configure(concept="cat", model={"path": str(folder)}))


def _read_tokenizers(folder: Path) -> None:
    for name, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        with contextlib.suppress(EraseError):
            config = open_source(folder, encoder).config
            read_tokenizer(folder, name, COMPONENTS[encoder].config(config))


def _read_pictures(folder: Path) -> None:
    captioned_folder.read(folder, 8, 8)


def _read_adapter(folder: Path) -> None:
    layers = read_layers(folder)
    rows = inspect.lines(layers)
    inspect.header_table(folder, layers, rows)
    inspect.target_table(rows)
    read_adapter(folder)
    fusion.settings(str(folder), layers.metadata)


READERS = (
    Reader("a run's results", 1000, samples.write_run, _read_run),
    Reader("a run's log", 700, samples.write_log, _read_log),
    Reader("a checkpoint's manifest", 500, samples.write_checkpoint, checkpoints.fault),
    Reader(
        "a model's configuration",
        500,
        samples.write_model,
        _read_configs,
        ("*.json", "*er/*config.json", "vae/*.json", "text_encoder*/config.json"),
    ),
    Reader("a model's tokenizers", 400, samples.write_model, _read_tokenizers, ("tokenizer*/*",)),
    Reader("a judge", 200, samples.write_judge, NetworkJudge.load),
    Reader("pictures and captions", 700, samples.write_pictures, _read_pictures),
    Reader("shards and their index", 500, samples.write_shards, read_component),
    *(
        Reader(
            f"an adapter ({layout})",
            200,
            lambda folder, layout=layout: samples.write_adapter(folder, layout),
            _read_adapter,
        )
        for layout in ("diffusers", "kohya", "original", "flax", "peft", *samples.READ_ONLY)
    ),
    Reader("a model in one file", 500, weights.write_single, weights.read_single),
    Reader("GGUF", 500, weights.write_gguf, weights.read_gguf),
    Reader("NF4, FP4, int8 and fp8", 500, weights.write_quantised, weights.read_quantised),
    Reader("a model's Orbax checkpoint", 300, weights.write_orbax, weights.read_orbax),
    Reader("a run's checkpoints", 200, weights.write_checkpoints, weights.resume),
    # Damage that the manifest does not show.
    Reader(
        "a run's checkpoints, sealed again", 300, weights.write_checkpoints, weights.resume_sealed
    ),
)


def rows(scale: float, folder: Path) -> Iterator[Row]:
    """Damages files and reads them.

    Args:
        scale: share of the tries.
        folder: an empty folder.
    """
    for number, reader in enumerate(READERS):
        yield row(reader, max(1, round(scale * reader.tries)), folder / str(number))


def row(reader: Reader, tries: int, folder: Path) -> Row:
    """Damages files of one reader in turn, and counts those that were read or refused.

    Args:
        reader: the reader.
        tries: number of damaged files.
        folder: an empty folder, or one to create.
    """
    # Reproducible sampling; not used for security.
    rng = random.Random(f"{SEED} {reader.what}")  # nosec B311
    reader.make(folder)
    files = sorted({file for pattern in reader.files for file in folder.glob(pattern)})
    files = [file for file in files if file.is_file() and not file.is_symlink()]
    faults: Counter[str] = Counter()
    slowest, begun = 0.0, time.perf_counter()
    for _ in range(tries):
        file, content, name = damage(rng, files)
        started = time.perf_counter()
        if fault := _fault(reader, folder):
            faults[f"{file.name} ({name}): {fault}"] += 1
        slowest = max(slowest, time.perf_counter() - started)
        put(file, content)
    note = "; ".join(faults) or f"the slowest took {slowest:.1f} s"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    held = tries - sum(faults.values())
    return Row(reader.what, tries, held, time.perf_counter() - begun, peak, note)


def _fault(reader: Reader, folder: Path) -> str | None:
    """How a reader fails: by any error but this project's, or by taking too long."""

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise HangsError(f"not done after {LIMIT:g} s")

    former = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    quiet = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
            contextlib.redirect_stderr(quiet),
            contextlib.redirect_stdout(quiet),
        ):
            warnings.simplefilter("ignore")
            reader.read(folder)
    except EraseError:
        return None
    except (KeyboardInterrupt, SystemExit):
        raise
    # What is looked for.
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"{type(error).__name__}: {str(error)[:80]} at {Path(last.filename).name}:{last.lineno}"
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    return None
