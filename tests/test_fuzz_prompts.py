"""Concepts, prompts and names in any script: accepted, or refused with an error that names them."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.bounds import tells_or_works
from hypothesis import assume, example, given
from hypothesis import strategies as st

from convert.adapters.paths import find_adapter, split_strength
from erase.data import captioned_folder
from erase.data.words.irrelevant import listed
from erase.data.words.templates import as_template, leave_out, phrase
from erase.data.words.word_tokens import marks
from erase.evaluation.emoji_judge import NetworkJudge
from erase.methods.planning.configured import plan_of
from erase.model.sample import file_names
from erase.runs import EACH, configure, load_runs
from erase.training import run
from flux_jax import load
from flux_jax.errors import RunError
from flux_jax.pipeline import Pipeline
from flux_jax.weights.hub import find_model

MODEL = Path(__file__).resolve().parents[1] / "models" / "emoji-flux"
ANY = st.text(st.characters(exclude_categories=()), max_size=30)
WRITINGS = st.sampled_from(
    [
        "שָׁלוֹם",
        "كرة القدم",
        "e\u0301\u0301\u0301",
        "日本の城",
        "👩‍👩‍👧‍👦",
        "🏴󠁧󠁢󠁳󠁣󠁴󠁿",
        "\u202eevil\u202c",
        "Straße",
        "İstanbul",
        "ﬁre",
        "\ud800",
        "a\0b",
        "\x1b[2J",
        "\u200b",
        " \t\n\u3000",
        "\u2028",
        "{}",
        "{0}",
        "a{",
        ".*",
        "(a+)+$",
        "<pad> </s>",
        "<|endoftext|>",
        "▁",
        "../../x",
        "cat",
        "soccer ball",
        "CAT",
    ]
)
LONG = st.sampled_from(["a" * 10**5, "a " * 50_000, "é" * 4000, "a b " * 1000, "\u0301" * 3999])
TEXTS = st.one_of(ANY, WRITINGS, LONG, st.lists(st.one_of(ANY, WRITINGS), max_size=3).map(" ".join))


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return load(MODEL)


def changed(**changes: Any) -> dict[str, Any]:
    """A small run with some other texts."""
    return {
        "concept": "cat",
        "synonyms": ("kitty",),
        "irrelevant": ("dog", "sun", "tree"),
        "height": 64,
        "width": 64,
        "bank": {"sentences": 3, "trajectories": 1},
        "evaluation": {"pictures": 1},
        **changes,
    }


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """A run in which some texts are generated; most sentences contain the concept."""
    plain = st.sampled_from(["cat", "Soccer  Ball", "car"])
    concept = draw(st.one_of(plain, plain, TEXTS))
    forms = st.sampled_from(["a {}", "{}", "the {}s", "{} {}", "a {}, drawn", "x{}", "({})-{}"])
    held = forms.map(lambda text: text.replace("{}", concept))
    sentences = st.lists(st.one_of(forms, held, forms, TEXTS), min_size=1, max_size=3).map(tuple)
    words = st.lists(TEXTS, min_size=1, max_size=3).map(tuple)
    drawn: dict[str, Any] = {"concept": concept}
    upper: dict[str, Any] = {
        "negatives": 1,
        "pictures": 2,
        "rsc": draw(st.sampled_from([0.0, 0.1])),
        "rsc_form": draw(st.sampled_from(["infonce", "released"])),
        "without_concept": draw(st.booleans()),
    }
    for field in draw(st.sets(st.integers(0, 6), max_size=2)):
        match field:
            case 0:
                drawn["prompts"] = draw(sentences)
            case 1:
                drawn["synonyms"] = draw(words)
            case 2:
                drawn["irrelevant"] = draw(words)
            case 3:
                drawn["lower"] = {"erase_to": draw(TEXTS)}
            case 4:
                drawn["lower"] = {"stand_in": draw(TEXTS)}
            case 5:
                upper["prompts"] = draw(sentences)
            case _:
                drawn["evaluation"] = {"pictures": 2, "templates": draw(sentences)}
    return changed(**drawn, upper=upper)


@pytest.mark.slow
@given(values=runs())
@example(values=changed(concept="\ud800"))
@example(values=changed(synonyms=("\udfff",)))
@example(values=changed(concept="a " * 50_000, prompts=("a " * 50_000,)))
@example(values=changed(concept="a " * 1990, prompts=("a " * 1999 + "b",)))
@example(values=changed(lower={"stand_in": "\0"}))
def test_any_text_is_planned_or_refused(values: dict[str, Any], pipe: Pipeline):
    with tells_or_works():
        for config in load_runs(configure(**values)).values():
            planned = plan_of(config, pipe, listed(config))
            assert planned.masks.any(axis=-1).all()
            for group in planned.groups:
                for prompt in group.prompts:
                    prompt.encode()


PLAIN = st.sampled_from(["a", "b-1", "c_2", "ü"])
NAMES = st.one_of(
    PLAIN,
    PLAIN,
    st.sampled_from(["../x", "a/b", "con", "checkpoints", "adapter", "-", "x" * 300, "é" * 60]),
    ANY,
)
WHOLE = st.builds(changed, concept=st.sampled_from(["cat", "soccer ball", "CAR"]), seed=st.just(1))


class EnoughError(RunError):
    """Raised where the model would be loaded."""


@pytest.mark.slow
@given(
    each=st.dictionaries(NAMES, st.one_of(WHOLE, WHOLE, runs()), min_size=1, max_size=2),
    named=st.booleans(),
)
@example(each={"checkpoints": changed()}, named=True)
@example(
    each={"é" * 60: changed(), "a" * 60: changed(concept="dog", irrelevant=("a", "b"))}, named=False
)
@example(each={"x": changed(concept="\u202e🏴󠁧󠁢󠁳󠁣󠁴󠁿", prompts=("a {}",))}, named=True)
def test_a_run_writes_into_its_folder_alone(
    each: dict[str, Any],
    named: bool,
    pipe: Pipeline,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
):
    place = tmp_path_factory.mktemp("place")
    workdir = place / "runs"

    def stop(*given: Any) -> None:
        raise EnoughError("enough")

    monkeypatch.setattr(run, "open_model", lambda config, count: pipe)
    monkeypatch.setattr(Pipeline, "remember", stop)
    shared = {"height": 64, "width": 64}
    values = {EACH: each, **shared} if named else next(iter(each.values()))
    with tells_or_works():
        configs = load_runs(configure(**values))
        run.run(configs, workdir, overwrite=True, command="x")
    assert all(path == workdir or workdir in path.parents for path in place.rglob("*"))
    assert [path for path in place.iterdir() if path != workdir] == []


@given(template=TEXTS, concept=TEXTS, word=TEXTS)
@example(template="a a {} " * 500, concept="a", word="\u0301")
@example(template="an X", concept="x", word=" \t")
def test_templates_hold_what_is_put_there(template: str, concept: str, word: str):
    template, concept = template[:4000], concept[:4000]
    with tells_or_works():
        made = as_template(template, concept)
        assert "{}" in made
        assert word in phrase(made, word)
        assert "{}" not in leave_out(made)


@given(prompt=TEXTS, word=TEXTS)
def test_marks_are_found_or_the_prompt_is_refused(prompt: str, word: str, pipe: Pipeline):
    assume(not re.search("[\0\ud800-\udfff]", prompt + word))
    with tells_or_works():
        found = marks(pipe.tokenizer_2, [prompt[:4000]], word[:4000])
        assert set(found.ravel().tolist()) <= {0.0, 1.0}


@given(prompts=st.lists(TEXTS, max_size=3))
def test_pictures_have_names_that_any_system_takes(prompts: list[str]):
    names = list(file_names(prompts, [0, 2**31 - 1]))
    assert len(set(names)) == 2 * len(prompts)
    for name in names:
        assert re.fullmatch(r"\d{3}-[a-z0-9-]{1,60}-seed\d+\.png", name)


@pytest.mark.slow
@given(text=TEXTS)
@example(text="x" * 300)
@example(text="x" * 300 + ":0.5")
@example(text="\0")
def test_paths_are_found_or_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The folder is empty, and hub names are not looked up.
    monkeypatch.chdir(tmp_path)
    assume(not os.path.exists(Path(text)))
    readers = [
        lambda: find_adapter(split_strength(text)[0]),
        lambda: captioned_folder.read(Path(text), 8, 8),
        lambda: NetworkJudge.load(text),
    ]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        readers.append(lambda: find_model(text))
    for reader in readers:
        with tells_or_works():
            reader()
            pytest.fail("nothing is there")
