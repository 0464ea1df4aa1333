"""A training in view: what the page's server reads and answers, and event files of one line."""

import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erase.config.schema import Config, Evaluation, Samples
from erase.model.draw import png
from erase.runtime import overwrite, run_folder
from erase.watch import events, samples, serving
from erase.watch.samples import SampleSet
from erase.watch.state import MOST_POINTS, Log, Page, thinned
from flux_jax.errors import InputError

CONFIG = Config("cat", iterations=40)


def write_metrics(folder: Path, steps: range, loss: float = 1.0) -> None:
    lines = (
        run_folder.record_line(
            {"step": step, "metrics": {"esd": loss / step, "esd_gradient": 2.0}, "seconds": 0.5}
        )
        for step in steps
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def write_sample(folder: Path, step: int, index: int, value: int = 0) -> None:
    path = folder / "samples" / run_folder.sample_name(step, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(np.full((4, 4, 3), value, np.uint8), {"prompt": f"prompt {index}"}))


def write_checkpoint(folder: Path, step: int, **metrics: Any) -> None:
    path = folder / "checkpoints" / str(step) / "metrics" / "metrics"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(metrics))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run after 20 of 40 iterations."""
    folder = tmp_path / "run"
    write_metrics(folder, range(1, 21))
    record = {"concept": "cat", "model": {}, "command": "", "iterations": 40}
    (folder / "config.json").write_text(json.dumps(record | {"checkpoints": {"adapter": "best"}}))
    for step in (0, 10, 20):
        for index in (0, 1):
            write_sample(folder, step, index, step)
    write_checkpoint(folder, 10, loss=0.25, of_interval=True)
    write_checkpoint(folder, 20, loss=0.5, of_interval=True)
    return folder


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


# What the page shows.


def test_the_page_shows_progress_losses_samples_and_the_best_checkpoint(folder: Path):
    state = Page.of(folder, [""]).state(0)
    assert (state["step"], state["total"], state["seconds"]) == (20, 40, 0.5)
    assert state["best"] == {"step": 10, "loss": 0.25}
    assert (state["adapter"], state["concept"]) == ("best", "cat")
    assert [(each["name"], each["kind"]) for each in state["charts"]] == [
        ("esd", "loss"), ("esd gradient", "gradient")
    ]  # fmt: skip
    assert state["charts"][0]["points"] == [[s, float(f"{1 / s:.5g}")] for s in range(1, 21)]
    assert state["samples"] == [{"step": step, "numbers": [0, 1]} for step in (20, 10, 0)]


def test_only_new_lines_are_read_and_a_replaced_log_is_read_again(folder: Path):
    log = Log(folder / "metrics.jsonl")
    log.update()
    first = log.offset
    with log.path.open("a") as file:
        file.write('{"step": 21, "esd": 5.0, "seconds": 1.5}\nno JSON\n{"step": 22, "esd": 6')
    log.update()
    # A line that is damaged is left out, and one that is not complete waits.
    assert (log.step, log.series["esd"][1][-1]) == (21, 5.0)
    with log.path.open("a") as file:
        file.write(".5}\n")
    log.update()
    assert (log.step, log.series["esd"][1][-1], len(log.series["esd"][0])) == (22, 6.5, 22)
    assert log.offset > first
    write_metrics(folder / "other", range(1, 13))
    os.replace(folder / "other" / "metrics.jsonl", log.path)
    log.update()
    assert (log.step, len(log.series["esd"][0])) == (12, 12)
    log.path.unlink()
    log.update()
    assert (log.step, log.series) == (0, {})


def test_long_series_are_means_of_successive_values():
    steps, values = list(range(1, 1001)), np.arange(1000.0)
    points = thinned(steps, values.tolist())
    assert len(points) <= MOST_POINTS
    assert points[0] == [5, 2.0]
    assert points[-1] == [1000, 997.0]


def test_a_checkpoint_of_a_stop_is_not_the_best_one(tmp_path: Path):
    """As when the adapter is chosen: without the stop it would not be there."""
    write_checkpoint(tmp_path, 7, loss=0.1, of_interval=False)
    assert Page.of(tmp_path, [""]).best() is None
    write_checkpoint(tmp_path, 10, loss=0.3, of_interval=True)
    write_checkpoint(tmp_path, 20, loss=0.3)
    write_checkpoint(tmp_path, 30)
    assert Page.of(tmp_path, [""]).best() == {"step": 10, "loss": 0.3}


def test_the_last_checkpoint_counts_though_its_interval_is_not_full(folder: Path):
    write_checkpoint(folder, 40, loss=0.1, of_interval=False)
    assert Page.of(folder, [""]).state(0)["best"] == {"step": 40, "loss": 0.1}


# The server, in a process of its own.


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    listener = serving.listen(0)
    with serving.served(listener, folder, [""]):
        yield listener.port


def ask(port: int, path: str, **headers: str) -> tuple[int, bytes, http.client.HTTPResponse]:
    """Ask for a path as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer
    finally:
        connection.close()


def test_the_server_answers_with_fixed_names_alone(folder: Path, port: int):
    (folder.parent / "secret").write_text("secret")
    (folder / "samples" / "000030-0.png").symlink_to(folder.parent / "secret")
    before = content(folder)
    status, page, answer = ask(port, "/")
    assert status == 200
    assert b"Training in view" in page
    assert "default-src 'none'" in (answer.headers["Content-Security-Policy"] or "")
    assert json.loads(ask(port, "/state/0.json")[1])["step"] == 20
    wanted = (folder / "samples" / "000010-1.png").read_bytes()
    assert ask(port, "/samples/0/10/1.png")[:2] == (200, wanted)
    for path in (
        "/config.json",
        "/../secret",
        "/samples/0/../../../secret",
        "/samples/000010-1.png",
        "/samples/0/11/0.png",
        "/samples/0/30/0.png",
        "/samples/1/10/1.png",
        "/samples/0/10/%31.png",
        "/state/1.json",
        "/state/0.json/",
    ):
        assert ask(port, path)[0] == 404, path
    assert content(folder) == before, "the server wrote to the folder"


