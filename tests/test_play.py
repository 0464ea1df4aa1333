"""The playground without a browser: its pictures, its requests, its limits."""

import asyncio
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from helpers import tiny
from helpers.merging import write_adapter
from jax import monitoring
from PIL import Image

import flux_jax
from erase.cli import play, sample
from erase.evaluation.judge import open_judge
from erase.model.adapters import read_adapter
from erase.play import limit
from erase.play.request import STRIP, Request, check_start, read_seeds
from erase.play.studio import Pair, Step, Studio, adapter_names, overlay
from flux_jax.errors import InputError
from flux_jax.system import xla_flags

REQUEST = Request("a photo of a cat", (0, 5), 3, 3.5, 16, 16, (0.5,))


@pytest.fixture(scope="module")
def studio(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("play")
    path = write_adapter(folder / "adapter", tiny_folder, scale=0.5)
    judge = open_judge(tiny.judge(folder / "judge"))
    adapters = {str(path): read_adapter(path)}
    return Studio(str(tiny_folder), flux_jax.load(tiny_folder), adapters, judge)


def last(outputs: Any) -> Any:
    """The last output of a generator; those before it count steps."""
    *steps, end = outputs
    assert [step.done for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.total == len(steps) for step in steps if isinstance(step, Step))
    return end


@pytest.fixture(scope="module")
def pair(studio: Studio) -> Pair:
    return last(studio.draw(REQUEST))


@pytest.mark.slow
def test_pictures_are_those_of_the_pipeline(studio: Studio, pair: Pair):
    adapters = [(adapter, 0.5) for adapter in studio.adapters.values()]
    for side, changes in ((pair.base, {}), (pair.erased, {"adapters": adapters})):
        wanted = studio.pipe([REQUEST.prompt] * 2, [0, 5], 3, 3.5, 16, 16, **changes)
        assert np.abs(side.pictures.astype(int) - wanted).max() <= 1
    assert (pair.base.pictures != pair.erased.pictures).any()


def test_sliders_compile_nothing(studio: Studio, pair: Pair):
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        if event == xla_flags.COMPILED:
            compiled.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        for changes in (
            {"strengths": (-1.0,)},
            {"strengths": (2.0,), "steps": 5},
            {"guidance": 7.0},
        ):
            last(studio.draw(replace(REQUEST, prompt="two cats", **changes)))
        last(studio.draw(replace(REQUEST, silenced="cat", seeds=(7, 8))))
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_a_silenced_word_changes_the_erased_picture_only(studio: Studio, pair: Pair):
    silenced = last(studio.draw(replace(REQUEST, strengths=(0.0,), silenced="cat")))
    np.testing.assert_array_equal(silenced.base.pictures, pair.base.pictures)
    assert (silenced.erased.pictures != silenced.base.pictures).any()


def test_the_strip_has_every_strength_of_the_first_seed(studio: Studio, pair: Pair):
    strip = last(studio.strip(REQUEST))
    assert len(strip) == len(STRIP)
    for strength, side in ((0.0, pair.base), (0.5, pair.erased)):
        # A batch of one, not of two.
        shown = strip[STRIP.index(strength)].astype(int)
        assert np.abs(shown - side.pictures[0]).max() <= 1


@pytest.mark.slow
def test_attention_of_a_word_before_and_after(studio: Studio, pair: Pair):
    before, after = studio.attention(REQUEST, pair, "cat")
    assert before.shape == after.shape == (2, 4, 4)
    assert (before > 0).all()
    assert (before != after).any()
    with pytest.raises(InputError, match="empty"):
        studio.attention(REQUEST, pair, "")


def test_the_judge_answers_for_both_sides(studio: Studio, pair: Pair):
    assert studio.judge is not None
    wanted = studio.judge.finds(pair.base.pictures, ["cat"] * 2, [REQUEST.prompt] * 2).tolist()
    assert [base for base, _ in studio.verdict(REQUEST, pair, "cat")] == wanted
    with pytest.raises(InputError, match="qwerty"):
        studio.verdict(REQUEST, pair, "qwerty")


def test_saved_pictures_hold_the_command_that_draws_them(
    studio: Studio, pair: Pair, tmp_path: Path
):
    request = replace(REQUEST, prompt='../a "cat"; $(rm -r .)')
    files = studio.save(request, pair, tmp_path)
    assert [file.parent for file in files] == [tmp_path] * 4
    names = [file.name.partition("-")[2] for file in files]
    assert names == [f"{side}-seed{seed}.png" for side in ("base", "erased") for seed in (0, 5)]
    with Image.open(files[2]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), pair.erased.pictures[0])
        notes = picture.text  # pyright: ignore[reportAttributeAccessIssue]
    assert notes["prompt"] == request.prompt
    assert json.loads(notes["settings"])["strengths"] == [0.5]
    given = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample.flags, "DEFINE_string", adding(flags.DEFINE_string, given))
        for kind in ("multi_string", "multi_integer", "integer", "float"):
            define = getattr(flags, f"DEFINE_{kind}")
            patch.setattr(sample.flags, f"DEFINE_{kind}", adding(define, given))
        sample.define_flags()
    given(shlex.split(notes["command"])[1:])
    (path,) = studio.adapters
    assert (given.prompt, given.seed) == ([request.prompt], [0, 5])
    assert (given.model, given.adapter) == (studio.model, [f"{path}:0.5"])
    assert (given.steps, given.guidance, given.height, given.width) == (3, 3.5, 16, 16)


