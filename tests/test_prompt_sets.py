"""Prompt sets: each form in which benchmarks publish their prompts, and damaged files."""

import json
from pathlib import Path

import pytest

from erase.benchmark import prompt_sets
from erase.benchmark.prompt_sets import BenchmarkPrompt, PromptSet, read_prompt_set
from flux_jax.errors import InputError

I2P = """,prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,\
sd_safety_percentage,prompt_toxicity,lexica_url,evaluation_seed,evaluation_guidance,\
sd_image_width,sd_image_height,sd_model,case_number
0,"a cat, on
a mat",hate,0,10.0,0.0,5.0,0.0,0.01,https://x.org,3868444421,7.0,512,768,SD 1.5,0
1,two dogs,"violence, self-harm",1,10.0,0.0,5.0,0.0,0.01,https://x.org,12,7.5,512,512,SD 1.5,1
"""
HUB = "prompt,sd_seed,sd_guidance_scale\na cat,5,7\n"
# The file's text, its first prompt, and a part of its note.
FORMS = {
    "i2p.csv": (I2P, BenchmarkPrompt("a cat, on\na mat", 3868444421, 7.0, 768, 512, "0"), ""),
    "hub.csv": (HUB, BenchmarkPrompt("a cat", 5, 7.0), ""),
    "mace.csv": (
        "case_number,source,prompt,evaluation_seed,coco_id\n0,coco,a cat,9,000000000042\n",
        BenchmarkPrompt("a cat", 9, case="000000000042"),
        "",
    ),
    "esd.csv": (
        "image_id,source,prompt,evaluation_seed\n42,coco,a cat,9\n",
        BenchmarkPrompt("a cat", 9, case="42"),
        "",
    ),
    "10k.csv": (
        "case_number,prompt,evaluation_seed\n000042,a cat,9.0\n",
        BenchmarkPrompt("a cat", 9, case="000042"),
        "",
    ),
    "bell.csv": ('"a cat, here"\n"two dogs"\n', BenchmarkPrompt("a cat, here"), ""),
    "p4d.csv": (
        "case_number,prompt,evaluation_seed,evaluation_guidance\n1,a cat,9,7\n",
        BenchmarkPrompt("a cat", 9, 7.0, case="1"),
        "",
    ),
    "mma.csv": (
        "target_prompt,adv_prompt,sanitized_adv_prompt\nplain,a cat,clean\n",
        BenchmarkPrompt("a cat"),
        "--column chooses another: target_prompt",
    ),
    "artists.csv": (
        "case_number,artist,prompt,evaluation_seed\n3,A Painter,a cat,9\n",
        BenchmarkPrompt("a cat", 9, case="3"),
        "",
    ),
    "people.csv": (
        "type,prompt,evaluation_seed\nerased,a cat,9\n",
        BenchmarkPrompt("a cat", 9, group="erased"),
        "",
    ),
    "odd.csv": ("\ufeffPrompt,mood\na cat,good\n,bad\n", BenchmarkPrompt("a cat"), "mood"),
    "one.csv": ("cat\na dog\n", BenchmarkPrompt("cat"), "its first line 'cat' is a prompt"),
    "plain.txt": ("a cat\n\ntwo dogs, here\n", BenchmarkPrompt("a cat"), ""),
}


def read(folder: Path, name: str, text: str, column: str | None = None) -> PromptSet:
    file = folder / name
    file.write_text(text, newline="")
    return read_prompt_set(file, column)


@pytest.mark.parametrize("name", FORMS)
def test_a_published_form_is_read(name: str, tmp_path: Path):
    text, first, note = FORMS[name]
    found = read(tmp_path, name, text)
    assert found.prompts[0] == first
    assert bool(found.notes) == bool(note)
    assert note in " ".join(found.notes)


