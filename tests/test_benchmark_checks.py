"""What a benchmark refuses before it draws."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny
from PIL import Image

from erase.benchmark.prompt_sets import BenchmarkPrompt, PromptSet
from erase.benchmark.row import check_settings
from erase.benchmark.run import BenchmarkOptions, benchmark
from flux_jax.errors import InputError

PROMPTS = PromptSet("set.csv", (BenchmarkPrompt("a cat"),))
OPTIONS = BenchmarkOptions(steps=1, height=16, width=16, batch=1)


@pytest.mark.slow
def test_a_reference_that_cannot_be_compared_is_refused_before_drawing(
    tiny_folder: Path, tmp_path: Path
):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "one" / "0.png")
    judge = str(tiny.judge(tmp_path / "judge"))
    options = replace(OPTIONS, reference=tmp_path / "one", reference_judge=judge)
    with pytest.raises(InputError, match=r"one: 1 pictures \(.png\) directly in it"):
        benchmark(str(tiny_folder), PROMPTS, [""], {}, tmp_path / "out", options)
    options = replace(options, reference_judge=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"^reference_judge = '.*nowhere' has no .*; check"):
        benchmark(str(tiny_folder), PROMPTS, [""], {}, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_other_conditions_on_rows_are_named_when_a_benchmark_goes_on(tmp_path: Path):
    settings = {"model": "m", "prompts_sha256": "a", "where": ["hard=1"], "steps": 4}
    # As written before conditions were.
    (tmp_path / "settings.json").write_text(json.dumps({"prompts_sha256": "a", "steps": 4}))
    check_settings(tmp_path, settings)
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    for where, now in ((["hard=0", "mood>4"], "hard=0 and mood>4"), ([], "none")):
        with pytest.raises(InputError, match=rf"\(where = hard=1, now {now}\); name another"):
            check_settings(tmp_path, settings | {"prompts_sha256": "b", "where": where})
    # The same conditions on another file.
    with pytest.raises(InputError, match=r"\(prompts_sha256 = a, now b\)"):
        check_settings(tmp_path, settings | {"prompts_sha256": "b"})
