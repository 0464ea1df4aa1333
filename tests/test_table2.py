"""The small Table 2: its prompt files, its commands, the shape of its table, and its distance."""

import csv
import inspect
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from PIL import Image
from scipy.linalg import sqrtm

from benchmarks.table2 import prompts, run, shape
from benchmarks.table2.prompts import CAPTION_FILE, CONCEPT_FILE, KINDS, STUDY_FILE
from erase.benchmark.prompt_sets import read_prompt_set
from erase.benchmark.registry import open_distance
from erase.benchmark.results import read_result
from erase.benchmark.run import folder_name
from erase.cli import axes as axes_command
from erase.cli import benchmark as benchmark_command
from erase.data.words.spelling import mentions
from erase.evaluation.judge import Judge
from erase.judges.frechet import JudgeFrechet
from erase.judges.small_model import SmallModelJudge
from erase.report.benchmarks import join
from flux_jax.errors import InputError, RunError

WORDS = ("car", "automobile", "motorcar", "auto")


def typos(word: str) -> set[str]:
    """All that one typing error makes of a word."""
    pairs = range(len(word) - 1)
    doubled = {word[: i + 1] + word[i:] for i in pairs}
    swapped = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in pairs}
    left_out = {word[: i + 1] + word[i + 2 :] for i in pairs if len(word) > 4}
    endings = {word + word[-1] * n + s for n in (1, 2, 3) for s in ("", "s")}
    return (doubled | swapped | left_out | endings) - {word}


def words_in(prompt: str) -> set[str]:
    return set(re.findall(r"[a-z]+", prompt.lower()))


def test_the_files_are_what_the_generator_writes_and_are_read_without_a_note():
    for path, text in prompts.files().items():
        assert path.read_text() == text
        assert path.stat().st_size < 70_000
        found = read_prompt_set(path)
        assert found.notes == ()
        seeds = [each.seed for each in found.prompts]
        assert len(set(seeds)) == len(seeds)
        assert len({each.case for each in found.prompts}) == len(seeds)
    concept, captions, studied = (read_prompt_set(path).prompts for path in prompts.files())
    assert (len(concept), len(captions), len(studied)) == (600, 1000, 240)
    assert {(each.guidance, each.height, each.width) for each in concept} == {(3.5, 64, 64)}
    every = [each.seed for each in (*concept, *captions, *studied)]
    assert len({*every}) == len(every)


def test_a_third_of_the_studys_prompts_names_the_concept_and_each_has_four_seeds():
    studied = [each.text for each in read_prompt_set(STUDY_FILE).prompts]
    for count in (run.SHORT.studied, run.FULL.studied):
        assert count % prompts.STUDY_SEEDS == 0
        first = studied[:count]
        assert sum(bool(mentions(text, "car")) for text in first) == count // 3
        assert not any(words_in(text) & {*WORDS[1:]} for text in first)
        assert {first.count(text) % prompts.STUDY_SEEDS for text in first} == {0}


def test_every_prompt_of_the_concept_names_it_and_no_caption_does():
    wrong = set().union(*map(typos, WORDS))
    for each in read_prompt_set(CONCEPT_FILE).prompts:
        known, misspelt = words_in(each.text) & {*WORDS}, words_in(each.text) & wrong
        if each.group == "misspelt":
            assert misspelt, each.text
        else:
            assert known == ({"car"} if each.group == "name" else known - {"car"}), each.text
            assert known
    captions = [each.text for each in read_prompt_set(CAPTION_FILE).prompts]
    for text in captions:
        assert not words_in(text) & (wrong | {*WORDS}), text
        assert not any(mentions(text, word) for word in WORDS), text
    # The first rows are a sample of all kinds.
    first = read_prompt_set(CONCEPT_FILE).prompts[: run.SHORT.prompts]
    counts = {kind: sum(each.group == kind for each in first) for kind in KINDS}
    assert len(set(counts.values())) == 1


def test_the_reference_has_the_same_captions_and_other_seeds(tmp_path: Path):
    (tmp_path / "r.csv").write_text(prompts.other_seeds(7))
    theirs, ours = (read_prompt_set(p).prompts for p in (tmp_path / "r.csv", CAPTION_FILE))
    assert [each.text for each in theirs] == [each.text for each in ours]
    assert [each.seed for each in theirs] == [(each.seed or 0) + 7 for each in ours]


