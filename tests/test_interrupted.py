"""Evaluations, attacks and comparisons that are interrupted go on, and end with the same bytes."""

import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import tiny

from erase.attacks.attack import attack
from erase.config.schema import Config, Evaluation
from erase.evaluation.evaluate import evaluate
from erase.runs import configure, load_runs
from erase.runtime.cache import Cache
from erase.runtime.signals import listening
from erase.training import compare, run
from flux_jax import Adapter, load, lora
from flux_jax.errors import PreemptedError
from flux_jax.pipeline import Pipeline

Command = Callable[[Path], object]


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def adapter(pipe: Pipeline) -> Adapter:
    return Adapter(lora.init(jax.random.key(0), pipe.shapes, rank=2), 2.0)


@pytest.fixture(scope="module")
def config(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tiny.judge(tmp_path_factory.mktemp("judge"))
    settings = Evaluation(judge=str(folder), pictures=3, batch=2, steps=2, attention_examples=0)
    return tiny.run_config(tiny_folder, synonyms=("kitty",), evaluation=settings)


class Drawn:
    """Pictures that depend on prompt, seed and adapters alone, without the model.

    Attributes:
        batches: number of batches drawn.
        stop_at: batch during which the system requests a stop; 0 for none.
        kill_at: batch during which the process ends without a chance to save; 0 for none.
    """

    def __init__(self) -> None:
        self.batches, self.stop_at, self.kill_at = 0, 0, 0

    def __call__(
        self, pipe: Pipeline, prompts: Any, seeds: Any, adapters: Any, silenced: Any, **_: Any
    ) -> np.ndarray:
        self.batches += 1
        if self.batches == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.batches == self.kill_at:
            raise KeyboardInterrupt
        how = repr(([strength for _, strength in adapters], silenced is None))
        keys = [
            hashlib.sha256(f"{p} {s} {how}".encode()) for p, s in zip(prompts, seeds, strict=True)
        ]
        return np.stack(
            [
                np.random.default_rng(list(key.digest())).integers(0, 256, (16, 16, 3), np.uint8)
                for key in keys
            ]
        )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    made = Drawn()
    monkeypatch.setattr(Pipeline, "__call__", lambda pipe, *a, **k: made(pipe, *a, **k))
    monkeypatch.setattr(Pipeline, "remember", lambda *_: None)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    # A model card names its run's folder.
    name = folder.name.encode()
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(name, b"run")
        for path in files
    }


@pytest.fixture(params=["evaluate", "attack", "compare"])
def command(
    request: pytest.FixtureRequest,
    pipe: Pipeline,
    adapter: Adapter,
    config: Config,
    tiny_folder: Path,
) -> Command:
    """Write the results of a command into a folder."""
    assert config.evaluation.judge
    common = tiny.counted(tiny_folder, Path(config.evaluation.judge))
    common["evaluation"] = common["evaluation"] | {"batch": 4}
    runs = load_runs(configure(**common, concept="cat", method="attention_erasure"))
    methods = {"attention_erasure": compare.seeded(runs, 2)}
    return {
        "evaluate": lambda folder: evaluate(pipe, adapter, config, folder, files="these"),
        "attack": lambda folder: attack(pipe, adapter, config, folder, 3, files="these"),
        "compare": lambda folder: compare.compare(methods, folder / "compared.json", 2),
    }[request.param]


@pytest.mark.slow
def test_whenever_it_is_interrupted_nothing_is_done_twice(
    command: Command, drawn: Drawn, tmp_path: Path
):
    """Stopped during the first batch, killed during the third, and so on."""
    command(tmp_path / "whole")
    needed, drawn.batches = drawn.batches, 0
    assert needed >= 6
    stops, kills, told = 0, 0, []
    for start in range(needed + 1):
        before = drawn.batches
        drawn.stop_at = drawn.batches + 1 if start % 2 == 0 else 0
        drawn.kill_at = drawn.batches + 2 if start % 2 else 0
        try:
            with listening():
                command(tmp_path / "broken")
            break
        except PreemptedError as error:
            told.append(str(error))
            stops += drawn.batches == before + 1
        except KeyboardInterrupt:
            # Only the batch that was being drawn is drawn again.
            kills += 1
    assert PreemptedError.exit_code == 75
    assert set(told) == {"SIGTERM: stopped and saved; run the same command to resume"}
    assert stops == len(told) > 1
    assert kills > 1
    assert drawn.batches == needed + kills
    # Neither caches nor temporary files are left.
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    drawn.batches = drawn.stop_at = drawn.kill_at = 0
    command(tmp_path / "broken")
    assert drawn.batches == 0


