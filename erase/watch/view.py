"""What a training shows while it runs: sample pictures in its folder, and event files.

Axis letter: R runs.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from erase.runtime import processes
from erase.watch import events
from erase.watch.samples import SampleSet
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

# Called after an iteration with its number, the metrics [R] by name, its seconds, and whether each
# run is still training [R].
Show = Callable[[int, Mapping[str, np.ndarray], float, Bool[np.ndarray, "R"]], None]


@dataclass(frozen=True)
class View:
    """What is shown of runs that train at once; by default nothing.

    Attributes:
        pipe: the frozen model; needed for samples.
        samples: the runs' sample pictures, in the order of the runs.
        every: iterations between samples; 0 draws none.
        watched: whether event files are written.
    """

    pipe: Pipeline | None = None
    samples: Sequence[SampleSet] = field(default_factory=tuple)
    every: int = 0
    watched: bool = False

    @contextlib.contextmanager
    def opened(self, done: int, adapter_of: Callable[[str], Adapter]) -> Iterator[Show]:
        """Continue what is shown after iteration `done`; a new run also shows its beginning.

        Args:
            done: the iteration from which the runs resume.
            adapter_of: returns the present adapter of the run of a name.
        """
        for each in self.samples if self.every else ():
            each.drop_after(done)
        with contextlib.ExitStack() as stack:
            logs: dict[int, events.EventLog] = {}
            if self.watched and processes.first() and events.available():
                for row, each in enumerate(self.samples):
                    logs[row] = stack.enter_context(events.opened(each.folder))

            def draw(step: int, active: Bool[np.ndarray, "R"]) -> None:
                assert self.pipe is not None, "needed for samples"
                for row in np.flatnonzero(active).tolist():
                    each = self.samples[row]
                    each.draw(self.pipe, adapter_of(each.name), step)
                    if row in logs:
                        numbers = range(len(each.prompts))
                        logs[row].add(step, [events.image(each.folder, step, i) for i in numbers])

            def show(
                step: int,
                values: Mapping[str, np.ndarray],
                seconds: float,
                active: Bool[np.ndarray, "R"],
            ) -> None:
                for row in np.flatnonzero(active).tolist():
                    if row in logs:
                        of_run = {name: float(each[row]) for name, each in values.items()}
                        finite = {n: value for n, value in of_run.items() if math.isfinite(value)}
                        logs[row].add(step, events.scalars(finite, seconds))
                if self.every and step % self.every == 0:
                    draw(step, active)

            if self.every and not done:
                draw(0, np.ones(len(self.samples), bool))
            yield show
