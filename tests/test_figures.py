"""Figures in the paper's layout: what stands where, with which noise, and what is refused."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from convert.adapters.files import write_lora
from erase.cli import figure as command
from erase.figures import FIGURES, layouts, sheet
from erase.figures.adapters import FigureAdapter, read_adapters
from erase.figures.layouts import LAYOUTS, Cell, Layout, Request
from erase.figures.make import make
from flux_jax import load, lora
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from flux_jax.settings import SamplingOptions

SIZE = SamplingOptions(2, 3.5, 16, 16, 4)


def adapter(concept: str, method: str = "EraseAnything", label: str = "", **weights: float):
    """An adapter without weights, of a run with these losses."""
    settings = {"prompts": ["a photo of a {}"], "lower": weights, "upper": {}}
    metadata = {"method": method, "settings": json.dumps(settings)}
    return FigureAdapter(
        label, concept, Path(f"{concept}-{method}"), 1.0, Adapter({}, 1.0), metadata
    )


CAT, DOG, SUN = (adapter(concept) for concept in ("cat", "dog", "sun"))
CAT_ESD, DOG_ESD = (adapter(concept, "ESD") for concept in ("cat", "dog"))


def shape(layout: Layout) -> dict[str, list]:
    """Of each row: for each picture the prompt's last word, seed, and adapters or silenced word."""
    return {
        title: [
            cell and (cell.prompt.split()[-1], cell.seed, cell.silenced or dict(cell.adapters))
            for cell in cells
        ]
        for title, cells in layout.rows
    }


def test_single_concept_has_a_row_for_each_method_and_the_columns_noise():
    layout = LAYOUTS["single-concept"](Request([CAT, DOG_ESD, CAT_ESD, DOG], (), (5, 6)))
    assert layout.headings == ["cat", "dog"]
    assert shape(layout) == {
        "original": [("cat", 5, {}), ("dog", 6, {})],
        "EraseAnything": [("cat", 5, {0: 1.0}), ("dog", 6, {3: 1.0})],
        "ESD": [("cat", 5, {2: 1.0}), ("dog", 6, {1: 1.0})],
    }


def test_methods_has_a_column_for_each_and_attention_maps_before_the_last():
    layout = LAYOUTS["methods"](Request([CAT_ESD, CAT], ["cats", "my cat"]))
    assert layout.headings == ["original", "ESD", "Attention map", "EraseAnything"]
    rows = [("cat", 0, {}), ("cat", 0, {0: 1.0}), ("cat", 0, "cat"), ("cat", 0, {1: 1.0})]
    assert shape(layout)["my cat"] == rows


def test_disentanglement_has_unrelated_prompts_right_of_the_line():
    layout = LAYOUTS["disentanglement"](Request([CAT, DOG], ["a tree"], (7, 8, 9)))
    assert shape(layout) == {
        "original": [None, None, ("tree", 9, {})],
        "⊖ cat": [("cat", 7, {}), ("cat", 7, {0: 1.0}), ("tree", 9, {0: 1.0})],
        "⊖ dog": [("dog", 8, {}), ("dog", 8, {1: 1.0}), ("tree", 9, {1: 1.0})],
    }
    frames = [cell and cell.frame for cell in layout.rows[1][1]]
    assert frames == [layouts.KEPT, layouts.ERASED, ""]
    assert (layout.line_below, layout.line_right) == (1, 2)


def test_sums_are_normalised_above_the_line_and_plain_below():
    layout = LAYOUTS["unrelated"](Request([CAT, DOG, SUN], ["a tree"], counts=(2, 3)))
    third = 1 / 3
    assert shape(layout) == {
        "original": [("tree", 0, {})],
        "normalised sum, N = 2": [("tree", 0, {0: 0.5, 1: 0.5})],
        "normalised sum, N = 3": [("tree", 0, {0: third, 1: third, 2: third})],
        "plain sum, N = 2": [("tree", 0, {0: 1.0, 1: 1.0})],
        "plain sum, N = 3": [("tree", 0, {0: 1.0, 1: 1.0, 2: 1.0})],
    }
    assert layout.line_below == 3
    assert len(LAYOUTS["unrelated"](Request([CAT, DOG, SUN], ["a tree"])).rows) == 3