@pytest.mark.slow
def test_two_runs_are_trained_and_evaluated_once_over_all_starts(
    config: Config, drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = {name: replace(config, concept=name, method="uce") for name in ("cat", "dog")}
    trained = []
    made = run.make_adapters
    monkeypatch.setattr(run, "make_adapters", lambda *a: trained.append(a) or made(*a))
    whole = run.run(runs, tmp_path / "whole")
    needed, drawn.batches, drawn.stop_at = drawn.batches, 0, 1
    trained.clear()
    starts, broken = 0, {}
    for starts in range(1, 2 * needed):
        drawn.stop_at = drawn.batches + 3
        try:
            broken = run.run(runs, tmp_path / "broken")
            break
        except PreemptedError:
            assert drawn.batches == 3 * starts
    assert starts > needed // 3
    assert drawn.batches == needed
    assert len(trained) == 1
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert (tmp_path / "broken" / "summary.csv").is_file()
    # A finished command opens no model.
    monkeypatch.setattr(run, "open_model", lambda *_: pytest.fail("opened"))
    again = run.run(runs, tmp_path / "broken")
    for name in runs:
        leaves = [jax.tree.leaves(each[name].lora) for each in (whole, broken, again)]
        for a, b, c in zip(*leaves, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"\0", b"\0" * 4096])
def test_a_damaged_result_is_computed_again(
    pipe: Pipeline, adapter: Adapter, config: Config, drawn: Drawn, tmp_path: Path, damage: bytes
):
    whole = evaluate(pipe, adapter, config, tmp_path / "whole", files="these")
    drawn.kill_at = 2 * drawn.batches
    with pytest.raises(KeyboardInterrupt):
        evaluate(pipe, adapter, config, tmp_path / "broken", files="these")
    files = [path for path in (tmp_path / "broken" / "cache").rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(damage)
    assert evaluate(pipe, adapter, config, tmp_path / "broken", files="these") == whole
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    # So is one that was finished.
    for name in ("before_after.png", "finished.json"):
        (tmp_path / "broken" / name).write_bytes(damage)
        evaluate(pipe, adapter, config, tmp_path / "broken", files="these")
        assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_nothing_of_another_model_or_adapter_is_used(
    pipe: Pipeline, adapter: Adapter, config: Config, drawn: Drawn, tmp_path: Path
):
    evaluate(pipe, adapter, config, tmp_path, files="these")
    needed, drawn.batches = drawn.batches, 0
    stronger = Adapter(adapter.lora, 4.0)
    settings = replace(config, evaluation=replace(config.evaluation, seed=5))
    for changed in ((adapter, config, "others"), (stronger, config, "others")):
        evaluate(pipe, *changed[:2], tmp_path, files=changed[2])
        assert drawn.batches == needed
        drawn.batches = 0
    evaluate(pipe, stronger, settings, tmp_path, files="others")
    assert drawn.batches == needed


def test_a_cache_holds_what_was_written(tmp_path: Path):
    cache = Cache.opened(tmp_path / "cache", "part", {"a": 1})
    cache.write("name", b"content")
    assert cache.read("name") == b"content"
    assert cache.read("name", 3) is None
    assert cache.read("other") is None
    assert cache.value("number", lambda: 5) == 5
    assert cache.value("number", lambda: 6) == 5
    # Opened with other inputs, it is another one, and this one is removed.
    assert Cache.opened(tmp_path / "cache", "part", {"a": 1}).read("name") == b"content"
    assert Cache.opened(tmp_path / "cache", "part", {"a": 2}).read("name") is None
    assert cache.read("name") is None
    cache.part("x").write("y", b"")
    cache.remove()
    assert list(tmp_path.iterdir()) == []
