"""Early stopping: a run ends once a judge finds nothing, alone or among others."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny

from convert.adapters.files import read_lora
from erase.config.schema import Checkpoints, Config, EarlyStop, Evaluation
from erase.evaluation import early_stop
from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, init
from erase.methods.settings.erase_anything import Lower
from erase.training import run
from flux_jax import load
from flux_jax.errors import InputError

LABELS = JudgeConfig(
    ("cat", "apple"), ("plain",), ("on",), widths=(8, 8), blocks=(1, 1), embedding=4
)


@pytest.fixture(scope="module")
def config(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a run whose judge always finds cats and never apples."""
    params = init(JudgeNetwork(LABELS), jax.random.key(3), 16)
    params["entity_head"]["bias"] = np.array([100.0, -100.0], np.float32)
    folder = tmp_path_factory.mktemp("judge")
    NetworkJudge(LABELS, params, 16).save(folder)
    return tiny.run_config(
        tiny_folder,
        prompts=("a photo of a {}", "a {} and a dog"),
        synonyms=("kitty",),
        # Two losses are enough here, and compile in half the time.
        lower=Lower(attn=0.0),
        iterations=5,
        checkpoints=Checkpoints(every=4),
        early_stop=EarlyStop(every=2, pictures=3),
        evaluation=Evaluation(judge=str(folder), pictures=0, steps=2, batch=4),
    )


def steps(workdir: Path) -> list[int]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.slow
def test_a_run_stops_where_nothing_is_found_and_the_others_go_on(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture
):
    apple = replace(config, concept="apple", synonyms=("red apple",))
    both = run.run({"cat": config, "apple": apple}, tmp_path / "both")
    assert steps(tmp_path / "both" / "cat") == [1, 2, 3, 4, 5]
    assert steps(tmp_path / "both" / "apple") == [1, 2]
    assert "apple: erased after 2 iterations" in capsys.readouterr().out

    alone = run.run({"": apple}, tmp_path / "alone")[""]
    assert steps(tmp_path / "alone") == [1, 2]
    short = replace(apple, iterations=2, early_stop=EarlyStop())
    shorter = run.run({"": short}, tmp_path / "short")[""]
    kept = read_lora(tmp_path / "both" / "apple" / "adapter" / "pytorch_lora_weights.safetensors")
    for a, b, c in zip(
        *(jax.tree.leaves(tree) for tree in (alone.lora, shorter.lora, kept[0])), strict=True
    ):
        # Encoding another number of prompts changes the rounding.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(c, b, rtol=1e-3, atol=1e-4)

    # Stopped runs stay stopped when all are resumed with more iterations.
    further = {name: replace(c, iterations=6) for name, c in (("cat", config), ("apple", apple))}
    again = run.run(further, tmp_path / "both")
    assert steps(tmp_path / "both" / "cat") == [1, 2, 3, 4, 5, 6]
    assert steps(tmp_path / "both" / "apple") == [1, 2]
    for a, b in zip(*(jax.tree.leaves(x["apple"].lora) for x in (both, again)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_look_takes_the_sentences_in_turn_from_noise_of_its_own(config: Config):
    _, drawn = early_stop.plan_early_stop(config, load(config.model.path))
    assert [case.prompt for case in drawn] == [
        "a photo of a cat", "a cat and a dog", "a photo of a cat"
    ]  # fmt: skip
    assert [case.seed for case in drawn] == [3_000_000, 3_000_001, 3_000_002]
    assert {case.sought for case in drawn} == {"cat"}


def test_what_a_judge_could_not_answer_is_told_before_training(config: Config, tmp_path: Path):
    for changes, message in (
        (
            {"evaluation": Evaluation(pictures=0)},
            r"evaluation\.judge = None: early_stop needs a judge",
        ),
        ({"concept": "dog", "prompts": ("a {}",)}, "'dog' is not among the judge's labels"),
    ):
        with pytest.raises(InputError, match=message):
            run.run({"": replace(config, **changes)}, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