def test_related_concepts_are_erased_alone_and_together():
    layout = LAYOUTS["related"](Request([SUN, CAT, DOG], ["a cat with a dog"]))
    assert shape(layout)["a cat with a dog"] == [
        *[("dog", 0, weights) for weights in ({}, {1: 1.0}, {2: 1.0}, {1: 0.5, 2: 0.5})]
    ]
    captions = [cell.caption for cell in layout.rows[0][1] if cell]
    assert captions == ["original", "⊖ cat", "⊖ dog", "⊖ cat ⊖ dog"]


def test_losses_are_named_by_their_weights():
    few, more = adapter("cat", esd=1.0, attn=0.0), adapter("cat", esd=1.0, attn=0.5)
    named = adapter("cat", label="mine", esd=1.0)
    rows = LAYOUTS["losses"](Request([few, more, named, adapter("cat", "ESD", esd=1.0)])).rows
    assert [title for title, _ in rows] == ["original", "esd", "esd + attn", "mine", "ESD"]


@pytest.mark.parametrize(
    ("name", "adapters", "prompts", "counts", "said"),
    [
        (
            "single-concept",
            [CAT, DOG_ESD],
            (),
            (),
            "EraseAnything has no adapter that erases 'dog'",
        ),
        (
            "single-concept",
            [CAT, adapter("cat")],
            (),
            (),
            "'cat' is erased by EraseAnything in cat-Erase",
        ),
        ("losses", [CAT, adapter("cat")], (), (), "'cat' is erased by EraseAnything in cat-Erase"),
        ("methods", [CAT], ["a tree"], (), "'a tree' names 0 of the concepts .* needs one: cat"),
        ("methods", [CAT, DOG], ["a cat, a dog"], (), "names 2 of the concepts"),
        ("disentanglement", [CAT], (), (), "prompt is missing: name some that have none"),
        ("disentanglement", [CAT], ["two cats"], (), "'two cats' names 'cat', which cat-"),
        ("unrelated", [CAT, DOG], ["a tree"], (3,), "count = 3 must be from 2 to 2"),
        ("unrelated", [CAT], ["a tree"], (), "name two or more"),
        ("unrelated", [CAT, CAT_ESD], ["a tree"], (), "'cat' is erased in cat-.* and in cat-ESD"),
        ("related", [CAT, DOG], ["a cat"], (), "'a cat' names 1 of the concepts"),
        ("related", [CAT, DOG], (), (), "prompt is missing"),
    ],
)
def test_what_a_figure_cannot_be_made_of_is_said_in_a_line(
    name: str, adapters: list, prompts: Sequence[str], counts: tuple[int, ...], said: str
):
    with pytest.raises(InputError, match=said) as refused:
        LAYOUTS[name](Request(adapters, prompts, counts=counts))
    assert len(str(refused.value)) <= 400
    assert "\n" not in str(refused.value)


def test_every_pixel_of_a_picture_is_on_the_sheet_in_its_place():
    base, erased = Cell("a cat", 0, caption="a cat"), Cell("a cat", 0, ((0, 1.0),), frame="#ff0000")
    rng = np.random.default_rng(0)
    pictures = {c: rng.integers(256, size=(64, 64, 3), dtype=np.uint8) for c in (base, erased)}
    layout = Layout(["one", "two"], [("", [base, None]), ("below", [None, erased])], 1, 1)
    page, grid = sheet.render(layout, pictures), sheet.Grid.of(layout, (64, 64))
    for cell, row, column in ((base, 0, 0), (erased, 1, 1)):
        top, left = grid.tops[row], grid.column(column)
        np.testing.assert_array_equal(
            page[top : top + 128, left : left + 128], pictures[cell].repeat(2, 0).repeat(2, 1)
        )
    assert tuple(page[grid.tops[1] - 1, grid.column(1)]) == (255, 0, 0)
    blue = tuple(bytes.fromhex(sheet.LINE[1:]))
    line = page[grid.tops[1] - grid.gap, grid.gap : -grid.gap]
    assert 0.3 < (line == blue).all(-1).mean() < 0.8
    # The place without a picture is empty.
    assert (page[grid.tops[1] + 3 : grid.tops[1] + 125, grid.left : grid.left + 120] == 255).all()


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder)


def run(folder: Path, pipe: Pipeline, concept: str | None, seed: int = 0) -> Path:
    """A run's folder with an adapter, as training writes it."""
    tree = lora.init(jax.random.key(seed), pipe.params["transformer"], rank=2)
    tree = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.5, tree)
    metadata = {} if concept is None else {"concept": concept, "method": "EraseAnything"}
    write_lora(folder / "adapter", tree, 2.0, metadata)
    return folder