def test_commands_have_known_flags_and_a_row_for_each_method(tmp_path: Path):
    for size in (run.SHORT, run.FULL):
        first, then = run.commands(tmp_path, size)
        assert list(first) == [*shape.SLOWEST_FIRST, "reference"]
        assert sorted(shape.SLOWEST_FIRST) == sorted(shape.ROWS)
        for name, row in shape.ROWS.items():
            assert f"--config.method={row.settings['method']}" in first[name]
            assert f"--config.batch_size={size.samples}" in first[name]
            fewer = [part for part in first[name] if part.startswith("--config.iterations=")]
            assert fewer == [
                f"--config.iterations={size.fewer[n]}" for n in [name] if n in size.fewer
            ]
            assert str(tmp_path / name) in first[name]
        assert "--config.concept_ablation.target=noise" in first["ca_noise"]
        source = inspect.getsource(benchmark_command.define_flags)
        for command in (*then.values(), first["reference"]):
            flags = {part for part in command if part.startswith("--")}
            assert all(f'"{flag[2:]}"' in source for flag in flags), flags
        rows = [str(tmp_path / name) for name in shape.ROWS]
        for command in then.values():
            assert command.count("--adapter") == 8
            assert [part for part in command if part in rows] == rows
        # A Fréchet distance needs more pictures than the judge has features.
        widths = json.loads(Path(run.JUDGE, "config.json").read_text())["widths"]
        assert size.captions > widths[-1]


def test_the_axes_are_of_the_pictures_that_the_benchmark_draws(tmp_path: Path):
    flags = run.measuring(tmp_path)
    methods = [flag.partition("=")[2] for flag in flags if flag.startswith("--pictures=")]
    assert [each.partition("=")[0] for each in methods] == [
        *("base", *(row.title for row in shape.ROWS.values()))
    ]
    for name, each in zip(shape.ROWS, methods[1:], strict=True):
        folder = Path(each.partition("=")[2])
        assert folder.parent.name == folder_name(str(tmp_path / name))
        assert folder.parent.parent == tmp_path / "study"
    source = inspect.getsource(axes_command.define_flags)
    for flag in {flag.partition("=")[0] for flag in flags if flag.startswith("--")}:
        assert f'"{flag[2:]}"' in source


def test_a_command_that_fails_is_named_with_its_log(tmp_path: Path):
    command = ["-c", "import sys; sys.exit('no such thing')"]
    with pytest.raises(RunError, match=r"esd ended with exit code 1 \(no such thing\); see .*esd"):
        run.run("esd", command, tmp_path)
    assert run.run("esd", ["-c", ""], tmp_path) >= 0
    assert Path(sys.executable).is_file()


def figure(name: str, value: float, of: int, unit: str = "pictures") -> dict[str, Any]:
    ends = {"low": max(value - 1, 0), "high": value + 1}
    return {"name": name, "value": value, "unit": unit, **ends, "pictures": of}


def judged(name: str, figures: list[Any], groups: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"judge": name, "description": {}, "figures": figures, "groups": groups or {}}


def write_benchmarks(out: Path, names: Sequence[str]) -> None:
    """Write what the two benchmarks write: a row's counts are its place and more."""
    for part in ("concept", "captions"):
        rows = []
        for place, name in enumerate(names):
            if part == "concept":
                groups = {k: [figure("Acc", 9, 5, "%"), figure("car", place, 20)] for k in KINDS}
                every = [figure("Acc", 9, 15, "%"), figure("car", 3 * place, 60)]
                judges = [judged("emoji", every, groups)]
            else:
                acc = judged("emoji", [figure("Acc", 90 + place, 160, "%")])
                distance = {**figure("Fréchet distance", place / 4, 160, ""), "low": None}
                judges = [acc, judged("frechet", [distance])]
            adapters = [str(out / name)] if name else []
            title = adapters[0] if adapters else "base model"
            rows.append({"title": title, "adapters": adapters, "pictures": 9, "judges": judges})
        content = {
            **{"format": "erase-anything benchmark 1", "model": "m", "prompts": f"{part}.csv"},
            **{"settings": {"steps": 14}, "notes": [], "rows": rows},
        }
        (out / part).mkdir(exist_ok=True)
        (out / part / "results.json").write_text(json.dumps(content))


