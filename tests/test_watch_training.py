"""Training on a tiny model while somebody watches: its result, and what its folder has."""

import json
import os
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erase.config.schema import (
    AdapterConfig,
    BankConfig,
    Checkpoints,
    Config,
    Evaluation,
    Model,
    Samples,
)
from erase.methods.settings.erase_anything import Upper
from erase.runs import RunConfig
from erase.runtime import run_folder
from erase.training import loop, run
from erase.watch import serving

pytestmark = pytest.mark.slow
ADAPTER = Path("adapter", "pytorch_lora_weights.safetensors")


@pytest.fixture(scope="module")
def config(tiny_folder: Path) -> Config:
    return RunConfig(
        concept="soccer ball",
        prompts=("a photo of a {}",),
        synonyms=("football",),
        irrelevant=("apple", "tree"),
        model=Model(str(tiny_folder)),
        height=16,
        width=16,
        steps=3,
        iterations=6,
        checkpoints=Checkpoints(every=2),
        adapter=AdapterConfig(rank=2, alpha=3.0),
        bank=BankConfig(sentences=3, trajectories=3, batch=4),
        upper=Upper(negatives=2, pictures=2),
        evaluation=Evaluation(pictures=0),
        samples=Samples(steps=2),
    )


@pytest.fixture(scope="module")
def plain(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody watched."""
    workdir = tmp_path_factory.mktemp("plain") / "run"
    run.run({"": config}, workdir)
    return workdir


def without_times(workdir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def shown(workdir: Path) -> EventAccumulator:
    return EventAccumulator(str(workdir / "events"), {"images": 0, "scalars": 0}).Reload()


def test_a_watched_run_ends_like_one_that_nobody_watched(
    config: Config, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    watched = replace(config, samples=replace(config.samples, every=3))
    listener, states = serving.listen(0), []
    after = loop.after_iteration

    def asking(*arguments: Any) -> None:
        after(*arguments)
        with urllib.request.urlopen(f"{listener.address}/state/0.json", timeout=60) as answer:
            states.append(json.load(answer))

    monkeypatch.setattr(loop, "after_iteration", asking)
    run.run({"": watched}, tmp_path, watch=listener)
    assert (tmp_path / ADAPTER).read_bytes() == (plain / ADAPTER).read_bytes()
    assert without_times(tmp_path) == without_times(plain)
    # The page shows each iteration at once, not only those before a checkpoint.
    assert [state["step"] for state in states] == [1, 2, 3, 4, 5, 6]
    assert [len(state["samples"]) for state in states] == [1, 1, 1, 2, 2, 2]
    assert states[-1]["best"]["step"] in (2, 4)
    assert run_folder.samples_in(tmp_path) == {0: [0, 1], 3: [0, 1], 6: [0, 1]}
    pictures = [(tmp_path / "samples" / f"00000{step}-0.png").read_bytes() for step in (0, 6)]
    assert pictures[0] != pictures[1]
    lines = without_times(plain)
    for name in ("esd", "rsc"):
        points = shown(tmp_path).Scalars(f"loss/{name}")
        assert [point.value for point in points] == pytest.approx([line[name] for line in lines])
    assert [each.step for each in shown(tmp_path).Images("samples/0 a photo of a soccer ball")] == [
        0, 3, 6
    ]  # fmt: skip


class KilledError(Exception):
    """Stands for a process that is killed."""


def kill(config: Config, workdir: Path, watch: serving.Listener | None = None) -> None:
    """Train until a run is killed after iteration 4, before what it shows of this iteration."""
    after = loop.after_iteration

    def killed(training: Any, progress: Any, *arguments: Any) -> None:
        after(training, progress, *arguments)
        if progress.step == 4:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "after_iteration", killed)
        with pytest.raises(KilledError):
            run.run({"": config}, workdir, watch=watch)


def test_a_run_that_was_killed_goes_on_with_one_line_and_the_same_pictures(
    config: Config, plain: Path, tmp_path: Path
):
    watched = replace(config, samples=replace(config.samples, every=1))
    kill(watched, tmp_path, serving.listen(0))
    first = (tmp_path / "samples" / "000003-0.png").read_bytes()
    assert max(run_folder.samples_in(tmp_path)) == 3
    run.run({"": watched}, tmp_path, watch=serving.listen(0))
    assert (tmp_path / ADAPTER).read_bytes() == (plain / ADAPTER).read_bytes()
    assert list(run_folder.samples_in(tmp_path)) == [0, 1, 2, 3, 4, 5, 6]
    assert (tmp_path / "samples" / "000003-0.png").read_bytes() == first
    points = shown(tmp_path).Scalars("loss/esd")
    assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
    assert len(os.listdir(tmp_path / "events")) == 2


def test_a_folder_of_an_earlier_version_goes_on(config: Config, plain: Path, tmp_path: Path):
    """Its record has no field for samples."""
    workdir = tmp_path / "run"
    kill(config, workdir)
    record = json.loads((workdir / "config.json").read_text())
    del record["samples"]
    (workdir / "config.json").write_text(json.dumps(record))
    run.run({"": config}, workdir, watch=serving.listen(0))
    assert (workdir / ADAPTER).read_bytes() == (plain / ADAPTER).read_bytes()
    assert list(run_folder.samples_in(workdir)) == [3, 4, 5, 6]
    assert [each.step for each in shown(workdir).Scalars("loss/esd")] == [1, 2, 3, 4, 5, 6]
