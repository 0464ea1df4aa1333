"""The comparison of methods: every method is measured once, on the same runs."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import tiny
from helpers.devices import run_on

from configs import OTHERS, emoji_compare
from erase.cli import compare as command
from erase.config.schema import Config
from erase.evaluation.eval_prompts import draw_cases
from erase.methods import METHODS, esd
from erase.report import tables
from erase.runs import configure, load_runs
from erase.training import compare
from flux_jax.errors import InputError

# Trajectories of the frozen model compile sooner than ones of the trained model.
FAST = {"esd": {"trajectories": "teacher"}}


@pytest.fixture
def methods(tiny_folder: Path, tmp_path: Path) -> dict[str, dict[str, Config]]:
    common = FAST | tiny.counted(tiny_folder, tiny.judge(tmp_path / "judge"))
    return {
        name: compare.seeded(load_runs(configure(**common, concept="cat", method=name)), 2)
        for name in ("uce", "attention_erasure", "esd")
    }


@pytest.mark.slow
def test_every_method_is_measured_once(methods: Any, tmp_path: Path, monkeypatch):
    out, drawn = tmp_path / "comparison.json", []

    def draw(*given: Any) -> Any:
        _, _, config, pairs, title, silenced, _ = given
        strengths = [strength for _, strength in pairs]
        drawn.append((config.method, title.split(", ")[1], strengths, silenced))
        return draw_cases(*given)

    monkeypatch.setattr(compare, "draw_cases", draw)
    some = {name: methods[name] for name in ("uce", "attention_erasure")}
    compare.compare(some, out, attacks=2)
    made = compare.compare(methods, out, attacks=2)
    assert json.loads(out.read_text()) == made
    assert list(made["methods"]) == list(methods)
    base = None
    for name, each in made["methods"].items():
        assert each["title"] == METHODS[name].title
        assert [(row["name"], row["seed"]) for row in each["rows"]] == [("run-0", 0), ("run-1", 1)]
        assert each["cells"]["Acc_e"]["after"]["of"] == 4
        # Three attacks, a synonym, shuffled words.
        assert each["attacks"]["of"] == 2 * 5 * 2
        assert len(each["frechet"]["seeds"]) == 2
        # With one concept, the variation between concepts is unknown.
        assert each["intervals"]["Acc_e"] == [each["cells"]["Acc_e"]["after"]["share"]] * 2
        base = base or each["cells"]["Acc_e"]["before"]
        assert each["cells"]["Acc_e"]["before"] == base
    silenced, uce, trained = (made["methods"][n] for n in ("attention_erasure", "uce", "esd"))
    assert [silenced[key] for key in ("parameters", "bytes", "seconds", "memory")] == [0] * 4
    # Adapter, gradient and both moments at least; closed forms need no update.
    assert trained["memory"] > 4 * 4 * trained["parameters"]
    assert uce["memory"] == 0
    assert trained["parameters"] == tiny.adapter_values()
    assert uce["bytes"] > 4 * uce["parameters"] > 0
    # The frozen model's pictures are generated once per call, and each method's with its adapter.
    assert [title for _, title, *_ in drawn].count("before") == 2
    for method, title, strengths, silenced in drawn:
        whole = method == "attention_erasure" and title != "before"
        assert silenced == ("cat" if whole else None)
        assert strengths == ([] if whole or title == "before" else [1.0])
    # Everything is done, and other runs are refused.
    monkeypatch.setattr(compare, "measure", lambda *_: pytest.fail("measured again"))
    assert compare.compare(methods, out, attacks=2) == made
    with pytest.raises(InputError, match="holds another comparison"):
        compare.compare(methods, out, attacks=3)
    # So are other settings, except those that only affect speed.
    faster = {
        name: {run: replace(c, bank=replace(c.bank, batch=1)) for run, c in runs.items()}
        for name, runs in methods.items()
    }
    assert compare.compare(faster, out, attacks=2) == made
    further = {
        run: replace(c, esd=replace(c.method_settings(esd.Settings), eta=2.0))
        for run, c in methods["esd"].items()
    }
    with pytest.raises(InputError, match=r"esd with other settings: .*\n *esd\.eta: 1\.0 there, 2"):
        compare.compare({"esd": further}, out, attacks=2)


@pytest.mark.slow
def test_devices_that_train_are_not_those_that_draw(tiny_folder: Path, tmp_path: Path):
    """Two runs train on one device each; both devices may generate each run's pictures."""
    code = f"import test_compare; test_compare.on_two({str(tiny_folder)!r}, {str(tmp_path)!r})"
    done = run_on(2, code)
    assert done.returncode == 0, done.stderr[-2000:]


