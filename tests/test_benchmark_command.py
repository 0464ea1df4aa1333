"""Benchmarks: pictures as those of `sample`, resuming, judging, and the table of results.

Axis letters: B pictures, h w picture sides.
"""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny
from jaxtyping import UInt8
from PIL import Image

from convert.adapters.files import write_lora
from erase.benchmark import draw, registry
from erase.benchmark.prompt_sets import BenchmarkPrompt, PromptSet
from erase.benchmark.registry import JudgeOptions
from erase.benchmark.results import read_result
from erase.benchmark.run import BenchmarkOptions, benchmark, notes_on
from erase.cli import table as table_command
from erase.cli.benchmark import checked_rows
from erase.judges.figures import percentage
from erase.judges.protocol import Figure, PictureJudge, Scores
from erase.judges.small_model import SmallModelJudge
from erase.model.adapters import parse_adapter
from erase.model.draw import draw as draw_as_sample
from erase.report.benchmarks import as_latex, as_page, join
from erase.runtime import signals
from flux_jax import load, lora
from flux_jax.errors import InputError, PreemptedError
from flux_jax.settings import SamplingOptions

LONG = "a red ball " * 40
PROMPTS = PromptSet(
    "set.csv",
    tuple(
        BenchmarkPrompt(text, seed, guidance, group=group)
        for text, seed, guidance, group in (
            ("a cat", 5, 3.5, "kept"),
            ("a dog", 4294967295, 7.0, "erased"),
            (LONG, 7, 3.5, "erased"),
            ("two cats", 5, 3.5, "kept"),
            ("a tree", 9, 3.5, "kept"),
        )
    ),
)
OPTIONS = BenchmarkOptions(steps=2, height=16, width=16, batch=2)


@dataclass
class Bright:
    """A judge that counts bright pictures; its first call may send a signal."""

    threshold: float = 100.0
    number: int | None = None
    judged: list[str] = field(default_factory=list)

    @property
    def description(self) -> Mapping[str, str | float]:
        return {"threshold": self.threshold}

    def scores(
        self, pictures: UInt8[np.ndarray, "B h w 3"], prompts: Sequence[str]
    ) -> list[Scores]:
        if self.number is not None:
            os.kill(os.getpid(), self.number)
            self.number = None
        self.judged += prompts
        return [{"mean": float(each.mean())} for each in pictures]

    def figures(self, scores: Sequence[Scores]) -> list[Figure]:
        return [percentage("bright", [each["mean"] > self.threshold for each in scores])]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark")
    assert isinstance(Bright(), PictureJudge)
    run(tiny_folder, out, Bright())
    return out