def test_other_hosts_names_are_refused(port: int):
    """A page of another site whose name leads to this computer could read the answers."""
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", ""):
        assert ask(port, "/state/0.json", Host=host)[0] == 403, host
    assert ask(port, "/", Host=f"localhost:{port}")[0] == 200


def test_the_server_ends_with_the_training(folder: Path, capfd: pytest.CaptureFixture[str]):
    listener = serving.listen(0)
    with serving.served(listener, folder, [""]):
        assert ask(listener.port, "/")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port), timeout=10)
    assert capfd.readouterr() == (f"Training in view: http://127.0.0.1:{listener.port}\n", "")


def test_a_port_in_use_is_an_error_of_a_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"^watch = {port}: .*\(.*in use\).*--watch=0.*$"
        ) as caught:
            serving.listen(port)
    assert len(str(caught.value)) < 200


# Event files.


def viewer(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of a folder."""
    return EventAccumulator(str(folder / "events"), {"images": 0, "scalars": 0}).Reload()


def test_a_viewer_shows_one_line_after_a_kill(folder: Path):
    with events.opened(folder) as log:
        for step in range(21, 26):
            log.add(step, events.scalars({"esd": 100.0, "esd_gradient": 1.0}, 0.1))
        log.flush()
        open_viewer = viewer(folder)
        assert [each.step for each in open_viewer.Scalars("loss/esd")] == list(range(1, 26))
    # Killed after iteration 25, and resumed from 20.
    with events.opened(folder) as log:
        log.add(21, events.scalars({"esd": 0.0}))
        log.add(20, [events.image(folder, 20, 0)])
    files = sorted((folder / "events").iterdir())
    assert all(run_folder.EVENT_FILE.fullmatch(file.name) for file in files)
    # An open viewer would wait for more of a file that is gone.
    assert [file.stat().st_size > 0 for file in files] == [False, True]
    for each in (viewer(folder), open_viewer.Reload()):
        shown = each.Scalars("loss/esd")
        assert [point.step for point in shown] == list(range(1, 22))
        losses = [1 / step for step in range(1, 21)]
        assert [point.value for point in shown] == pytest.approx([*losses, 0])
        assert {"gradient/esd_gradient", "time/seconds"} <= set(each.Tags()["scalars"])
    picture = viewer(folder).Images("samples/1 prompt 1")
    assert [each.step for each in picture] == [0, 10, 20]
    wanted = (folder / "samples" / "000010-1.png").read_bytes()
    assert (picture[1].encoded_image_string, picture[1].width) == (wanted, 4)


def test_a_full_disk_ends_the_events_but_not_the_training(capsys: pytest.CaptureFixture[str]):
    log = events.EventLog(Path("/dev/full").open("wb"))  # noqa: SIM115
    for step in (1, 2):
        log.add(step, events.scalars({"esd": 1.0}))
        log.flush()
    log.close()
    told = "note: watch: no more events in /dev/full: No space left on device\n"
    assert capsys.readouterr().err == told


def test_a_missing_library_is_a_note_of_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    assert not events.available()
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'erase-anything-jax[watch]'" in line


# Sample pictures and the folder.


def test_samples_show_the_concept_and_another_thing():
    assert samples.prompts_of(CONFIG, ["owl", "dog"]) == ("a photo of a cat", "a photo of an owl")
    named = replace(CONFIG, evaluation=Evaluation(others=("car",)))
    assert samples.prompts_of(named, ["owl"])[1] == "a photo of a car"


def test_a_watched_run_has_samples_unless_its_configuration_says_otherwise():
    def every(watched: bool, **given: Any) -> int | None:
        config = replace(CONFIG, samples=Samples(**given))
        return samples.with_samples({"": config}, watched)[""].samples.every

    assert (every(True), every(False)) == (4, 0)
    assert (every(True, every=0), every(False, every=3)) == (0, 3)


def test_pictures_after_the_checkpoint_are_drawn_again(folder: Path):
    SampleSet("", CONFIG, ("a", "b"), folder).drop_after(10)
    assert run_folder.samples_in(folder) == {0: [0, 1], 10: [0, 1]}


def test_overwriting_removes_samples_and_events_but_no_files_of_others(folder: Path):
    with events.opened(folder):
        pass
    for name in ("samples/mine.png", "events/notes.txt"):
        (folder / name).write_text("mine")
    (folder / "samples" / ".000040-0.png.partial").touch()
    overwrite.clear(folder, [""])
    left = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert left == {"samples", "samples/mine.png", "events", "events/notes.txt", *checkpoints(left)}


def checkpoints(names: set[str]) -> set[str]:
    """The checkpoints, whose parts here are not all those of a run's."""
    return {name for name in names if name.startswith("checkpoints")}


def test_bookkeeping_takes_little_time(folder: Path):
    """What an iteration costs the training's process: at most 2 % of one of 0.1 s."""
    with events.opened(folder) as log:
        metrics = {f"loss{i}": float(i) for i in range(8)}
        began = time.process_time()
        for step in range(21, 521):
            log.add(step, events.scalars(metrics, 0.1))
        seconds = (time.process_time() - began) / 500
    assert seconds < 0.002
