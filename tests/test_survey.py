"""The user study: questions, key, raters' files and analysis. All answers are made up."""

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erase.cli.flags import folders
from erase.model.draw import png
from erase.survey import analysis, result
from erase.survey.answers import COLUMNS, MOST_BYTES, Rating, join, read_key
from erase.survey.chart import radar
from erase.survey.questions import Key, questionnaire, read_pictures
from flux_jax.errors import InputError

PROMPTS = (("a photo of a cat", (0,)), ("a photo of a dog", (0, 1, 2)))
METHODS = ("base", "=esd [b]<i>", "ours")


def draw(folder: Path, method: str, prompts: Sequence = PROMPTS) -> Path:
    """A method's pictures, as `erase-anything sample` writes them."""
    rng = np.random.default_rng(METHODS.index(method))
    for number, (prompt, seeds) in enumerate(prompts):
        for seed in seeds:
            picture = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
            content = png(picture, {"prompt": prompt, "seed": str(seed), "settings": method})
            (folder / method).mkdir(parents=True, exist_ok=True)
            (folder / method / f"{number:03}-seed{seed}.png").write_bytes(content)
    return folder / method


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Key]:
    """A study's folder and its key."""
    methods = {method: draw(tmp_path, method) for method in METHODS}
    page, key = result.make(methods, "cat", 0, tmp_path / "study")
    assert page.name == "study.html"
    return tmp_path / "study", json.loads(key.read_text())


def answers(key: Key, rater: int, rating: Any = lambda method, question: 3) -> dict[str, Any]:
    """Made-up answers of a rater to everything."""
    given = [
        {
            "trial": known["trial"],
            "item": item,
            "question": question,
            "rating": rating(known["method"], question),
        }
        for item, known in key["items"].items()
        for question in key["trials"][known["trial"]]
    ]
    given += [
        {"trial": check, "item": check, "question": "check", "rating": wanted}
        for check, wanted in key["checks"].items()
    ]
    return {"study": key["study"], "rater": rater, "answers": given}


def send(folder: Path, *sent: dict[str, Any]) -> Path:
    """Write raters' files."""
    folder.mkdir(exist_ok=True)
    for number, each in enumerate(sent):
        (folder / f"answers-{number}.json").write_text(json.dumps(each))
    return folder


def test_trials_are_those_of_the_papers_figures(made: tuple[Path, Key]):
    _, key = made
    assert sorted(map(tuple, key["trials"].values())) == [
        ("erasing",),
        ("preserving",),
        *[("quality", "adherence", "diversity")] * 3,
    ]
    assert sorted(item["method"] for item in key["items"].values()) == sorted(METHODS * 3)
    assert key["prompts"] == {"0": 0, "1": 1, "2": 1, "3": 1, "4": 1}


