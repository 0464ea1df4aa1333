"""A whole run on a tiny model: its files, its resumption, and its refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from helpers import warm
from helpers.endpoint import Endpoint, says
from safetensors import safe_open

from convert.adapters.files import read_lora
from erase.config.schema import AdapterConfig, BankConfig, Checkpoints, Config, Evaluation, Model
from erase.data.plan import stores_velocities
from erase.data.words.irrelevant import listed
from erase.methods import method_of
from erase.methods.settings.erase_anything import Upper
from erase.runs import RunConfig
from erase.runtime.run_folder import WRITTEN
from erase.training import checkpoints, resume_check, run
from erase.training.prepare import resolve_runs
from flux_jax.errors import InputError, messages

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = Path("adapter") / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def config(tiny_folder: Path) -> Config:
    return RunConfig(
        concept="soccer ball",
        prompts=("a photo of a {}", "a {} and a dog"),
        synonyms=("football",),
        irrelevant=("apple", "tree"),
        model=Model(str(tiny_folder)),
        height=16,
        width=16,
        steps=3,
        iterations=5,
        checkpoints=Checkpoints(every=2),
        adapter=AdapterConfig(rank=2, alpha=3.0),
        bank=BankConfig(sentences=3, trajectories=3, batch=4),
        upper=Upper(negatives=2, pictures=2),
        evaluation=Evaluation(pictures=0),
    )


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder; read-only."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run.run({"": config}, workdir, command="python -m erase.train --here")
    return workdir


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(workdir: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(workdir)]


@pytest.mark.slow
def test_a_runs_folder_is_complete(config: Config, finished: Path):
    written = lines(finished)
    assert [line["step"] for line in written] == [1, 2, 3, 4, 5]
    for line in written:
        assert {"esd", "attn", "lora", "rsc", "seconds"} <= line.keys()
        assert all(np.isfinite(value) for value in line.values())
    described = json.loads((finished / "config.json").read_text())
    assert described["command"] == "python -m erase.train --here"
    assert described["lower"]["learning_rate"] == config.lower.learning_rate
    assert described["concept"] == "soccer ball"
    assert "soccer ball" in (finished / "report.html").read_text()
    assert checkpoints.has_checkpoints(finished)
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "adapter",
        "checkpoints",
        "config.json",
        "finished.json",
        "irrelevant.json",
        "metrics.jsonl",
        "report.html",
    }


@pytest.mark.slow
def test_the_adapter_is_what_diffusers_loads(config: Config, finished: Path):
    lora, alpha = read_lora(finished / ADAPTER)
    assert alpha == 3.0
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(lora))
    with safe_open(finished / ADAPTER, "np") as file:
        metadata = file.metadata()
    assert metadata["concept"] == "soccer ball"
    assert metadata["base_model"] == config.model.path
    assert metadata["method"] == "EraseAnything"
    assert metadata["version"]
    # diffusers refuses the file unless targets and ranks are as it expects.
    state, _ = FluxPipeline.lora_state_dict(str(finished / "adapter"), return_alphas=True)
    assert len([name for name in state if name.endswith("lora_A.weight")]) == 4


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    config: Config, finished: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    run.run({"": replace(config, iterations=3)}, workdir)
    # Lines after the last checkpoint, as after a crash.
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4}\n')
    resumed = run.run({"": config}, workdir)[""]
    assert without_times(workdir) == without_times(finished)
    expected, _ = read_lora(finished / ADAPTER)
    for a, b in zip(jax.tree.leaves(resumed.lora), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_all_that_a_run_writes_is_known(finished: Path):
    assert {path.name for path in finished.iterdir()} <= set(WRITTEN)


@pytest.mark.slow
def test_another_runs_folder_is_left_alone(config: Config, finished: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = (workdir / "metrics.jsonl").read_text()
    changed = replace(config, seed=3, lower=replace(config.lower, eta=2.0))
    with pytest.raises(InputError, match="holds a run with other settings") as refused:
        run.run({"": changed}, workdir)
    told = str(refused.value).splitlines()[1:]
    assert [line.strip() for line in told] == [
        "lower.eta: 1.0 there, 2.0 now",
        "seed: 0 there, 3 now",
    ]
    with pytest.raises(InputError, match="concept: None there, 'soccer ball' now"):
        run.run({"": config, "added": config}, workdir)
    with pytest.raises(InputError, match="'no/such/folder' does not exist"):
        run.run({"": replace(config, model=Model("no/such/folder"))}, workdir, overwrite=True)
    assert (workdir / "metrics.jsonl").read_text() == before
    assert (workdir / "config.json").read_text() == (finished / "config.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Model("no/such/folder")}, "'no/such/folder' does not exist"),
        ({"prompts": ("a dog",)}, "'a dog' does not hold the concept"),
        ({"width": 17}, "width = 17 is not a multiple of 4"),
        ({"text_tokens": 99}, "text_tokens = 99 is over the limit of 32"),
        ({"text_tokens": 4}, "over the limit of 4"),
        ({"adapter": AdapterConfig(targets=("dual_blocks/nothing",))}, "dual_blocks/nothing"),
        ({"evaluation": Evaluation(judge="no/judge")}, "judge = 'no/judge' has no config.json"),
        ({"evaluation": Evaluation(templates=("a {}" + " x" * 40,))}, "over the limit of 32"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    config: Config, tmp_path: Path, changes: dict, message: str
):
    with pytest.raises(InputError, match=message):
        run.run({"": replace(config, **changes)}, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_runs_that_train_at_once_are_what_each_is_alone(
    config: Config, finished: Path, tmp_path: Path
):
    other = replace(config, concept="apple", irrelevant=("soccer ball", "tree"), seed=4)
    other = replace(other, prompts=("a red {}",), synonyms=("fruit", "red apple"))
    workdir = tmp_path / "both"
    adapters = run.run({"ball": config, "apple": other}, workdir)
    expected, _ = read_lora(finished / ADAPTER)
    found = adapters["ball"].lora
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for name, concept in (("ball", "soccer ball"), ("apple", "apple")):
        assert json.loads((workdir / name / "config.json").read_text())["concept"] == concept
        assert len(lines(workdir / name)) == 5
        lora, _ = read_lora(workdir / name / ADAPTER)
        for a, b in zip(*map(jax.tree.leaves, (lora, adapters[name].lora)), strict=True):
            np.testing.assert_array_equal(a, b)
    again = run.run({"ball": config, "apple": other}, workdir)
    for a, b in zip(*(jax.tree.leaves(x["apple"].lora) for x in (adapters, again)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_overwritten_run_leaves_nothing_of_its_own(config: Config, tmp_path: Path):
    workdir = tmp_path / "run"
    (workdir / "pictures").mkdir(parents=True)
    described = resolve_runs({"": replace(config, seed=3)})[""].description("python -m erase.train")
    for name in ("report.html", "replay-3.json", "pictures/Acc_e-00-after.png", "notes.txt"):
        (workdir / name).write_text("{}")
    with pytest.raises(InputError, match=r"no config\.json of a run: --overwrite removes only"):
        run.run({"": config}, workdir, overwrite=True)
    (workdir / "config.json").write_text(json.dumps(described))
    # A run that had not come to its first checkpoint is one too.
    with pytest.raises(InputError, match=r"other settings: .* --overwrite to replace it"):
        run.run({"": config}, workdir)
    (workdir / "pictures" / "holiday.jpg").write_text("mine")
    # All iterations, whose programs are compiled already.
    run.run({"": config}, workdir, overwrite=True)
    assert json.loads((workdir / "config.json").read_text())["concept"] == "soccer ball"
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4, 5]
    assert (workdir / "notes.txt").is_file()
    assert [path.name for path in (workdir / "pictures").iterdir()] == ["holiday.jpg"]
    assert not (workdir / "replay-3.json").exists()
    # The run's lock is gone.
    assert not list(workdir.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["erase.train", "erase.cli.evaluate"])
def test_commands_end_with_code_2_and_no_traceback(program: str, finished: Path, tmp_path: Path):
    command = ["-m", program, "--config", "configs/emoji_cat.py"]
    command += ["--workdir", str(tmp_path / "run"), "--config.model.path=no/such/folder"]
    if program == "erase.cli.evaluate":
        command.append(f"--adapter={finished}")
    done = warm.run(*command)
    assert done.returncode == 2
    assert "error: model = 'no/such/folder' does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_language_model_s_sentences_are_trained_on_and_kept(
    config: Config, tmp_path: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture
):
    written = ["a soccer ball on grass", "the soccer ball"]
    endpoint.answers = [says(json.dumps({"sentences": written}))]
    further = replace(config, more_prompts=2, iterations=1)
    run.run({"": further}, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "sentences.json").read_text())
    assert kept["sentences"] == written
    said = capsys.readouterr().out
    assert "a soccer ball on grass" in said
    assert "some-model at" in said
    run.run({"": replace(further, iterations=2)}, tmp_path / "run")
    assert len(endpoint.requests) == 1
    with pytest.raises(InputError, match="more_prompts: 2 there, 3 now"):
        run.run({"": replace(further, more_prompts=3)}, tmp_path / "run")


def described_at_38eabc7(config: Config) -> dict:
    """The `config.json` of a run, as written by the program before its move into packages."""
    learning = {"weight_decay": 0.01, "clip": None}
    return {
        "concept": "soccer ball",
        "prompts": list(config.prompts),
        "more_prompts": 0,
        "kind": None,
        "synonyms": ["football"],
        "part_of_speech": "noun",
        "sense": None,
        "irrelevant": ["apple", "tree"],
        "language_model": False,
        "model": {"path": config.model.path, "dtype": None, "quantize": None, "remat": False},
        "mesh": {"data": None, "fsdp": None},
        "height": 16,
        "width": 16,
        "text_tokens": None,
        "steps": 3,
        "guidance": 3.5,
        "method": "erase_anything",
        "alternation": "bilevel",
        "iterations": 5,
        "batch_size": 1,
        "seed": 0,
        "adapter": {"rank": 2, "alpha": 3.0, "targets": list(config.adapter.targets)},
        "bank": {"sentences": 3, "shuffled": 1.0, "trajectories": 3, "batch": 4},
        "lower": learning
        | {"learning_rate": 1e-3, "esd": 1.0, "attn": 1.0, "eta": 1.0, "erase_to": ""}
        | {"stand_in": None, "trajectories": "teacher", "attn_form": "normalised"},
        "upper": learning
        | {"learning_rate": 5e-4, "lora": 0.1, "rsc": 0.1, "lora_target": "noise", "pictures": 2}
        | {"prompts": [], "without_concept": False, "folder": None, "rsc_form": "infonce"}
        | {"blocks": "all", "temperature": 0.07, "negatives": 2, "early": 0.25},
        "early_stop": {"every": 0, "pictures": 32, "share": 0.0, "seed": 3_000_000},
        "checkpoints": {"every": 2, "last": 2, "best": 1, "adapter": "last"},
        "guard": {"skips": 5, "divergence": 20.0, "hung": 10.0, "patience": 1800.0},
        "evaluation": {"pictures": 0, "templates": ["a photo of a {}"], "judge": None},
        "command": "python -m erase.train --before",
        "synonyms_from": "the configuration",
    }


def test_a_run_from_before_the_packages_is_known(config: Config, tmp_path: Path):
    earlier = described_at_38eabc7(config)
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    now = {"": resolve_runs({"": config})[""].description("python -m erase.train --now")}
    resume_check.check(tmp_path, now, overwrite=False)
    # It is really compared.
    (tmp_path / "config.json").write_text(json.dumps(earlier | {"seed": 3}))
    with pytest.raises(InputError, match=r"--overwrite to replace it.*\n.*seed: 3 there, 0 now"):
        resume_check.check(tmp_path, now, overwrite=False)


def test_a_run_is_not_resumed_with_fewer_iterations_than_it_has_made(
    config: Config, tmp_path: Path
):
    def check(iterations: int, overwrite: bool = False) -> None:
        changed = resolve_runs({"": replace(config, iterations=iterations)})
        resume_check.check(tmp_path, {"": changed[""].description("")}, overwrite=overwrite)

    (tmp_path / "config.json").write_text(
        json.dumps(resolve_runs({"": replace(config, iterations=5)})[""].description(""))
    )
    check(2)
    for step in (2, 3):
        for name in ("manifest.json", "_CHECKPOINT_METADATA"):
            file = tmp_path / "checkpoints" / str(step) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    check(3)
    check(2, overwrite=True)
    with pytest.raises(InputError, match=r"^iterations = 2 is fewer than the 3 that .* least 3, "):
        check(2)


@pytest.mark.parametrize("method", ["erase_anything", "esd", "uce"])
def test_a_choice_of_velocities_may_be_spelt_out_or_left_out(
    config: Config, tmp_path: Path, method: str
):
    config = replace(config, method=method)
    needs = method_of(config).needs(config, listed(config), None)
    stored = stores_velocities(config, needs)
    same, other = ("stored", "computed") if stored else ("computed", "stored")
    given = {
        teacher: {"": replace(config, bank=replace(config.bank, teacher=teacher))}
        for teacher in (None, same, other)
    }
    for before, after in ((None, same), (same, None), (None, other), (other, None)):
        (there, now) = (
            resolve_runs(given[each])[""].description("python") for each in (before, after)
        )
        (tmp_path / "config.json").write_text(json.dumps(there))
        resume_check.keep_teacher(tmp_path, {"": now}, given[after])
        # Without velocities to look up, nothing is chosen.
        if other in (before, after) and needs.velocities:
            with pytest.raises(InputError, match=r"\n.*bank\.teacher: .* there, .* now"):
                resume_check.check(tmp_path, {"": now}, overwrite=False)
        else:
            resume_check.check(tmp_path, {"": now}, overwrite=False)
            assert now == there


def test_a_length_that_changes_the_choice_of_velocities_is_noted(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def resume(before: int, after: int, teacher: str | None = None) -> str:
        # A process says the same only once.
        messages.note.cache_clear()
        given = [
            {"": replace(config, iterations=each, bank=replace(config.bank, teacher=teacher))}
            for each in (before, after)
        ]
        there, now = (resolve_runs(each)[""].description("python") for each in given)
        (tmp_path / "config.json").write_text(json.dumps(there))
        resume_check.keep_teacher(tmp_path, {"": now}, given[1])
        resume_check.check(tmp_path, {"": now}, overwrite=False)
        return capsys.readouterr().err

    needs = method_of(config).needs(config, listed(config), None)
    short, long = (
        next(n for n in steps if stores_velocities(replace(config, iterations=n), needs) == stores)
        for stores, steps in ((False, range(1, 100)), (True, range(1, 1000)))
    )
    # Without a checkpoint it begins again.
    assert resume(short, long) == ""
    for name in ("manifest.json", "_CHECKPOINT_METADATA"):
        file = tmp_path / "checkpoints" / "1" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    said = resume(short, long)
    assert f"iterations = {long}, {short} before" in said
    assert "give --config.bank.teacher=computed at every start" in said
    assert resume(long, long + 1) == resume(short, long, "computed") == ""


@pytest.mark.slow
def test_a_run_from_before_the_packages_goes_on(config: Config, finished: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "config.json").write_text(json.dumps(described_at_38eabc7(config)))
    run.run({"": replace(config, iterations=6)}, workdir)
    assert without_times(workdir)[:5] == without_times(finished)
    assert len(lines(workdir)) == 6