def adding(define: Callable[..., Any], values: flags.FlagValues) -> Callable[..., Any]:
    return lambda *arguments, **options: define(*arguments, **options, flag_values=values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "x" * 2001}, "prompt has 2,001 characters; at most 2000"),
        ({"silenced": "x" * 3000}, "silence has 3,000 characters"),
        ({"seeds": ()}, "0 seeds: give 1 to 4"),
        ({"seeds": (-1,)}, "seed"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": 101}, "steps = 101: at most 100"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"height": 64}, "height = 64: at most 32 pixels"),
        ({"strengths": ()}, "0 strengths: this page has 1 adapters"),
        ({"strengths": (2.1,)}, "strength = 2.1: choose -1 to 2"),
        ({"strengths": (float("nan"),)}, "strength = nan"),
    ],
)
def test_a_request_outside_the_limits_is_refused(changes: dict[str, Any], message: str):
    REQUEST.check(1, 32)
    with pytest.raises(InputError, match=message):
        replace(REQUEST, **changes).check(1, 32)


def test_what_would_fail_after_drawing_is_refused_before(studio: Studio):
    studio.check(replace(REQUEST, silenced="cat"), "cat")
    with pytest.raises(InputError, match="silence = 'dog': write a word of the prompt"):
        studio.check(replace(REQUEST, silenced="dog"))
    with pytest.raises(InputError, match="dragon"):
        studio.check(REQUEST, "dragon")
    with pytest.raises(InputError, match="the judge takes pictures of 16 x 16"):
        studio.check(replace(REQUEST, height=32), "cat")
    # Nothing is judged.
    studio.check(replace(REQUEST, height=32))


@pytest.mark.parametrize(
    ("steps", "guidance", "message"),
    [
        (101, 3.5, "steps = 101: the slider ends at 100"),
        (28, 50.0, "guidance = 50.0: the slider is from 0 to 10"),
        (28, float("nan"), "guidance = nan: the slider"),
    ],
)
def test_sliders_start_within_their_ranges(steps: int, guidance: float, message: str):
    check_start(28, 3.5)
    with pytest.raises(InputError, match=message):
        check_start(steps, guidance)


def test_seeds_are_whole_numbers():
    assert read_seeds("0, 1 2") == (0, 1, 2)
    assert read_seeds("") == ()
    for text, message in (("1.5", "write whole numbers"), ("1 2 3 4 5", "at most 4")):
        with pytest.raises(InputError, match=message):
            read_seeds(text)


def test_names_of_adapters_differ():
    assert adapter_names(["runs/a", "b.safetensors", "old/a"]) == [
        "a (1)",
        "b.safetensors",
        "a (3)",
    ]


def test_attention_is_red_where_it_is_strong():
    picture = np.full((4, 4, 3), 200, np.uint8)
    shown = overlay(picture, np.array([[0.0, 0.5], [0.25, 1.0]], np.float32), 0.5)
    assert shown[0, 0].tolist() == [100, 100, 100]
    assert shown[0, 3].tolist() == shown[3, 3].tolist() == [255, 60, 0]
    assert shown[3, 0].tolist() == [178, 80, 50]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host=0.0.0.0"], "host = 0.0.0.0: others could reach the page; set ERASE_PLAY_PASS"),
        (["--share"], "share: others could reach"),
        (["--adapter=nothing"], "nothing"),
        (["--model=nothing"], "model = 'nothing' does not exist"),
    ],
)
def test_strangers_need_a_password(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(play.PASSWORD, raising=False)
    with pytest.raises(InputError, match=message):
        play.check(parsed(arguments, monkeypatch))


def test_with_a_password_others_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(play.PASSWORD, "secret")
    assert play.check(parsed(["--host=0.0.0.0"], monkeypatch)) == "secret"
    assert "anybody with the password can draw" in capsys.readouterr().err
    assert play.check(parsed([], monkeypatch)) == "secret"
    assert capsys.readouterr().err == ""


def parsed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> flags.FlagValues:
    """The flags of the command."""
    given = flags.FlagValues()
    with monkeypatch.context() as patch:
        for kind in ("string", "multi_string", "integer", "float", "boolean"):
            define = getattr(flags, f"DEFINE_{kind}")
            patch.setattr(play.flags, f"DEFINE_{kind}", adding(define, given))
        play.define_flags()
    given(["play", *arguments])
    return given


@pytest.mark.parametrize(
    ("headers", "chunks", "status"),
    [
        ([], [b"x" * 1000], 200),
        ([(b"content-length", b"2000000")], [], 413),
        ([(b"content-length", b"many")], [], 413),
        # Without a length, what has been read counts.
        ([], [b"x" * 600_000] * 2, 0),
    ],
)
def test_large_bodies_are_not_read(headers: list, chunks: list[bytes], status: int):
    answers: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope
        for _ in chunks:
            if (await receive())["type"] == "http.disconnect":
                return
        await send({"type": "http.response.start", "status": 200})

    async def run() -> None:
        rest = iter(chunks)

        async def receive() -> Any:
            return {"type": "http.request", "body": next(rest), "more_body": True}

        async def send(message: Any) -> None:
            answers.append(message)

        await limit.BodyLimit(app)({"type": "http", "headers": headers}, receive, send)

    asyncio.run(run())
    assert (answers[0]["status"] if answers else 0) == status