def test_the_page_does_not_name_methods(made: tuple[Path, Key]):
    folder, _ = made
    page = (folder / "study.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    for method in METHODS[1:]:
        assert method not in page
        assert json.dumps(method)[1:-1] not in page
    for trial in data["trials"]:
        for item in trial["items"]:
            for address in item["pictures"]:
                content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
                # The settings of `sample` would name the adapter.
                with Image.open(io.BytesIO(content)) as picture:
                    assert picture.info == {}
    assert 'src="http' not in page


def test_ids_and_orders_differ_from_study_to_study(tmp_path: Path):
    methods = {method: read_pictures(draw(tmp_path, method)) for method in METHODS}
    first, second = (questionnaire(methods, "cat")[1] for _ in range(2))
    assert not set(first["items"]) & set(second["items"])
    assert first["study"] != second["study"]


def test_a_prompt_cannot_end_the_script(tmp_path: Path):
    hostile = (("</script><script>alert(1)</script> cat", (0,)),)
    methods = {method: draw(tmp_path, method, hostile) for method in METHODS}
    result.make(methods, "cat", 0, tmp_path / "study")
    page = (tmp_path / "study" / "study.html").read_text()
    assert page.count("</script>") == 2
    assert "\\u003c/script>" in page


def test_a_key_is_not_overwritten(made: tuple[Path, Key], tmp_path: Path):
    with pytest.raises(InputError, match="there already"):
        result.make({"base": tmp_path / "base", "ours": tmp_path / "ours"}, "cat", 0, made[0])


def test_the_size_of_the_page_is_told_and_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    methods = {name: draw(tmp_path, name) for name in ("base", "ours")}
    result.make(methods, "cat", 0, tmp_path / "small")
    assert capsys.readouterr().err == ""
    size = (tmp_path / "small" / result.PAGE).stat().st_size
    monkeypatch.setattr(result, "LARGE_PAGE", 100)
    result.make(methods, "cat", 0, tmp_path / "large")
    assert "MB of study.html: too large for most mail" in capsys.readouterr().err
    monkeypatch.setattr(result, "MOST_PAGE", 200)
    with pytest.raises(InputError, match=r"MB of study.html, at most 0: give fewer pictures"):
        result.make(methods, "cat", 0, tmp_path / "refused")
    assert size > 200
    assert not (tmp_path / "refused").exists()


def test_pictures_must_pair(tmp_path: Path):
    pictures = {method: read_pictures(draw(tmp_path, method)) for method in METHODS}
    other = dict(pictures["ours"])
    name = next(iter(other))
    with pytest.raises(InputError, match=f"{name}.* is of base or ours alone"):
        questionnaire({"base": pictures["base"], "ours": dict(list(other.items())[1:])}, "cat")
    other[name] = other["001-seed2.png"]
    with pytest.raises(InputError, match="another prompt or seed in ours than in base"):
        questionnaire({"base": pictures["base"], "ours": other}, "cat")
    other[name] = replace(pictures["ours"][name], size=(8, 16))
    with pytest.raises(InputError, match=f"{name}.* has 8 x 16 pixels in ours and another size"):
        questionnaire({"base": pictures["base"], "ours": other}, "cat")
    with pytest.raises(InputError, match="1 methods: give 2"):
        questionnaire({"base": pictures["base"]}, "cat")
    Image.new("RGB", (8, 8)).save(tmp_path / "ours" / "plain.png")
    with pytest.raises(InputError, match=r"plain.png has no prompt and seed"):
        read_pictures(tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no PNG files"):
        read_pictures(tmp_path / "empty")


def test_methods_are_named_on_the_command_line(tmp_path: Path):
    assert folders([f"a={tmp_path}", f"b=c={tmp_path}"][:1]) == {"a": tmp_path}
    for texts, message in (
        ([str(tmp_path)], "write METHOD=FOLDER"),
        (["a=nowhere"], "write METHOD=FOLDER"),
        ([f"a={tmp_path}"] * 2, "'a' is there twice"),
    ):
        with pytest.raises(InputError, match=message):
            folders(texts)


def test_means_intervals_and_tests(made: tuple[Path, Key], tmp_path: Path, capsys: Any):
    folder, key = made
    liked = {"base": 2, "=esd [b]<i>": 3, "ours": 5}
    sent = [
        answers(key, rater, lambda method, _, rater=rater: max(1, liked[method] - rater % 2))
        for rater in range(1, 9)
    ]
    found = result.analyse_folder(send(tmp_path / "sent", *sent), folder / "key.json", folder)
    assert found["raters"] == 8
    assert set(found["complete"].values()) == {1.0}
    mean = found["means"]["erasing"]["ours"]
    assert (mean["mean"], mean["ratings"]) == (4.5, 8)
    assert mean["low"] is not None
    assert mean["high"] is not None
    assert 4 < mean["low"] < 4.5 < mean["high"] < 5
    (test,) = (
        each
        for each in found["differences"]
        if each["question"] == "quality" and each["methods"] == ("base", "ours")
    )
    assert (test["difference"], test["pairs"]) == (-3.0, 8)
    assert test["p"] < 0.01 < 0.05
    assert test["corrected"] >= test["p"]
    alpha = found["alpha"]["erasing"]
    assert alpha is not None
    assert 0.5 < alpha < 1
    shown = capsys.readouterr().out
    assert "[b]<i>" in shown
    assert "alpha" in shown
    table = (folder / "result.csv").read_text()
    assert "'=esd" in table
    assert json.loads((folder / "result.json").read_text())["methods"] == list(METHODS)
    assert b"<svg" in (folder / "radar.svg").read_bytes()
    assert (folder / "radar.png").read_bytes().startswith(b"\x89PNG")


def test_one_rater_has_no_interval_and_like_ratings_no_alpha(
    made: tuple[Path, Key], tmp_path: Path
):
    folder, key = made
    sent = send(tmp_path / "sent", answers(key, 1), answers(key, 2))
    found = result.analyse_folder(sent, folder / "key.json", folder)
    assert found["alpha"] == dict.fromkeys(found["means"], None)
    assert found["means"]["erasing"]["ours"]["low"] == 3
    (sent / "answers-1.json").unlink()
    found = result.analyse_folder(sent, folder / "key.json", folder)
    assert found["means"]["erasing"]["ours"]["low"] is None
    assert all(test["p"] == 1 for test in found["differences"])


def test_alpha_is_krippendorffs():
    """His example of four raters and twelve units, whose ordinal alpha is 0.815; 0 is missing."""
    table = {
        1: (1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0),
        2: (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3),
        3: (0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0),
        4: (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0),
    }
    ratings = [
        Rating(rater, unit, "ours", "quality", value)
        for rater, values in table.items()
        for unit, value in enumerate(values)
        if value
    ]
    assert analysis.agreement(ratings) == pytest.approx(0.815, abs=5e-4)


def test_a_csv_counts_as_its_json(made: tuple[Path, Key], tmp_path: Path):
    folder, key = made
    given = answers(key, 4)
    lines = ["study,rater,trial,item,question,rating"]
    lines += [
        f"{given['study']},4,{a['trial']},{a['item']},{a['question']},{a['rating']}"
        for a in given["answers"]
    ]
    sent = tmp_path / "sent"
    sent.mkdir()
    (sent / "a.csv").write_text("\r\n".join(lines) + "\r\n")
    assert join(sent, key) == join(send(tmp_path / "json", given), key)
    del folder


def test_half_filled_answers_count(made: tuple[Path, Key], tmp_path: Path):
    _, key = made
    given = answers(key, 1)
    given["answers"] = given["answers"][:3]
    joined = join(send(tmp_path / "sent", given), key)
    assert len(joined.ratings) == 3
    assert joined.complete == {1: 3 / 15}


def changed(key: Key, **changes: Any) -> dict[str, Any]:
    """A rater's answers, of which the first is changed."""
    given = answers(key, 2)
    given["answers"][0] |= changes
    return given


def moved(key: Key) -> dict[str, Any]:
    """A rater's answers, of which one names another trial with the same questions."""
    given = answers(key, 2)
    next(each for each in given["answers"] if each["trial"] == "2")["trial"] = "3"
    return given


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (lambda key: answers(key, 2) | {"study": "another"}, "study = 'another' is not this one"),
        (lambda key: changed(key, rating=6), "rating = 6 of .* is outside 1 to 5"),
        (lambda key: changed(key, rating="5"), "rating"),
        (lambda key: changed(key, item="x", question="<b>"), "is unknown"),
        (moved, "of trial '3' .* is unknown"),
        (lambda key: answers(key, 1), "rater 1 is in answers-0.json already"),
        (
            lambda key: answers(key, 2) | {"answers": answers(key, 2)["answers"] * 2},
            "is rated twice",
        ),
        (
            lambda key: (
                answers(key, 2)
                | {"answers": [answers(key, 2)["answers"][-1] | {"rating": wrong(key)}]}
            ),
            "an attention check failed",
        ),
        (lambda key: {"rater": 2}, "study"),
        (lambda key: answers(key, 2) | {"rater": 0}, "rater = 0 is no number from 1 to 1,000,000"),
        (lambda key: answers(key, 2) | {"answers": []}, "nothing is rated in it"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_out(
    made: tuple[Path, Key], tmp_path: Path, spoilt: Any, reason: str
):
    _, key = made
    joined = join(send(tmp_path / "sent", answers(key, 1), spoilt(key)), key)
    assert joined.complete.keys() == {1}
    assert len(joined.ratings) == 15
    ((file, said),) = joined.left_out.items()
    assert file == "answers-1.json"
    assert re.search(reason, said), said
    assert "\n" not in said


def wrong(key: Key) -> int:
    """A wrong answer to the last check."""
    return 1 + [*key["checks"].values()][-1] % 5


def test_a_damaged_key_is_named(made: tuple[Path, Key], tmp_path: Path):
    folder, key = made
    sent = send(tmp_path / "sent", answers(key, 1))
    del key["prompts"]["1"]
    (folder / "key.json").write_text(json.dumps(key))
    with pytest.raises(InputError, match=r"key.json: trial '1' has no questions; use the key"):
        result.analyse_folder(sent, folder / "key.json", folder)


def test_a_key_names_the_methods_of_its_items(made: tuple[Path, Key], tmp_path: Path):
    _, key = made
    for methods in ([], key["methods"] * 2, [*key["methods"], "another"]):
        file = tmp_path / "key.json"
        file.write_text(json.dumps(key | {"methods": methods}))
        with pytest.raises(InputError, match=r"key.json: methods and items name different methods"):
            read_key(file)


def test_damaged_and_large_files_are_left_out(made: tuple[Path, Key], tmp_path: Path):
    _, key = made
    sent = send(tmp_path / "sent", answers(key, 1))
    (sent / "b.json").write_text("{")
    (sent / "c.csv").write_text("a,b\n1,2\n")
    (sent / "d.csv").write_text("x" * (MOST_BYTES + 1))
    (sent / "e.json").write_text("[" * 200 + "]" * 200)
    (sent / "f.csv").write_bytes("study,rater".encode("utf-16"))
    (sent / "g.CSV").write_text(",".join(COLUMNS) + "\n" + "x" * 200_000)
    (sent / "notes.txt").write_text("not read")
    joined = join(sent, key)
    assert joined.left_out.keys() == {"b.json", "c.csv", "d.csv", "e.json", "f.csv", "g.CSV"}
    (sent / "answers-0.json").unlink()
    with pytest.raises(InputError, match=r"has none that can be used: .*b\.json"):
        join(sent, key)


def test_the_chart_is_the_same_each_time_and_shows_names_as_they_are():
    axes = ["erasing", "preserving", "quality", "adherence", "diversity"]
    values = {"$x^2$ <b>": [1.0, 2, 3, 4, 5], "ours": [5.0, 4, 3, 2, 1]}
    first, second = (radar(values, axes, (1, 5), "a title") for _ in range(2))
    assert first == second
    text = first["svg"].decode()
    assert "$x^2$ &lt;b&gt;" in text
    assert all(axis in text for axis in axes)
