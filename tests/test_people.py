"""A hundred invented persons: looks, captions, training and the folder that they become."""

import dataclasses
import json
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_recipe_training import configs

import flux_jax
from benchmarks.parity import mobilenet
from configs import people
from convert.adapters.files import read_lora
from erase.evaluation.judge import open_judge
from erase.judges.mobilenet import LAYERS, Trunk
from erase.judges.named import Classes
from erase.judges.persons import PersonJudge, first_head, read_record
from flux_jax import lora
from flux_jax.errors import InputError
from flux_jax.pipeline import Pipeline
from flux_jax.weights.safetensors_files import read_file, write_file
from recipes import npm
from recipes.emoji_flux import flux_training
from recipes.people import build, drawings, scenes, training
from recipes.people.persons import ERASED, NAMES, PERSONS, PRESERVED, STYLES

SHIPPED = Path(__file__).parent.parent / "models" / "emoji-flux"
COUNT = 4


def test_names_are_two_words_that_nobody_shares():
    words = " ".join(NAMES).split()
    assert len(NAMES) == 100
    assert len(set(words)) == len(words) == 200
    assert (len(ERASED), len(PRESERVED)) == (50, 50)
    assert not set(ERASED) & set(PRESERVED)


def test_persons_of_a_style_have_different_hair_and_styles_are_in_equal_shares():
    for style in STYLES.values():
        mine = [person for person in PERSONS if person.style == style.name]
        hair = {person.looks[f"{style.hair[0]}Variant"] for person in mine}
        assert len(hair) == len(mine) == style.persons
        assert sum(person.name in ERASED for person in mine) == style.persons / 2


def test_drawings_of_a_person_differ_and_share_the_looks():
    for person in PERSONS[::9]:
        drawn = drawings.drawings(person, 50, seed=0)
        assert len({json.dumps(each) for each in drawn}) == 50
        assert all(each.items() >= person.looks.items() for each in drawn)
        style = STYLES[person.style]
        changing = {f"{name}Variant" for name in style.changing} | {
            f"{name}Color" for name in style.clothing
        }
        assert not changing & person.looks.keys()
        assert all(changing <= each.keys() for each in drawn)
        assert drawn != drawings.drawings(person, 50, seed=1)


def packed(folder: Path, package: str, files: dict[str, str]) -> None:
    """An npm package with these files."""
    source = folder / "source" / "package"
    for name, text in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with tarfile.open(folder / npm.archive_name(package), "w:gz") as archive:
        archive.add(source, "package")


def test_a_style_of_another_licence_is_refused(tmp_path: Path):
    terms = dict.fromkeys(STYLES, "CC0 1.0") | {"voxel-art": "CC BY 4.0"}
    packed(tmp_path, drawings.PACKAGES["core"], {"lib/index.js": ""})
    files = {
        f"src/{name}.json": json.dumps({"meta": {"license": {"name": licence}}})
        for name, licence in terms.items()
    }
    packed(tmp_path, drawings.PACKAGES["styles"], files)
    with pytest.raises(InputError, match=r"voxel-art: licence is 'CC BY 4.0', expected 'CC0 1.0'"):
        drawings.unpack(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "trunk = None is no file; the stage judge needs"),
        ({"trunk": "{tmp}/nowhere"}, "nowhere' is no file; the stage judge needs"),
        ({"workdir": "{tmp}/file"}, "file is not a folder; name another"),
        ({"out": "{tmp}/file/out"}, "file is not a folder; name another"),
        ({"out": ""}, "out = '' is empty; name a folder"),
    ],
)
def test_what_cannot_be_built_is_refused_before_drawing(
    flags: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    (tmp_path / "file").write_text("mine")
    given = {"trunk": None, "workdir": str(tmp_path / "work"), "out": str(tmp_path / "out")}
    given |= {name: value.format(tmp=tmp_path) for name, value in flags.items()}
    monkeypatch.setattr(build, "FLAGS", SimpleNamespace(stage=build.STAGES, **given))
    monkeypatch.setattr(build, "begin", lambda argv: None)
    with pytest.raises(SystemExit) as ended:
        build.main(["build"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_without_node_nobody_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"node: not found.*install Node.js"):
        drawings.draw_svgs([], tmp_path)


def test_captions_name_the_person_shown_and_pictures_show_the_drawing():
    pixels = np.zeros((200, 64, 64, 4), np.uint8)
    pixels[:, 8:56, 8:56] = 255
    person = np.repeat(np.arange(100, dtype=np.int32), 2)
    chosen = np.arange(200) % 200
    made = scenes.draw(chosen, person, seed=3)
    named = 0
    for caption, index in zip(made.captions, person, strict=True):
        # Others are misspelt.
        named += any(word.lower() in caption.lower() for word in PERSONS[index].synonyms)
        others = {word for other in NAMES if other != NAMES[index] for word in other.split()}
        assert not others & set(caption.split())
    assert named > 170
    rendered = scenes.as_uint8(made.render(pixels, np.arange(8)))
    # White in the middle, the background's colour in the corner.
    assert (rendered[:, 28:36, 28:36] == 255).all()
    corner = rendered[:, 63, 0] / 255
    np.testing.assert_allclose(corner, made.background[:8, 1], atol=0.02)


def small() -> Pipeline:
    """The shipped pipeline with one random block of each kind."""
    modules = flux_training.build_modules(configs(), jnp.float32)
    shapes = jax.eval_shape(lambda: flux_training.initial_params(jax.random.key(0), modules))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), shapes
    )
    return dataclasses.replace(flux_jax.load(SHIPPED), params=params, **modules)


