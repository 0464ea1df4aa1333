"""Every method as a whole: its run, its settings and its refusals."""

import dataclasses
import itertools
import json
import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import tiny

from convert.adapters.files import read_adapter
from erase.data.words.irrelevant import listed
from erase.methods import METHODS, eap
from erase.model.adapters import read_adapter as read_for_drawing
from erase.model.open import open_model
from erase.runs import configure, load_runs
from erase.runtime import processes
from erase.training import memory_plan, prepare, run
from flux_jax.errors import InputError

# Of "a photo of a cat", the concept being one word.
SHUFFLED = {" ".join(words) for words in itertools.permutations(["a", "photo", "of", "a", "cat"])}
TRAINED = [name for name, method in METHODS.items() if method.exports]


def runs_of(folder: Path, method: str, **changes: Any) -> Any:
    """The smallest run of a method."""
    usual = dataclasses.asdict(tiny.run_config(folder)) | {"method": method, "iterations": 2}
    usual["bank"] |= {"trajectories": 3, "batch": 4}
    return load_runs(configure(**usual | changes))


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED)
def test_a_run_of_every_method_ends_with_an_adapter(
    method: str, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    runs = runs_of(tiny_folder, method)
    # Of this thread: others have compiled the updates while it made the banks.
    with jax.log_compiles():
        made = run.run(runs, tmp_path / "run")[""]
    compiled = [text for text in caplog.messages if "XLA compilation" in text]
    assert not [text for text in compiled if "train_step" in text]
    found = read_adapter(tmp_path / "run" / "adapter")
    assert found.metadata["method"] == METHODS[method].title
    assert json.loads(found.metadata["settings"])["method"] == method
    for a, b in zip(*map(jax.tree.leaves, (made.lora, found.lora)), strict=True):
        np.testing.assert_array_equal(a, b)
    changes = [np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(made.lora)]
    assert all(np.isfinite(changes))
    assert min(changes) > 0
    pipe = open_model(runs[""])
    pipe.check(read_for_drawing(tmp_path / "run"))
    # The same command finds everything done.
    again = run.run(runs, tmp_path / "run")[""]
    for a, b in zip(*map(jax.tree.leaves, (made.lora, again.lora)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_method_without_weights_is_refused_before_anything_is_written(
    tiny_folder: Path, tmp_path: Path
):
    runs = runs_of(tiny_folder, "attention_erasure")
    with pytest.raises(InputError, match="has no weights to train or to export"):
        run.run(runs, tmp_path / "run")
    with pytest.raises(InputError, match="method = 'uce' has no iterations"):
        run.run(runs_of(tiny_folder, "uce"), tmp_path / "run", replay=1)
    assert not (tmp_path / "run").exists()


def test_other_processes_get_a_method_s_own_settings(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first process sends the settings of every method, like those of each level."""

    def sent(make: Any, kind: Any = None) -> Any:
        return processes.read(processes.written(make, kind), kind)

    class ReachedError(Exception):
        pass

    def planned(config: Any, *_: Any) -> None:
        assert config == replace(given, synonyms=config.synonyms, samples=config.samples)
        raise ReachedError

    (given,) = runs_of(
        tiny_folder, "esd", esd={"eta": 2.5}, lower={"attn": 3.0}, alternation="joint"
    ).values()
    monkeypatch.setattr(processes, "from_first", sent)
    monkeypatch.setattr(prepare, "plan_of", planned)
    with pytest.raises(ReachedError):
        run.run({"": given}, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mace", "eap", "uce"])
def test_a_method_s_memory_is_planned(method: str, tiny_folder: Path, capsys):
    runs = runs_of(tiny_folder, method)
    assert memory_plan.show(runs, open_model(runs[""]))
    told = capsys.readouterr().out
    for step in METHODS[method].steps(runs[""]):
        assert f"{step} update" in told


@pytest.mark.slow
def test_what_a_method_drew_can_be_done_again(tiny_folder: Path, tmp_path: Path):
    runs = runs_of(tiny_folder, "eap", iterations=2)
    run.run(runs, tmp_path)
    run.run(runs, tmp_path, replay=2)
    told = json.loads((tmp_path / "replay-2.json").read_text())
    assert set(told["levels"]) == {"eap"}
    assert set(told["levels"]["eap"]["losses"]) == {"esd", "harm"}
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    for name, value in told["levels"]["eap"]["losses"].items():
        np.testing.assert_allclose(value, last[name], rtol=1e-4, atol=1e-9)
    assert set(told["drawn"]) == {"eap", "search"}
    assert set(told["drawn"]["eap"]["prompts"]) <= {"a photo of a cat", *SHUFFLED}


@pytest.mark.slow
def test_near_words_are_taken_from_a_long_list(tiny_folder: Path, tmp_path: Path):
    words = ["dog", "sun", "key", "tree", "ball", "car", "house", "fish", "boat", "cat", "moon"]
    file = tmp_path / "words.txt"
    file.write_text("\n".join([*words, "", "dog"]))
    changes = {"eap": {"vocabulary": str(file), "most": 2}}
    config = runs_of(tiny_folder, "eap", **changes)[""]
    found = eap.needs(config, listed(config), open_model(config)).pools[1]
    assert len(found) == 2
    assert set(found) <= set(words) - {"cat"}
    assert eap.needs(config, listed(config), open_model(config)).pools[1] == found
    # Only a sample of the four nearest is used.
    one = replace(config, eap=replace(config.method_settings(eap.Settings), most=1))
    pipe = open_model(config)
    others = [word for word in words if word != "cat"]
    vectors = np.asarray(pipe.encode(["cat", *others]).pooled, np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(vectors[1:] @ vectors[0]))
    assert set(eap.needs(one, listed(one), pipe).pools[1]) < {others[row] for row in order[:4]}
    # If only shapes are needed, any words will do.
    assert len(eap.needs(config, listed(config), None).pools[1]) == 2
    file.write_text("cat\n")
    with pytest.raises(InputError, match="has no words besides the concept's"):
        eap.needs(config, listed(config), None)


@pytest.mark.slow
def test_the_documentation_s_method_runs_as_printed(tiny_folder: Path, tmp_path: Path, monkeypatch):
    text = (tiny.ROOT / "docs" / "tutorials" / "add-method.md").read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "METHOD" in block
    ]
    module = types.ModuleType("forget")
    monkeypatch.setitem(sys.modules, "forget", module)
    exec(compile(code, "forget.py", "exec"), module.__dict__)
    monkeypatch.setitem(METHODS, "forget", module.METHOD)
    config = replace(tiny.run_config(tiny_folder, iterations=3), method="forget")
    adapter = run.run({"": config}, tmp_path)[""]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"step", "forget", "forget_gradient", "seconds"}] * 3
    assert max(np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(adapter.lora)) > 0
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "Method: Forget, 3 iterations at 16 × 16 pixels" in card
