"""A new judge is a single file: a run is evaluated by a class without a network."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from erase.attacks.attack import attack
from erase.config.schema import Config, EarlyStop, Evaluation, Model
from erase.evaluation import early_stop
from erase.evaluation.evaluate import evaluate
from erase.evaluation.judge import JUDGES, Kind, open_judge
from flux_jax import Adapter, load, lora
from flux_jax.errors import InputError

COLOURS = ("red", "green", "blue")


class ColourJudge:
    """Finds the strongest colour in a picture."""

    size = None

    @classmethod
    def load(cls, folder: str | Path) -> "ColourJudge":
        return cls()

    def label(self, concept: str) -> str:
        if concept not in COLOURS:
            raise InputError(f"concept = {concept!r} is none of {', '.join(COLOURS)}")
        return concept

    def kind(self, concept: str) -> Kind:
        return "style"

    def labels(self, kind: Kind) -> Sequence[str]:
        return COLOURS if kind == "style" else ()

    def check_prompt(self, label: str, prompt: str) -> None:
        if "black" in prompt:
            raise InputError(f"prompt = {prompt!r} has no colour")

    def finds(
        self, pictures: np.ndarray, labels: Sequence[str], prompts: Sequence[str]
    ) -> np.ndarray:
        assert len(pictures) == len(labels) == len(prompts)
        strongest = self.features(pictures).argmax(axis=1)
        return strongest == np.array([COLOURS.index(label) for label in labels])

    def features(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.mean(axis=(1, 2))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setitem(JUDGES, "colour", f"{__name__}:ColourJudge")
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "config.json").write_text('{"type": "colour"}')
    return Config(
        concept="red",
        model=Model("tiny"),
        height=16,
        width=16,
        prompts=("a red wall",),
        early_stop=EarlyStop(every=1, pictures=2),
        evaluation=Evaluation(judge=str(folder), pictures=4, batch=4, steps=1, examples=4),
    )


@pytest.mark.slow
def test_a_run_is_evaluated_by_a_judge_of_one_class(
    config: Config, tiny_folder: Path, tmp_path: Path
):
    pipe = load(tiny_folder)
    tree = lora.init(jax.random.key(0), pipe.params["transformer"], rank=2)
    adapter = Adapter(jax.tree.map(lambda leaf: leaf + 0.5, tree), 2.0)
    result = evaluate(pipe, adapter, config, tmp_path)
    assert result == json.loads((tmp_path / "evaluation.json").read_text())
    assert result.get("kind") == "style"
    examples = result.get("pictures", [])
    assert {row["sought"] for row in examples if row["cell"] == "Acc_ir"} == {"green", "blue"}
    for entry in examples:
        for side, strength in (("before", 0.0), ("after", 1.0)):
            adapters = [(adapter, strength)]
            picture = pipe([entry["prompt"]], [entry["seed"]], 1, 3.5, 16, 16, adapters=adapters)
            strongest = COLOURS[int(picture[0].mean(axis=(0, 1)).argmax())]
            assert entry[f"found_{side}"] == (strongest == entry["sought"])
    hits = sum(entry["found_after"] for entry in examples if entry["cell"] == "Acc_e")
    assert result.get("cells", {})["Acc_e"]["after"]["found"] == hits
    assert attack(pipe, adapter, config, tmp_path, pictures=1)["kind"] == "style"
    _, drawn = early_stop.plan_early_stop(config, pipe)
    assert [each.sought for each in drawn] == ["red", "red"]
    black = replace(config, prompts=("a red and black wall",))
    with pytest.raises(InputError, match="has no colour"):
        early_stop.plan_early_stop(black, pipe)


@pytest.mark.parametrize("name", ['"colours"', "7", "[]"])
def test_an_unknown_type_is_told(tmp_path: Path, name: str):
    (tmp_path / "config.json").write_text(f'{{"type": {name}}}')
    with pytest.raises(InputError, match=r"config\.json: type = .* is no judge; known are network"):
        open_judge(str(tmp_path))


def test_a_damaged_folder_is_told(tmp_path: Path):
    for content, told in (("{", "is not JSON"), ("[1]", r"is not a JSON object, but \[1\]")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=told):
            open_judge(str(tmp_path))