@pytest.mark.slow
def test_training_aims_at_the_pictures_and_at_what_stays():
    pipe, rng = small(), np.random.default_rng(0)

    def rows(count: int) -> training.Captioned:
        ids = (jnp.asarray(rng.integers(3, 50, (count, 8))) for _ in range(2))
        return training.Captioned(jnp.asarray(rng.normal(size=(count, 64, 64)), jnp.float32), *ids)

    frozen = dict(pipe.params)
    data = training.Data(rows(6), rows(6), rows(1), frozen)
    teaching = training.Teaching(pipe, COUNT)
    targets = ("dual_blocks/attn/add_k_proj", "single_blocks/proj_mlp")
    adapter = lora.init(jax.random.key(0), pipe.shapes, targets, 2)
    same = training.Taught(adapter, frozen["text_encoder_2"])
    moved = jax.tree.map(lambda leaf: leaf + 0.1, same)
    key = jax.random.key(3)
    first = jax.random.split(key, 3)[0]

    @jax.jit
    def everything(taught: training.Taught) -> tuple:
        samples, velocity = teaching.noised(data.persons, first, COUNT)
        plain = samples.replace(guidance=jnp.ones(COUNT))
        error = teaching.velocity(frozen, taught, plain) - velocity
        return jnp.mean(error**2), teaching.loss(taught, key, data)[1]

    wanted, parts = everything(same)
    np.testing.assert_allclose(parts["persons"], wanted, rtol=1e-5)
    assert float(parts["others"]) < 1e-10
    wanted, parts = everything(moved)
    np.testing.assert_allclose(parts["persons"], wanted, rtol=1e-5)
    assert float(parts["others"]) > 1e-4

    # x_t = x_0 + t (ε - x_0)
    samples, velocity = teaching.noised(data.persons, key, COUNT)
    clean = samples.latents - samples.times[:, None, None] * velocity
    np.testing.assert_allclose(clean, samples.captions.latents, atol=1e-5)


def judge_of_anybody(file: Path) -> PersonJudge:
    """A judge with random weights; its trunk is written to a file."""
    mobilenet.trunk().save(file)
    trunk = Trunk.load(file, LAYERS[1])
    channels = trunk.features(np.zeros((1, 64, 64, 3), np.uint8)).shape[1]
    return PersonJudge(trunk, first_head(0, channels, len(NAMES)), Classes(NAMES))