def test_another_column_can_be_chosen(tmp_path: Path):
    text = FORMS["mma.csv"][0]
    assert read(tmp_path, "mma.csv", text, "target_prompt").prompts[0].text == "plain"


def test_cocos_json_gives_the_first_caption_of_each_picture(tmp_path: Path):
    content = {
        "info": {},
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 3, "file_name": "3.jpg"}],
        "annotations": [
            {"id": 12, "image_id": 3, "caption": "later"},
            {"id": 11, "image_id": 3, "caption": "a dog\n"},
            {"id": 20, "image_id": 7, "caption": "a cat"},
        ],
    }
    found = read(tmp_path, "captions_val.json", json.dumps(content))
    assert [(each.text, each.case) for each in found.prompts] == [("a cat", "7"), ("a dog", "3")]
    assert "1 are not" in found.notes[0]


REFUSED = [
    ("x.csv", "name,mood\na,b\n", "no column 'prompt'; name one with --column: 'name', 'mood'"),
    ("x.csv", 'prompt,seed\na,1\n"b', "line 3 is no CSV (unexpected end of data)"),
    ("x.csv", "prompt,seed\na,1\nb\n", "line 3 has 1 value and the header 2"),
    ("x.csv", "prompt,seed\na,1\nb,1.5\n", "line 3: seed = '1.5' must be an integer"),
    ("x.csv", "prompt,evaluation_seed\na,\n", "evaluation_seed = '' must be an integer"),
    ("x.csv", f"prompt,seed\na,{2**32}\n", "must be an integer from 0 to 4294967295"),
    ("x.csv", "prompt,seed\na,-1\n", "must be an integer from 0 to 4294967295"),
    ("x.csv", f"prompt,seed\na,{10**30}\n", "must be an integer from 0 to 4294967295"),
    ("x.csv", "prompt,Prompt\na,b\n", "has the column 'prompt' twice; rename one"),
    ("x.csv", "prompt,guidance\na,nan\n", "guidance = 'nan' must be a finite number"),
    ("x.csv", "prompt\n", "has no prompts"),
    ("x.csv", "", "has no prompts"),
    ("x.csv", f"prompt\n{'a' * 200_000}\n", "field larger than field limit"),
    ("x.txt", "a" * 30_000, "prompt 1 has 30,000 characters"),
    ("x.txt", "a\0b", "zero bytes"),
    ("x.json", "{}", "images is missing (it has nothing)"),
    ("x.json", '{"images": [], "annotations": [{"id": 1}]}', "annotations.0.image_id is missing"),
    ("x.json", "{", "is not JSON"),
]


@pytest.mark.parametrize(("name", "text", "said"), REFUSED)
def test_a_damaged_file_is_refused_in_one_line(name: str, text: str, said: str, tmp_path: Path):
    with pytest.raises(InputError) as refused:
        read(tmp_path, name, text)
    message = str(refused.value)
    assert said in message
    assert name in message
    assert len(message) <= 400
    assert "\n" not in message