def on_two(tiny_folder: str, folder: str) -> None:
    common = FAST | tiny.counted(Path(tiny_folder), tiny.judge(Path(folder) / "judge"))
    runs = load_runs(configure(**common, concept="cat", method="esd"))
    made = compare.compare({"esd": compare.seeded(runs, 2)}, Path(folder) / "out.json", attacks=2)
    assert made["methods"]["esd"]["cells"]["Acc_e"]["after"]["of"] == 4


def test_without_other_words_nothing_is_compared(methods: Any, tmp_path: Path):
    runs = {name: replace(config, synonyms=()) for name, config in methods["esd"].items()}
    with pytest.raises(InputError, match=r"run-0: synonyms = \(\): Acc_g is measured with"):
        compare.compare({"esd": runs}, tmp_path / "out.json")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["", "paper", "native"])
def test_the_shipped_comparison_can_be_run_by_every_method(preset: str):
    given = emoji_compare.get_config(preset)
    for name in METHODS:
        given.method = name
        runs = load_runs(given, {"method": name})
        # The authors' settings take longer, so only every third concept is used.
        assert len(runs) == (10 if preset else 30)
        assert {config.method for config in runs.values()} == {name}
        assert {config.evaluation.strength for config in runs.values()} == {1.0}
    for name, authors in (("eap", 1e-5), ("esd", 1e-4)):
        given.method = name
        own: Any = getattr(load_runs(given)["firefox"], name)
        assert own.learning_rate == (authors if preset else OTHERS[name][name]["learning_rate"])
        assert own.stand_in == "flat"


def test_without_a_judge_nothing_is_compared(tmp_path: Path):
    config = Config("cat", irrelevant=("dog",))
    with pytest.raises(InputError, match=r"evaluation\.judge = None: a comparison needs"):
        compare.compare({"esd": {"": config}}, tmp_path / "out.json")
    assert not any(tmp_path.iterdir())


def test_the_command_makes_each_run_once_a_seed_and_prints_a_table(
    methods: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    bare = {name: {"": next(iter(runs.values()))} for name, runs in methods.items()}
    given = {"methods": list(bare), "seeds": 3, "attacks": 5, "out": str(tmp_path / "out.json")}
    monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(**given))
    monkeypatch.setattr(command, "begin", lambda argv: None)
    monkeypatch.setattr(command, "configured_for", lambda names: {n: bare[n] for n in names})
    monkeypatch.setattr(compare, "open_model", lambda config: None)
    monkeypatch.setattr(compare.Intermediate, "repeat_encoding", lambda *_: None)
    seen = []

    def measure(pipe: Any, runs: Any, base: Any, attacks: int, saved: Any) -> dict[str, Any]:
        method = {config.method for config in runs.values()}
        seen.append((method, {name: config.seed for name, config in runs.items()}, attacks))
        return {"rows": []}

    monkeypatch.setattr(compare, "measure", measure)
    monkeypatch.setattr(tables, "methods", lambda made: f"of {', '.join(made['methods'])}")
    command.main([])
    assert capsys.readouterr().out == "of uce, attention_erasure, esd\n"
    assert seen == [({name}, {"run-0": 0, "run-1": 1, "run-2": 2}, 5) for name in bare]
