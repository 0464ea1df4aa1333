"""erase.evaluation.calibrate: bisection, similarity, and runs with and without a judge."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny, warm

from convert.adapters.files import write_lora
from erase.config.schema import Config, EarlyStop, Evaluation
from erase.evaluation.calibrate import bisect, calibrate, similarity
from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, init
from erase.runtime.run_folder import CALIBRATION
from flux_jax import Adapter, load, lora
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline

LABELS = JudgeConfig(
    ("cat", "apple"), ("plain",), ("on",), widths=(8, 8), blocks=(1, 1), embedding=4
)


@pytest.mark.parametrize("threshold", [0.03, 0.5, 0.76, 1.4])
@pytest.mark.parametrize("tolerance", [0.3, 0.01])
def test_bisection_finds_where_a_falling_measure_crosses(threshold: float, tolerance: float):
    asked: list[float] = []

    def measure(strength: float) -> float:
        asked.append(strength)
        return 1 - strength

    found, tried = bisect(measure, 1 - threshold, 1.5, tolerance)
    assert threshold <= found <= threshold + tolerance
    assert found in [strength for strength, _ in tried]
    assert [strength for strength, _ in tried] == asked
    assert len(asked) <= 2 + np.log2(1.5 / tolerance)


def test_too_little_strength_is_told():
    with pytest.raises(InputError, match=r"most = 0\.5: this strength leaves 0\.500 where 0\.2"):
        bisect(lambda strength: 1 - strength, 0.2, 0.5, 0.1)


def test_similarity_is_the_correlation():
    rng = np.random.default_rng(0)
    one, other = rng.integers(256, size=(2, 3, 16, 16, 3), dtype=np.uint8)
    wanted = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(similarity(one, other), wanted)
    np.testing.assert_allclose(similarity(one, one), 1)
    np.testing.assert_allclose(similarity(one, 255 - one), -1)
    grey = np.full((2, 16, 16, 3), 128, np.uint8)
    np.testing.assert_array_equal(similarity(grey, grey), 1)
    np.testing.assert_array_equal(similarity(grey, one[:2]), 0)


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def adapter(pipe: Pipeline) -> Adapter:
    tree = lora.init(jax.random.key(0), pipe.params["transformer"], rank=2)
    return Adapter(jax.tree.map(lambda leaf: leaf + 0.5, tree), 2.0)


@pytest.fixture(scope="module")
def config(tiny_folder: Path) -> Config:
    return tiny.run_config(
        tiny_folder,
        prompts=("a photo of a {}", "a {} and a dog"),
        early_stop=EarlyStop(pictures=3),
        evaluation=Evaluation(pictures=0, steps=2, batch=4),
    )


@pytest.mark.slow
def test_without_a_judge_pictures_must_differ_from_the_bases(
    pipe: Pipeline, adapter: Adapter, config: Config, tmp_path: Path
):
    full = calibrate(pipe, adapter, config, tmp_path, drop=1e-6, most=1.0, tolerance=2.0)
    assert full["strength"] == 1
    least = full["tried"][-1]["similarity"]
    # The target is half of the full adapter's effect.
    drop = (1 - least) / 2
    found = calibrate(pipe, adapter, config, tmp_path, drop=drop, most=1.0, tolerance=0.1)
    assert 0 < found["strength"] < 1
    values = {line["strength"]: line["similarity"] for line in found["tried"]}
    assert values[0] == 1
    assert values[found["strength"]] <= 1 - drop < values[found["strength"] - 0.0625]
    assert json.loads((tmp_path / CALIBRATION).read_text()) == found
    with pytest.raises(InputError, match=r"most = 0\.5"):
        calibrate(pipe, adapter, config, tmp_path, drop=1.5 - least, most=0.5)


def test_a_judge_counts(pipe: Pipeline, adapter: Adapter, config: Config, tmp_path: Path):
    params = init(JudgeNetwork(LABELS), jax.random.key(3), 16)
    params["entity_head"]["bias"] = np.array([100.0, -100.0], np.float32)
    NetworkJudge(LABELS, params, 16).save(tmp_path / "judge")
    seen = replace(config, evaluation=replace(config.evaluation, judge=str(tmp_path / "judge")))
    # The judge never finds apples: a strength near 0 is enough.
    apple = replace(seen, concept="apple")
    found = calibrate(pipe, adapter, apple, tmp_path, tolerance=0.5)
    assert found["measure"] == "share"
    assert found["strength"] <= 0.5
    assert {line["share"] for line in found["tried"]} == {0}
    # It always finds cats: no strength is enough.
    (tmp_path / CALIBRATION).unlink()
    with pytest.raises(InputError, match=r"leaves 1\.000 where 0\.1 is wanted"):
        calibrate(pipe, adapter, seen, tmp_path)
    assert not (tmp_path / CALIBRATION).exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [({"share": 1.0}, "share = 1"), ({"drop": 0.0}, "drop = 0"), ({"most": np.inf}, "most = inf")],
)
def test_numbers_that_cannot_be_used_are_named(
    pipe: Pipeline, adapter: Adapter, config: Config, tmp_path: Path, given, message: str
):
    with pytest.raises(InputError, match=message):
        calibrate(pipe, adapter, config, tmp_path, **given)


@pytest.mark.slow
def test_the_command_reads_a_runs_folder(adapter: Adapter, tiny_folder: Path, tmp_path: Path):
    file = tmp_path / "config.py"
    file.write_text(
        "from erase.runs import configure\n\n\ndef get_config():\n"
        f"    return configure(concept='cat', model={{'path': {str(tiny_folder)!r}}}, height=16,\n"
        "        width=16, early_stop={'pictures': 2}, upper={'rsc': 0.0},\n"
        "        evaluation={'steps': 2, 'pictures': 0})\n"
    )
    write_lora(tmp_path / "run" / "adapter", adapter.lora, adapter.alpha)
    command = ("-m", "erase.cli.calibrate", "--config", file, "--workdir", tmp_path / "run")
    done = warm.run(*command, "--drop", "0.000001", "--tolerance", "1")
    assert done.returncode == 0, done.stderr
    assert "'cat': strength" in done.stdout
    assert (tmp_path / "run" / CALIBRATION).is_file()
