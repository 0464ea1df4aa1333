"""Two processes on one machine: they train, checkpoint and resume together, or report an error."""

import json
import socket
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jax
import numpy as np
import pytest
from helpers import tiny, warm
from PIL import Image

from convert.adapters.files import read_lora
from erase.runs import load_runs
from erase.runtime import processes
from erase.runtime.files import write
from erase.training import run

CONFIG = """
from erase.runs import configure

def get_config():
    return configure(
        concept="soccer ball",
        prompts=("a photo of a {}", "a {} and a dog"),
        synonyms=("football",),
        irrelevant=("apple", "tree"),
        height=16,
        width=16,
        steps=3,
        batch_size=2,
        checkpoints={"every": 2},
        bank={"sentences": 3, "trajectories": 3, "batch": 4},
        lower={"attn": 0.0},
        upper={"negatives": 2, "pictures": 2, "rsc": 0.0},
        evaluation={"pictures": 1, "steps": 2, "batch": 2, "others": ("cat",)},
    )
"""


JUDGE = tiny.SHIPPED / "judge"


def start(command: tuple[Any, ...], *flags: str) -> list[CompletedProcess[str]]:
    """Run a command in two connected processes of one device each."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = [
        warm.Command(
            *("-m", *command),
            *(f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={index}"),
            *(flag.replace("INDEX", str(index)) for flag in flags),
        )
        for index in range(2)
    ]
    return [process.wait() for process in started]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "two.py"
    path.write_text(CONFIG)
    return path


@pytest.mark.slow
def test_two_processes_train_checkpoint_and_resume(config: Path, tiny_folder: Path, tmp_path: Path):
    flags = (f"--config={config}", f"--config.model.path={tiny_folder}")
    for iterations, more in ((2, ("--config.evaluation.pictures=0",)), (4, ())):
        command = ("erase.train", "--workdir", tmp_path / "two")
        done = start(command, *flags, f"--config.iterations={iterations}", *more)
        for process in done:
            assert process.returncode == 0, process.stderr[-3000:]
        # The first one alone speaks.
        assert "Using 2 of 2 devices: concept 1 x data 2 x fsdp 1" in done[0].stdout
        assert "erasing soccer ball: " in done[0].stderr
        assert "Words of the run" in done[0].stdout
        assert "Words of the run" not in done[1].stdout
        assert done[1].stderr == ""
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    together = [json.loads(line) for line in lines]
    assert [line["step"] for line in together] == [1, 2, 3, 4]
    assert (tmp_path / "two" / "report.html").is_file()
    assert len(list((tmp_path / "two" / "pictures").iterdir())) == 2 * 3

    values: dict = {}
    exec(compile(CONFIG, "two.py", "exec"), values)
    given = values["get_config"]()
    given.model.path, given.iterations, given.evaluation.pictures = str(tiny_folder), 4, 0
    run.run(load_runs(given), tmp_path / "one")
    alone = (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    for mine, line in zip(together, map(json.loads, alone), strict=True):
        del mine["seconds"], line["seconds"]
        assert mine.keys() == line.keys()
        np.testing.assert_allclose([*mine.values()], [*line.values()], rtol=2e-3)
    adapters = (read_lora(tmp_path / name / "adapter")[0] for name in ("two", "one"))
    for a, b in zip(*map(jax.tree.leaves, adapters), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_processes_with_other_settings_end_with_a_message(
    config: Path, tiny_folder: Path, tmp_path: Path
):
    flags = (f"--config={config}", f"--config.model.path={tiny_folder}")
    command = ("erase.train", "--workdir", tmp_path / "run")
    done = start(command, *flags, "--config.seed=INDEX", "--config.lower.eta=1.INDEX")
    for process in done:
        assert process.returncode == 2
        assert "error: seed, lower differ between the 2 processes" in process.stderr
        assert "Traceback" not in process.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_share_out_a_benchmark_and_resume_it(tiny_folder: Path, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\ntwo cats\na tree\na red ball\n")
    options = {
        **{"model": str(tiny_folder), "prompts": str(prompts), "judge": f"emoji={JUDGE}"},
        **{"find": "cat", "steps": "2", "height": "64", "width": "64", "batch": "2"},
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = ("erase", "benchmark", "--out", tmp_path / "two")
    times = []
    for _ in range(2):
        done = start(command, *flags)
        for process in done:
            assert process.returncode == 0, process.stderr[-3000:]
        assert "base model" not in done[1].stdout
        pictures = sorted((tmp_path / "two").rglob("*.png"))
        times.append([path.stat().st_mtime_ns for path in pictures])
    # The second start drew nothing.
    assert len(times[0]) == 5
    assert times[0] == times[1]

    alone = warm.run("-m", "erase", "benchmark", "--out", tmp_path / "one", *flags)
    assert alone.returncode == 0, alone.stderr[-3000:]
    results = [
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")
    ]
    assert results[0]["rows"][0]["judges"] == results[1]["rows"][0]["judges"]
    for one, two in zip(
        *(sorted((tmp_path / name).rglob("*.png")) for name in ("one", "two")), strict=True
    ):
        difference = np.asarray(Image.open(one), int) - np.asarray(Image.open(two), int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=2"], "--coordinator, --process missing"),
        (["--coordinator=127.0.0.1:1", "--processes=2", "--process=2"], "process = 2 must be"),
        (["--distributed"], "cannot join the other processes"),
    ],
)
@pytest.mark.slow
def test_incomplete_flags_are_told(config: Path, tmp_path: Path, flags: list, message: str):
    command = ("-m", "erase.train", "--config", config, *flags)
    done = warm.run(*command, "--workdir", tmp_path / "run")
    assert done.returncode == 2
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "first", lambda: False)
    write(tmp_path / "config.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_one_process_makes_its_own():
    assert processes.first()
    assert processes.from_first(lambda: 5) == 5
    processes.agree({"seed": 1})
