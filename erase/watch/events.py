"""Event files for TensorBoard and other viewers that read them.

At each start of a run its event file is written anew, from `metrics.jsonl` and the sample pictures
that are left, and tells viewers to drop what they have read before. So they show one line also for
a run that was killed and resumed.
Axis letters: h w picture sides.
"""

import importlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from erase.runtime.run_folder import (
    EVENT_FILE,
    EVENTS,
    METRICS,
    SAMPLES,
    kind_of,
    read_records,
    sample_name,
    samples_in,
)
from flux_jax.errors import note
from flux_jax.system.files import read_bytes
from flux_jax.system.pictures import opened_picture

EXTRA = "pip install 'erase-anything-jax[watch]'"
# Seconds between writes to the file.
EVERY = 5.0


def available() -> bool:
    """Whether TensorBoard's library is installed; a note says so if not."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError:
        note(f"watch: no event files for TensorBoard, which is not installed: {EXTRA}")
        return False
    return True


def _proto(name: str) -> Any:
    """A module of TensorBoard's messages, whose classes are made when it is imported."""
    return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")


@dataclass
class EventLog:
    """A run's event file.

    A disk that is full ends the file with a note, not the training.

    Attributes:
        file: opened for writing; None after an error.
        written: time when it was last written to disk.
    """

    file: BinaryIO | None
    written: float = field(default_factory=time.monotonic)

    def add(self, step: int, values: list[Any]) -> None:
        """Add values of an iteration, see `scalar` and `image`."""
        self.add_event(step=step, summary=_proto("summary").Summary(value=values))
        if time.monotonic() - self.written > EVERY:
            self.flush()

    def add_event(self, **content: Any) -> None:
        """Add an event; its fields are those of TensorBoard's `Event`."""
        if self.file is None:
            return
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = _proto("event").Event(wall_time=time.time(), **content)
        try:
            RecordWriter(self.file).write(event.SerializeToString())
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        """Pass what was added to the system, for viewers."""
        self.written = time.monotonic()
        try:
            if self.file is not None:
                self.file.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        self.flush()
        if self.file is not None:
            self.file.close()
            self.file = None

    def _give_up(self, error: OSError) -> None:
        file, self.file = self.file, None
        note(f"watch: no more events in {getattr(file, 'name', EVENTS)}: {error.strerror}")
        with suppress(OSError):
            if file is not None:
                file.close()


def scalars(metrics: Mapping[str, float], seconds: float | None = None) -> list[Any]:
    """Values of an iteration as TensorBoard's, named by their kind.

    Args:
        metrics: finite losses and norms of gradients, by name.
        seconds: duration of the iteration.
    """
    value = _proto("summary").Summary.Value
    values = {f"{kind_of(name)}/{name}": number for name, number in metrics.items()}
    values |= {} if seconds is None else {"time/seconds": seconds}
    return [value(tag=tag, simple_value=number) for tag, number in values.items()]


def image(folder: Path, step: int, index: int) -> Any:
    """A sample picture of a run's folder as TensorBoard's value, named by its number and prompt.

    Raises:
        InputError: it cannot be read.
    """
    summary, path = _proto("summary").Summary, folder / SAMPLES / sample_name(step, index)
    with opened_picture(path, "remove it") as picture:
        width, height, prompt = *picture.size, str(picture.info.get("prompt", ""))
    content = summary.Image(
        width=width, height=height, colorspace=3, encoded_image_string=read_bytes(path)
    )
    return summary.Value(tag=f"samples/{index} {prompt[:80]}", image=content)


@contextmanager
def opened(folder: Path) -> Iterator[EventLog]:
    """Begin a run's event file with what its folder has, in place of earlier ones.

    Args:
        folder: the run's folder; `metrics.jsonl` in it ends at the iteration to resume from.
    """
    place = folder / EVENTS
    log = EventLog(None)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in sorted(os.listdir(place)):
            if EVENT_FILE.fullmatch(name):
                _empty(place / name)
        # Viewers read the files in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() // 1000 / 1e6:017.6f}.{os.getpid()}"
        log.file = (place / name).open("wb")
    except OSError as error:
        note(f"watch: no event file in {place}: {error.strerror}")
    _begin(log, folder)
    try:
        yield log
    finally:
        log.close()


def _empty(path: Path) -> None:
    """Empty an event file; one that an earlier start emptied is removed.

    A viewer that is open would wait for ever for more of a file that is gone.
    """
    if path.stat().st_size:
        os.truncate(path, 0)
    else:
        path.unlink()


def _begin(log: EventLog, folder: Path) -> None:
    """Write the format's version, the mark of a restart, and the iterations so far."""
    session = _proto("event").SessionLog
    log.add_event(file_version="brain.Event:2")
    log.add_event(step=0, session_log=session(status=session.START))
    path = folder / METRICS
    for record in read_records(path) if path.is_file() else ():
        if record["step"] is not None:
            log.add(record["step"], scalars(record["metrics"], record["seconds"]))
    for step, numbers in samples_in(folder).items():
        log.add(step, [image(folder, step, index) for index in numbers])
    log.flush()