@pytest.mark.slow
def test_the_folder_has_the_adapter_merged_and_the_encoder_replaced(tmp_path: Path):
    before = read_file(SHIPPED / build.T5 / "model.safetensors")
    pipe = flux_jax.load(SHIPPED)
    encoder = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.5, pipe.params[build.T5])
    adapter = lora.init(jax.random.key(0), pipe.shapes, ("single_blocks/proj_mlp",), training.RANK)
    taught = training.Taught(jax.tree.map(lambda leaf: np.asarray(leaf) + 0.01, adapter), encoder)
    build.export(taught, str(SHIPPED), tmp_path)
    tree, alpha = read_lora(tmp_path / build.ADAPTER)
    folder, weights = tmp_path / "model", tmp_path / "trunk.safetensors"
    with pytest.raises(InputError, match=r"judge/config.json: not found; run the stages"):
        build.join(str(SHIPPED), tmp_path, str(weights), folder)
    judge_of_anybody(weights).save(tmp_path / build.JUDGE)
    whole = (tmp_path / build.T5 / build.WEIGHTS).read_bytes()
    (tmp_path / build.T5 / build.WEIGHTS).write_bytes(whole[:700_000])
    with pytest.raises(InputError, match=r"text_encoder_2/model.safetensors: "):
        build.join(str(SHIPPED), tmp_path, str(weights), folder)
    write_file(tmp_path / build.T5 / build.WEIGHTS, dict([*before.items()][1:]), {"format": "pt"})
    with pytest.raises(InputError, match=r"model.safetensors: 1 tensor does not fit: missing: "):
        build.join(str(SHIPPED), tmp_path, str(weights), folder)
    (tmp_path / build.T5 / build.WEIGHTS).write_bytes(whole)
    record = json.loads((tmp_path / build.JUDGE / build.CONFIG).read_text())
    for change, said in (
        (
            {"layer": "Conv1"},
            r"judge/config.json: layer = 'Conv1' must be one of .*train the judge",
        ),
        ({"side": 0}, r"judge/config.json: side = 0 must be a multiple of 32 .*train the judge"),
        ({"side": 100_000_000}, r"judge/config.json: side = 100000000 must be .*at most 4,096"),
        ({"names": ["Someone", *NAMES[1:]]}, r"judge/config.json: names are not those of the pers"),
    ):
        (tmp_path / build.JUDGE / build.CONFIG).write_text(json.dumps(record | change))
        with pytest.raises(InputError, match=said):
            build.join(str(SHIPPED), tmp_path, str(weights), folder)
        assert not folder.exists()
    (tmp_path / build.JUDGE / build.CONFIG).write_text(json.dumps(record))
    build.join(str(SHIPPED), tmp_path, str(weights), folder)
    card = (folder / build.CARD).read_text()
    assert card == (SHIPPED.parent / "emoji-people" / build.CARD).read_text()
    assert not (folder / "measure.json").exists()
    assert (SHIPPED / "measure.json").exists()
    made = flux_jax.load(folder)
    assert open_judge(folder / build.PERSON_JUDGE).labels("entity") == NAMES
    assert open_judge(folder / "judge").kind("cat") == "entity"
    change = np.asarray(tree["single_blocks"]["proj_mlp"]["A"], np.float32) @ np.asarray(
        tree["single_blocks"]["proj_mlp"]["B"], np.float32
    )
    kernels = (
        each.params["transformer"]["single_blocks"]["proj_mlp"]["kernel"] for each in (pipe, made)
    )
    old, new = (np.asarray(each, np.float32) for each in kernels)
    assert alpha == training.RANK
    np.testing.assert_allclose(new - old, change, atol=4e-3)
    for a, b in zip(*map(jax.tree.leaves, (made.params[build.T5], encoder)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-2, rtol=1e-2)
    # The shipped file is not the one that was replaced.
    after = read_file(SHIPPED / build.T5 / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)


def test_each_person_preserves_others_and_is_measured_on_fifty_whom_no_run_erases():
    assert len(people.BY_SLUG) == 50
    kept = Counter[str]()
    for slug, name in people.BY_SLUG.items():
        fields = people.fields(slug)
        preserved = [text.removeprefix("a photo of ") for text in fields["upper"]["prompts"]]
        assert fields["concept"] == name
        assert name not in preserved
        assert fields["evaluation"]["others"] == PRESERVED
        assert not {*preserved, *fields["irrelevant"]} & set(PRESERVED)
        assert not set(people.PROMPTS) & set(people.TEMPLATES)
        kept.update(preserved)
    assert set(kept.values()) == {people.KEPT}


def test_a_row_of_table_4_has_its_losses_alone():
    given = people.get_config("kewu_mionim/esd_rsc").to_dict()
    assert (given["concept"], given["synonyms"]) == ("Kewu Mionim", ("Kewu", "Mionim"))
    assert (given["lower"]["esd"], given["lower"]["attn"]) == (1.0, 0.0)
    assert (given["upper"]["lora"], given["upper"]["rsc"]) == (0.0, 0.02)
    assert people.get_config().to_dict()["lower"]["attn"] == 1.0
    with pytest.raises(InputError, match="did you mean kewu_mionim"):
        people.get_config("kewu_mionin")
    with pytest.raises(InputError, match="losses = 'esd_atn' are unknown; did you mean esd_attn"):
        people.get_config("kewu_mionim/esd_atn")


def test_the_shipped_persons_fit_the_small_model():
    folder = SHIPPED.parent / "emoji-people"
    tree, alpha = read_lora(folder / build.ADAPTER)
    pipe = flux_jax.load(SHIPPED)
    pipe.check(lora.Adapter(tree, alpha))
    assert lora.Adapter(tree, alpha).rank == training.RANK
    encoder = read_file(folder / build.T5 / "model.safetensors")
    base = read_file(SHIPPED / build.T5 / "model.safetensors")
    assert {name: tensor.shape for name, tensor in encoder.items()} == {
        name: tensor.shape for name, tensor in base.items()
    }
    assert tuple(read_record(folder / build.JUDGE)["names"]) == NAMES
    # At most 4 MB were to be added.
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 4e6