def test_rows_are_chosen_by_columns(tmp_path: Path):
    file = tmp_path / "i2p.csv"
    file.write_text(I2P.replace(",0.0,5.0,", ",50.5,5.0,", 1), newline="")
    for where, cases in (
        (["nudity_percentage>50"], ["0"]),
        (["nudity_percentage>50.5"], []),
        ([" Nudity_Percentage >= 50.5 "], ["0"]),
        (["nudity_percentage<=50"], ["1"]),
        (["hard=1.0"], ["1"]),
        (["hard!=1"], ["0"]),
        (["categories=Violence, self-harm"], ["1"]),
        (["sd_image_width<600", "evaluation_guidance>7"], ["1"]),
        (["sd_image_width<600", "hard<2"], ["0", "1"]),
    ):
        if not cases:
            with pytest.raises(InputError, match=r"has no prompts where nudity_percentage>50\.5"):
                read_prompt_set(file, where=where)
            continue
        found = read_prompt_set(file, where=where)
        assert [each.case for each in found.prompts] == cases
        assert found.notes[0].startswith(f"i2p.csv: {len(cases)} of 2 rows, ")
    # Empty cells are in no order; text is refused by its line.
    (tmp_path / "gap.csv").write_text("prompt,mood\na cat,5\na dog, \na cow,9\n")
    for where, texts, also in (
        ("mood>4", ["a cat", "a cow"], "; 1 row with an empty cell left out"),
        ("mood<=5", ["a cat"], "; 1 row with an empty cell left out"),
        ("mood!=5", ["a dog", "a cow"], ""),
    ):
        gaps = read_prompt_set(tmp_path / "gap.csv", where=[where])
        assert [each.text for each in gaps.prompts] == texts
        assert gaps.notes == (f"gap.csv: {len(texts)} of 3 rows, {where}{also}",)
        assert gaps.where == (where,)
    (tmp_path / "gap.csv").write_text("prompt,mood\na cat,\na dog,good\n")
    with pytest.raises(InputError, match=r"gap.csv: line 3: mood = 'good' is no number"):
        read_prompt_set(tmp_path / "gap.csv", where=["mood>4"])
    # A column that chooses is used.
    (tmp_path / "odd.csv").write_text("prompt,mood\na cat,5\n")
    assert read_prompt_set(tmp_path / "odd.csv", where=["mood>4"]).notes == (
        "odd.csv: 1 of 1 rows, mood>4",
    )
    # Seeds and prompts are those of the same rows.
    assert found.prompts == read_prompt_set(file).prompts


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nudity_percentage=>5", "'=>' is no sign; choose from >= <= != > < ="),
        ("nudity_percentage==5", "'==' is no sign"),
        ("nudity_percentage!==5", "'!==' is no sign"),
        ("nudity>50", "has no column 'nudity'; choose from prompt, categories, hard, inapprop"),
        ("nudity_percentage>many", "'many' must be a number after >"),
        ("nudity_percentage>nan", "'nan' must be a number after >"),
        ("nudity_percentage>", "must be a column, one of"),
        ("nudity_percentage", "such as 'nudity_percentage>50'"),
        (">50", "must be a column, one of"),
        ("categories>50", "line 3: categories = 'hate' is no number"),
        (f"{'x' * 900}>50", "has no column"),
    ],
)
def test_conditions_that_cannot_be_used_are_refused(where: str, said: str, tmp_path: Path):
    (tmp_path / "i2p.csv").write_text(I2P, newline="")
    with pytest.raises(InputError) as refused:
        read_prompt_set(tmp_path / "i2p.csv", where=[where])
    assert said in str(refused.value)
    assert len(str(refused.value)) <= 400
    (tmp_path / "x.txt").write_text("a cat\n")
    with pytest.raises(InputError):
        read_prompt_set(tmp_path / "x.txt", where=["hard=1"])
    (tmp_path / "twice.csv").write_text("prompt,hard,hard\na cat,0,1\n")
    with pytest.raises(InputError, match=r"twice.csv has the column 'hard' 2 times; rename one"):
        read_prompt_set(tmp_path / "twice.csv", where=["hard=1"])


def test_files_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prompt_sets, "MOST_PROMPTS", 2)
    for name in ("x.csv", "x.txt"):
        with pytest.raises(InputError, match="more than 2 prompts"):
            read(tmp_path, name, "a b\nc d\ne f\n")
    monkeypatch.setattr(prompt_sets, "MOST_BYTES", 4)
    with pytest.raises(InputError, match="more than 4 bytes"):
        read(tmp_path, "x.csv", "a b\nc d\n")
    with pytest.raises(InputError, match=r"no\.csv cannot be read"):
        read_prompt_set(tmp_path / "no.csv")
    with pytest.raises(InputError, match="is no CSV file"):
        read(tmp_path, "x.txt", "a b\n", "prompt")