def test_adapters_are_read_with_labels_strengths_and_from_a_folder_of_runs(
    pipe: Pipeline, tmp_path: Path
):
    for seed, concept in enumerate(("cat", "dog")):
        run(tmp_path / "runs" / concept, pipe, concept, seed)
    found = read_adapters([f"{tmp_path}/runs", f"ESD={tmp_path}/runs/dog:0.5"])
    assert [(a.method, a.concept, a.strength, a.prompt) for a in found] == [
        ("EraseAnything", "cat", 1.0, "a photo of a cat"),
        ("EraseAnything", "dog", 1.0, "a photo of a dog"),
        ("ESD", "dog", 0.5, "a photo of a dog"),
    ]
    run(tmp_path / "other", pipe, None)
    (tmp_path / "empty").mkdir()
    for text, said in (
        ("other", "does not say in its header what it erases"),
        ("empty", "has no adapter; name a run's folder"),
        ("nowhere", "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            read_adapters([f"{tmp_path}/{text}"])
    with pytest.raises(InputError, match="adapter is missing"):
        read_adapters([])


@pytest.mark.slow
def test_a_figure_shows_what_sample_draws_and_its_settings_make_it_again(
    tiny_folder: Path, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for seed, concept in enumerate(("cat", "dog")):
        run(tmp_path / concept, pipe, concept, seed)
    words = ["17", f"--adapter={tmp_path}/cat", f"--adapter={tmp_path}/dog:0.5", "--steps=2"]
    words += [f"--model={tiny_folder}", "--height=16", "--width=16", "--seed=3", "--batch=4"]
    words += ["--prompt", "a cat with a dog", f"--out={tmp_path}/out"]
    command.main(words)
    settings = json.loads((tmp_path / "out/related.json").read_text())
    assert shlex.split(settings["command"]) == ["erase-anything", "figure", *words]
    assert (settings["paper"], len(settings["rows"][0]["pictures"])) == (17, 4)
    first = (tmp_path / "out/related.png").read_bytes()
    command.main(words)
    assert (tmp_path / "out/related.png").read_bytes() == first
    with Image.open(tmp_path / "out/related.png") as opened:
        page = np.asarray(opened)
    parts = read_adapters([f"{tmp_path}/cat", f"{tmp_path}/dog"])
    layout = LAYOUTS["related"](Request(parts, ["a cat with a dog"], (3,)))
    grid = sheet.Grid.of(layout, (16, 16))
    together = [(parts[0].adapter, 0.5), (parts[1].adapter, 0.25)]
    for column, adapters in ((0, []), (3, together)):
        want = load(tiny_folder)(
            ["a cat with a dog"], seeds=[3], steps=2, height=16, width=16, adapters=adapters
        )[0]
        left = grid.column(column)
        found = page[grid.tops[0] : grid.tops[0] + grid.height : grid.times]
        found = found[:, left : left + grid.width : grid.times]
        np.testing.assert_allclose(found.astype(int), want.astype(int), atol=1)


def test_an_adapter_of_another_model_is_refused(tiny_folder: Path, tmp_path: Path):
    tree = {"dual_blocks": {"attn": {"add_q_proj": {"A": np.ones((1, 7, 2), np.float32)}}}}
    tree["dual_blocks"]["attn"]["add_q_proj"]["B"] = np.ones((1, 2, 7), np.float32)
    write_lora(tmp_path / "cat/adapter", tree, 2.0, {"concept": "cat", "method": "ESD"})
    request = Request(read_adapters([str(tmp_path / "cat")]))
    with pytest.raises(InputError, match=str(tmp_path / "cat")) as refused:
        make("single-concept", str(tiny_folder), request, SIZE, tmp_path / "out")
    assert len(str(refused.value)) <= 400
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["relate"], "figure = 'relate' is unknown; did you mean related or unrelated?"),
        (["19"], "figure = '19' is unknown"),
        (["methods"], "adapter is missing"),
        (["methods", "--count", "3"], "count is for the figure 'unrelated', not 'methods'"),
        (["methods", "--steps", "0"], "steps = 0 must be at least 1"),
    ],
)
def test_the_command_refuses_in_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert set(FIGURES) == set(LAYOUTS)