def run(model: Path, out: Path, judge: Bright, **changes: object) -> list[str]:
    """Run the benchmark; returns the prompts that were judged."""
    options = replace(OPTIONS, **changes)  # pyright: ignore[reportArgumentType]
    benchmark(str(model), PROMPTS, [""], {"bright": judge}, out, options)
    return judge.judged


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts of all batches that are drawn."""
    prompts: list[str] = []
    original = draw.draw_batch

    def counted(pipe: object, row: Sequence[draw.Drawing], *rest: object) -> np.ndarray:
        prompts.extend(each.prompt for each in row)
        return original(pipe, row, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(draw, "draw_batch", counted)
    return prompts


def picture(out: Path, number: int) -> np.ndarray:
    return np.asarray(Image.open(out / f"base/pictures/{number:06}.png")).astype(int)


@pytest.mark.slow
def test_pictures_are_those_of_sample_with_each_prompts_seed_and_guidance(
    finished: Path, tiny_folder: Path
):
    pipe = load(tiny_folder)
    size = SamplingOptions(2, 3.5, 16, 16, 2)
    same = draw_as_sample(pipe, ["a cat", "a tree"], [5, 9], size)
    (other,) = draw_as_sample(pipe, ["a dog"], [4294967295], replace(size, guidance=7.0))
    for number, expected in ((0, same[0]), (4, same[1]), (1, other)):
        # Rows of a product may be rounded differently, by one grey level.
        assert np.abs(picture(finished, number) - expected).max() <= 1
    (wrong,) = draw_as_sample(pipe, ["a dog"], [4294967295], size)
    assert np.abs(picture(finished, 1) - wrong).max() > 1
    with Image.open(finished / "base/pictures/000001.png") as file:
        notes = {name: file.info[name] for name in ("prompt", "seed", "guidance")}
    assert notes == {"prompt": "a dog", "seed": "4294967295", "guidance": "7.0"}


def test_figures_are_counted_over_all_pictures_and_by_group(finished: Path):
    (row,) = read_result(finished / "results.json")["rows"]
    (judge,) = row["judges"]
    means = [picture(finished, number).mean() for number in range(5)]
    bright = [mean > 100 for mean in means]
    (figure,) = judge["figures"]
    assert (figure["value"], figure["pictures"]) == (pytest.approx(20 * sum(bright)), 5)
    assert figure["low"] is not None
    assert figure["low"] < figure["value"] + 1e-9
    assert judge["groups"]["erased"][0]["pictures"] == 2
    assert judge["groups"]["kept"][0]["value"] == pytest.approx(
        100 * np.mean([bright[i] for i in (0, 3, 4)])
    )


def test_nothing_is_drawn_or_judged_twice(finished: Path, tiny_folder: Path, drawn: list[str]):
    before = (finished / "results.json").read_bytes()
    assert run(tiny_folder, finished, Bright()) == []
    assert drawn == []
    assert (finished / "results.json").read_bytes() == before
    # A lost picture is drawn again, and a torn line of scores is judged again from its picture.
    lost = picture(finished, 3)
    (finished / "base/pictures/000003.png").unlink()
    (scores,) = (finished / "base").glob("scores-*.jsonl")
    scores.write_text(scores.read_text()[:-9])
    assert run(tiny_folder, finished, Bright()) == ["a tree"]
    assert drawn == ["two cats"] * 2
    assert np.abs(picture(finished, 3) - lost).max() <= 1
    assert (finished / "results.json").read_bytes() == before


def test_another_judge_judges_kept_pictures_without_drawing(
    finished: Path, tiny_folder: Path, drawn: list[str]
):
    assert len(run(tiny_folder, finished, Bright(threshold=90.0))) == 5
    assert drawn == []
    assert run(tiny_folder, finished, Bright()) == []


class Distance:
    """In the place of FID: the number of pictures in both folders."""

    description: Mapping[str, str | float] = {"layer": 2048}

    def __init__(self, weights: Path | None):
        assert weights is None

    def check(self, folder: Path) -> None:
        assert folder.is_dir()

    def between(self, pictures: Path, reference: Path) -> Figure:
        files = [*pictures.glob("*.png"), *reference.glob("*.png")]
        return Figure("FID", float(len(files)), "", None, None, len(files))


def test_pictures_are_compared_with_a_reference(
    finished: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = (finished / "results.json").read_bytes()
    monkeypatch.setattr(registry, "FID", f"{__name__}:Distance")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert run(tiny_folder, finished, Bright(), reference=tmp_path) == []
    (row,) = read_result(finished / "results.json")["rows"]
    fid = row["judges"][1]
    assert (fid["judge"], fid["figures"][0]["value"]) == ("fid", 6.0)
    assert fid["description"] == {"layer": 2048, "reference": tmp_path.name}
    (finished / "results.json").write_bytes(before)


def test_pictures_of_other_settings_are_refused_in_one_line(finished: Path, tiny_folder: Path):
    with pytest.raises(InputError) as refused:
        run(tiny_folder, finished, Bright(), steps=3)
    assert "other settings (steps = 2, now 3); name another --out" in str(refused.value)
    (finished / "base/settings.json").rename(finished / "away")
    with pytest.raises(InputError, match=r"pictures without settings\.json"):
        run(tiny_folder, finished, Bright())
    (finished / "away").rename(finished / "base/settings.json")
    texts = {file: file.read_text() for file in (finished / "base").glob("scores-*.jsonl")}
    for file, text in texts.items():
        file.write_text(text.replace('"picture": 0', '"picture": x'))
    with pytest.raises(InputError, match=r"line 2 is damaged; remove the file to judge again"):
        run(tiny_folder, finished, Bright())
    for file, text in texts.items():
        file.write_text(text)


@pytest.mark.slow
def test_a_stopped_benchmark_goes_on_and_pictures_may_be_dropped(
    tiny_folder: Path, tmp_path: Path, drawn: list[str]
):
    with signals.listening(), pytest.raises(PreemptedError, match="SIGTERM: stopped"):
        run(tiny_folder, tmp_path, Bright(number=signal.SIGTERM), keep=False)
    first = len(set(drawn))
    assert first >= 2
    assert run(tiny_folder, tmp_path, Bright(), keep=False) == [
        each.text for each in PROMPTS.prompts[first:]
    ]
    assert set(drawn) == {each.text for each in PROMPTS.prompts}
    assert not list(tmp_path.rglob("*.png"))
    drawn.clear()
    assert run(tiny_folder, tmp_path, Bright(), keep=False) == []
    assert drawn == []


@pytest.mark.slow
def test_adapters_are_rows_beside_the_base_model(tiny_folder: Path, tmp_path: Path):
    pipe = load(tiny_folder)
    tree = lora.init(jax.random.key(0), pipe.params["transformer"], rank=2)
    write_lora(tmp_path / "mine" / "adapter", jax.tree.map(lambda leaf: leaf + 0.5, tree), 2.0)
    rows = checked_rows([f"{tmp_path}/mine:0.5"], base=True)
    options = replace(OPTIONS, first=1)
    out = tmp_path / "out"
    benchmark(str(tiny_folder), PROMPTS, rows, {"bright": Bright()}, out, options)
    titles = [row["title"] for row in read_result(out / "results.json")["rows"]]
    assert titles == ["base model", f"{tmp_path}/mine:0.5"]
    (base, mine) = sorted(out.rglob("*.png"))
    assert mine.parts[-3].partition("mine-0.5-")[2]
    adapters = [parse_adapter(rows[1])]
    (expected,) = draw_as_sample(
        pipe, ["a cat"], [5], SamplingOptions(2, 3.5, 16, 16, 1), adapters=adapters
    )
    assert np.abs(np.asarray(Image.open(mine)).astype(int) - expected).max() <= 1
    assert np.abs(np.asarray(Image.open(base)).astype(int) - expected).max() > 1
    with pytest.raises(InputError, match="is there twice"):
        checked_rows([rows[1]] * 2, base=False)
    # Another file under the same name.
    write_lora(tmp_path / "mine" / "adapter", tree, 2.0)
    with pytest.raises(InputError, match="other settings"):
        benchmark(str(tiny_folder), PROMPTS, rows, {}, out, options)


def test_long_prompts_are_cut_as_in_diffusers_and_counted(tiny_folder: Path):
    pipe = load(tiny_folder)
    limit = pipe.tokenizer_2.model_max_length
    cut = pipe.tokenize([LONG], cut=True)[1]
    settings = {"padding": "max_length", "max_length": limit, "truncation": True}
    assert cut.tolist() == pipe.tokenizer_2([LONG], **settings).input_ids
    with pytest.raises(InputError, match="over the limit"):
        pipe.tokenize([LONG])
    note = draw.cut_note(pipe, ["a cat", LONG, LONG])
    assert note.startswith(f"1 prompt over the limit of {limit} tokens (the longest has ")
    assert draw.cut_note(pipe, ["a cat"]) == ""
    config = replace(pipe.transformer.config, guidance_embeds=False)
    without = replace(pipe, transformer=replace(pipe.transformer, config=config))
    every = [draw.Drawing(0, "a cat", 0, 3.5, 16, 16)]
    assert any("no guidance" in line for line in notes_on(without, PROMPTS, every, OPTIONS))
    assert not any("no guidance" in line for line in notes_on(pipe, PROMPTS, every, OPTIONS))
    # The file's sizes are named only if they are others.
    for height, notes in ((16, 0), (32, 1)):
        sized = PromptSet("s.csv", (BenchmarkPrompt("a cat", height=height, width=16),))
        assert len(notes_on(pipe, sized, every, OPTIONS)) == notes


def test_batches_have_one_number_of_pictures_for_each_size():
    sizes = [(16, 16)] * 5 + [(16, 32)]
    every = [draw.Drawing(i, "a", i, 3.5, *size) for i, size in enumerate(sizes)]
    rows = draw.batches(every, frozenset({0}), 3)
    assert [[each.number for each in row] for row in rows] == [[1, 2, 3], [4, 4, 4], [5]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nudnet", "judge = 'nudnet' is unknown; did you mean nudenet"),
        ("q16", "needs the file of its vectors: --judge q16=PATH"),
        ("emoji=nowhere", "nowhere does not exist"),
        ("nudenet=much", "the threshold must be a number"),
    ],
)
def test_a_judge_that_cannot_be_used_is_refused(text: str, said: str):
    with pytest.raises(InputError, match=said):
        registry.open_judge(text)


def test_the_small_models_judge_counts_what_prompts_name(tmp_path: Path):
    tiny_judge = tiny.judge(tmp_path / "judge")
    judge = registry.open_judge(f"emoji={tiny_judge}", JudgeOptions(("dog",)))
    assert isinstance(judge, SmallModelJudge)
    assert [judge.named(text) for text in ("A cat and two dogs", "nothing")] == [[0, 1], []]
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    scores = judge.scores(pictures, ["a cat", "a cat and a dog", "nothing"])
    cat, dog = (judge.judge.shows(pictures, word) for word in tiny.LABELS.entities[:2])
    assert [each.get("named") for each in scores] == [cat[0], cat[1] and dog[1], None]
    assert [each["shows dog"] for each in scores] == dog.astype(float).tolist()
    acc, count = judge.figures(scores)
    assert (acc.name, acc.unit, acc.pictures) == ("Acc", "%", 2)
    assert (count.name, count.value, count.unit) == ("dog", dog.sum(), "pictures")
    with pytest.raises(InputError, match="is a relation"):
        SmallModelJudge.load(tiny_judge, ["on"])


def nudity(title: str, value: float, prompts: str = "i2p.csv", judge: str = "nudenet") -> dict:
    figure = {"name": "Total", "unit": "detections", "value": value, "low": value - 1}
    if judge == "clip":
        figure |= {"name": "CLIP score", "unit": ""}
    found = {"judge": judge, "description": {"threshold": 0.6}, "groups": {}}
    found["figures"] = [{**figure, "high": value + 1, "pictures": 9}]
    row = {"title": title, "adapters": [], "pictures": 9, "judges": [found]}
    return {
        "format": "erase-anything benchmark 1",
        "model": "flux",
        "prompts": prompts,
        "settings": {"steps": 28},
        "notes": [],
        "rows": [row],
    }


def test_results_of_several_machines_are_joined_with_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = []
    for number, content in enumerate(
        [nudity("a_b <i>", 7), nudity("base model", 9), nudity("a_b <i>", 30, "c.csv", "clip")]
    ):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(content))
    table_command.main([*map(str, files), "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | nudenet: Total, detections | clip: CLIP score |"
    assert lines[2:4] == [
        r"| a\_b \<i\> | 7 [6, 8] | 30 [29, 31] |",
        "| base model | 9 [8, 10] | – |",
    ]
    assert "| EraseAnything (paper's Table 2) | 199 | 30.24 |" in lines
    assert any("4,703 prompts" in line for line in lines)
    assert "a_b <i>" not in (tmp_path / "table.html").read_text()
    assert r"a\_b <i> & 7 [6, 8] & 30 [29, 31] \\" in (tmp_path / "table.tex").read_text()
    assert (tmp_path / "table.csv").read_text().count("\n") == 4
    table = join([read_result(files[0])], ["4"])
    assert "<td>L_esd + L_attn (paper" in as_page(table)
    assert r"L\_esd + L\_attn (paper's Table 4) & – & 15.3 & 82.1 \\" in as_latex(table)
    with pytest.raises(SystemExit):
        table_command.main([str(files[0]), "--out", f"{files[0]}/tables"])
    assert f"{files[0]} is not a folder; name another" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        table_command.main([str(files[0]), "--paper", "9"])
    assert "paper = '9' is not one of the paper's tables" in capsys.readouterr().err


def test_rows_of_equal_names_differ_in_their_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    notes = {"notes": ["i2p.csv: 1 prompt over the limit of 512 tokens"]}
    for name, content in (
        ("a", nudity("base model", 9) | notes),
        ("b", nudity("base model", 7) | {"settings": {"steps": 50}}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    table_command.main([str(tmp_path / name) for name in ("a", "a", "b")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [
        "| base model | 9 [8, 10] |",
        "| base model (i2p.csv, 50 steps) | 7 [6, 8] |",
    ]
    assert not lines[4].startswith("| base model")
    assert "- i2p.csv: 1 prompt over the limit of 512 tokens" in lines