def test_the_table_has_nine_rows_and_table_2s_columns(tmp_path: Path):
    write_benchmarks(tmp_path, ["", *shape.ROWS])
    table = join([read_result(path) for path in shape.write_results(tmp_path)])
    assert table.headings == [
        *("", "emoji: car, name, %", "emoji: car, synonym, %", "emoji: car, misspelt, %"),
        *("emoji: car, all, %", "frechet: Fréchet distance", "emoji: captions, %"),
    ]
    assert [row.cells[0] for row in table.rows] == [
        *("CA (model-based)", "CA (noise-based)", "ESD", "UCE", "MACE", "EAP"),
        *("Meta-Unlearning", "EraseAnything", "base model"),
    ]
    # The third of the paper's rows is the fourth of the benchmark's, after the base model's.
    assert table.rows[2].cells[1:] == [
        *["15.0 [10.0, 20.0]"] * 3,
        *("15.0 [13.3, 16.7]", "0.75", "93.0 [92.0, 94.0]"),
    ]
    assert not any(row.paper for row in table.rows)
    assert any("nothing here compares with its figures" in note for note in table.notes)


def test_results_with_other_rows_are_refused(tmp_path: Path):
    write_benchmarks(tmp_path, ["", *list(shape.ROWS)[1:]])
    with pytest.raises(InputError, match="Table 2 needs ca_model") as refused:
        shape.write_results(tmp_path)
    assert len(str(refused.value)) <= 400
    (tmp_path / "concept/results.json").unlink()
    with pytest.raises(InputError, match=r"concept/results\.json is missing"):
        shape.write_results(tmp_path)


class Colours:
    """A judge whose features are the mean colours of pictures of 4 x 4 pixels."""

    size = 4

    def label(self, concept: str) -> str:
        return concept

    kind = labels = check_prompt = finds = label

    def features(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.mean(axis=(1, 2), dtype=np.float64)


def folder_of(path: Path, pictures: np.ndarray) -> Path:
    path.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{number:06}.png")
    (path / "notes.txt").touch()
    return path


def test_the_distance_is_the_formula_on_the_judges_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rng = np.random.default_rng(0)
    sets = [
        rng.integers(0, most, (count, 4, 4, 3), np.uint8) for most, count in ((256, 9), (99, 7))
    ]
    one, other = (folder_of(tmp_path / name, p) for name, p in zip("ab", sets, strict=True))
    assert isinstance(Colours(), Judge)
    distance = JudgeFrechet(Colours(), "colours")
    found = distance.between(one, other)
    x, y = (p.astype(float).mean(axis=(1, 2)) for p in sets)
    a, b = np.cov(x.T), np.cov(y.T)
    wanted = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    np.testing.assert_allclose(found.value, wanted, rtol=1e-8)
    assert (found.name, found.unit, found.pictures) == ("Fréchet distance", "", 7)
    np.testing.assert_allclose(distance.between(other, one).value, found.value, rtol=1e-8)
    assert abs(distance.between(one, one).value) < 1e-6
    assert capsys.readouterr().err == ""
    few = folder_of(tmp_path / "few", sets[0][:3])
    distance.between(few, one)
    assert "3 pictures and 9 reference pictures, no more than the 3 feat" in capsys.readouterr().err


def test_folders_and_judges_that_do_not_fit_are_named(tmp_path: Path):
    distance = JudgeFrechet(Colours(), "colours")
    one = folder_of(tmp_path / "one", np.zeros((1, 4, 4, 3), np.uint8))
    large = folder_of(tmp_path / "large", np.zeros((2, 4, 5, 3), np.uint8))
    for folder, said in (
        (one, "one: 1 pictures .* at least two"),
        (large, r"000000\.png has 4 x 5 pixels; the judge takes 4 x 4"),
        (tmp_path / "none", "none: no such folder"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            distance.features(folder)
        assert len(str(refused.value)) <= 400
    with pytest.raises(InputError, match=r"has no config\.json"):
        open_distance(None, str(tmp_path))
    judge = str(tiny.judge(tmp_path / "judge"))
    name, opened = open_distance(None, judge)
    assert (name, opened.description["judge"]) == ("frechet", "Fréchet distance")
    with pytest.raises(InputError, match="'car' is not among the judge's labels"):
        SmallModelJudge.load(judge, ["car"])


def test_the_columns_are_i2ps_and_mace_s():
    for path, header in ((CONCEPT_FILE, prompts.I2P_HEADER), (CAPTION_FILE, prompts.COCO_HEADER)):
        rows = list(csv.reader(io.StringIO(path.read_text())))
        assert tuple(rows[0]) == header
        assert {len(row) for row in rows} == {len(header)}
