"""Judges that use CLIP: score, classification and Q16, by transformers and by counting."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.clip_case import save
from safetensors.numpy import save_file
from scipy.stats import bootstrap
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from erase.judges import figures
from erase.judges.clip_classes import CLIPClasses
from erase.judges.clip_score import CLIPScore
from erase.judges.named import Classes
from erase.judges.protocol import PictureJudge
from erase.judges.q16 import Q16, read_vectors
from flux_jax.errors import InputError
from flux_jax.models.clip.load import LoadedCLIP, load

CLASSES = ("cat", "soccer ball", "ball", "apple")
PROMPTS = ["a photo of a cat", "two red apples", "a soccer ball " * 40, "the sun"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> LoadedCLIP:
    return load(str(folder))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (4, 44, 36, 3), np.uint8)


def theirs(folder: Path, pictures: np.ndarray, texts: list[str]) -> torch.Tensor:
    """Logits of transformers' model and processors."""
    model: Any = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(list(pictures), return_tensors="pt")
    ids = tokenizer(texts, padding="max_length", max_length=20, truncation=True)
    with torch.no_grad():
        return model(torch.tensor(ids.input_ids), pixels["pixel_values"])


def test_clip_score_is_100_times_the_cosine(folder: Path, clip: LoadedCLIP, pictures: np.ndarray):
    judge = CLIPScore(clip)
    assert isinstance(judge, PictureJudge)
    out: Any = theirs(folder, pictures, PROMPTS)
    wanted = 100 * torch.cosine_similarity(out.image_embeds, out.text_embeds).numpy()
    scores = judge.scores(pictures, PROMPTS)
    np.testing.assert_allclose([s["clip"] for s in scores], wanted, atol=2e-3)
    assert [s["cut"] for s in scores] == [0, 0, 1, 0]
    (figure,) = judge.figures(scores)
    assert (figure.name, figure.pictures) == ("CLIP score", 4)
    assert figure.value == pytest.approx(wanted.mean(), abs=2e-3)
    assert judge.description["model"] == str(folder)
    assert judge.figures([]) == []


def test_classes_are_ranked_as_by_transformers(
    folder: Path, clip: LoadedCLIP, pictures: np.ndarray
):
    judge = CLIPClasses(clip, Classes(CLASSES))
    assert isinstance(judge, PictureJudge)
    out: Any = theirs(folder, pictures, [f"a photo of the {name}" for name in CLASSES])
    wanted = out.logits_per_image.softmax(-1).numpy()
    np.testing.assert_allclose(judge.probabilities(pictures), wanted, atol=2e-5)
    scores = judge.scores(pictures, PROMPTS)
    assert [s["class"] for s in scores] == wanted.argmax(-1).tolist()
    assert [s.get("named") for s in scores] == [0, 3, 1, None]
    right = [s["class"] == s["named"] for s in scores if "named" in s]
    (figure,) = judge.figures(scores)
    assert (figure.unit, figure.pictures) == ("%", 3)
    assert figure.value == pytest.approx(100 * sum(right) / 3)
    assert judge.figures(scores[3:]) == []


def test_the_class_of_a_prompt_is_the_longest_word_that_it_names():
    classes = Classes(CLASSES, {"kitty": "cat", "cats eye": "ball"})
    named = {"Kitty": "cat", "soccer balls": "soccer ball", "cats eye": "ball", "a catalogue": None}
    assert {prompt: classes.named(prompt) for prompt in named} == named
    classes.check_prompts(["a cat"])
    with pytest.raises(InputError, match="prompt = 'the sun' names none of the 4 classes"):
        classes.check_prompts(["a cat", "the sun"])


def test_accuracy_of_erased_classes_is_separate():
    classes = Classes(CLASSES, erased=("cat",))
    rows = np.eye(4)[[0, 1, 2, 2, 0]]
    prompts = ["a cat", "a cat", "a ball", "an apple", "the sun"]
    erased, others = classes.figures(classes.scores(rows, prompts), "x")
    assert (erased.name, erased.value, erased.pictures) == ("Acc_e", 50, 2)
    assert (others.name, others.value, others.pictures) == ("Acc_ir", 50, 2)


def test_erased_classes_named_by_a_synonym_are_separate():
    words = {"kitty": "cat", "fruit of a tree": "apple"}
    classes = Classes(CLASSES, words, ("cat",))
    prompts = ["a Kitty", "two kittys", "a cat", "a fruit of a tree", "a cat, a kitty"]
    scores = classes.scores(np.eye(4)[[0, 1, 0, 2, 0]], prompts)
    assert ["synonym" in each for each in scores] == [True, True, False, True, False]
    shares = {each.name: (each.value, each.pictures) for each in classes.figures(scores, "x")}
    apple = 100 * (CLASSES.index("apple") == 2)
    assert shares == {"Acc_e": (100, 2), "Acc_g": (50, 2), "Acc_ir": (apple, 1)}
    plain = Classes(CLASSES, words)
    (figure,) = plain.figures(plain.scores(np.eye(4)[[0]], ["a kitty"]), "x")
    assert figure.name == "x"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"names": CLASSES, "words": {"Apple": "cat"}}, "'Apple', a synonym of 'cat', is empty or"),
        ({"names": CLASSES, "words": {" ": "cat"}}, "' ', a synonym of 'cat', is empty or"),
        ({"names": ("cat",)}, "at least two different ones"),
        ({"names": ("cat", "Cat")}, "at least two different ones"),
        ({"names": ("cat", " ")}, "at least two different ones"),
        (
            {"names": CLASSES, "words": {"kitty": "dog"}},
            "'kitty' is a synonym of 'dog', which is no class",
        ),
        ({"names": CLASSES, "erased": ("dog",)}, r"^erased = 'dog' is no class; choose from "),
    ],
)
def test_unusable_classes_are_named(settings: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        Classes(**settings)


def test_classes_are_opened_by_their_names(folder: Path):
    judge = CLIPClasses.load(["cat", "dog"], str(folder), {"kitty": "cat"}, ["dog"])
    assert judge.classes == Classes(("cat", "dog"), {"kitty": "cat"}, ("dog",))
    assert judge.description["template"] == "a photo of the {}"


def test_a_template_without_a_place_for_the_class_is_refused(clip: LoadedCLIP):
    with pytest.raises(InputError, match=r"must have \{\} once"):
        CLIPClasses(clip, Classes(CLASSES), "a photo")
    # Before the model, which does not exist.
    with pytest.raises(InputError, match=r"must have \{\} once"):
        CLIPClasses.load(CLASSES, "no/model", template="{} {}")


def test_q16_is_the_softmax_of_100_cosines(
    folder: Path, clip: LoadedCLIP, pictures: np.ndarray, tmp_path: Path
):
    out: Any = theirs(folder, pictures, PROMPTS)
    image = out.image_embeds
    # Nearly equal vectors: others would give probabilities of 0 and 1 only.
    array = image.mean(0).numpy() + np.random.default_rng(0).normal(0, 0.01, (2, 12))
    array = array.astype(np.float16)
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(array, protocol=3))
    judge = Q16.load(tmp_path / "prompts.p", str(folder))
    assert isinstance(judge, PictureJudge)
    vectors = torch.nn.functional.normalize(torch.from_numpy(array.astype(np.float32)))
    wanted = (100 * image @ vectors.T).softmax(-1)[:, 1].numpy()
    scores = judge.scores(pictures, [""] * 4)
    got = [each["inappropriate"] for each in scores]
    np.testing.assert_allclose(got, wanted, atol=2e-4)
    assert len({round(each, 2) for each in got}) > 2
    count, share = judge.figures(scores)
    assert (count.value, count.unit, share.value) == (
        sum(wanted > 0.5),
        "pictures",
        25 * count.value,
    )
    assert judge.description["vectors"] == "prompts.p"


def test_q16s_vectors_are_read_from_every_form(tmp_path: Path):
    array = np.random.default_rng(0).normal(size=(2, 768)).astype(np.float16)
    for protocol in (3, 4):
        for old in (False, True):
            content = pickle.dumps(array, protocol=protocol)
            if old and protocol == 3:
                content = content.replace(b"numpy._core", b"numpy.core")
                # The number of bytes of the published file.
                assert len(content) == 3231
            (tmp_path / "prompts.p").write_bytes(content)
            np.testing.assert_array_equal(read_vectors(tmp_path / "prompts.p"), array)
    np.save(tmp_path / "a.npy", array)
    save_file({"x": array}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.safetensors"):
        np.testing.assert_array_equal(read_vectors(tmp_path / name), array)


class Evil:
    """Would run a function when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit",))


ARRAY = np.ones((2, 8), np.float32)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps(Evil(), protocol=3), "it names '.*', which no"),
        (pickle.dumps([ARRAY, Evil()], protocol=4), "is in no array's pickle"),
        (pickle.dumps(ARRAY, protocol=3)[:-20], "no pickle, .npy or .safetensors of one array"),
        (pickle.dumps(np.asfortranarray(ARRAY), protocol=3), "stored row by row"),
        (pickle.dumps(ARRAY.astype(">f4"), protocol=3), "names '>'"),
        (pickle.dumps(ARRAY[0], protocol=3), "one array with two axes"),
        (pickle.dumps(ARRAY.astype(int), protocol=3), "names 'i8'"),
        (pickle.dumps(np.ones((3, 8), np.float32), protocol=3), r"an array \[3, 8\]"),
        (pickle.dumps(np.zeros((2, 8), np.float32), protocol=3), "all zeros"),
        (b"", "no pickle"),
        (b"PK\x03\x04" * 9, "no pickle"),
    ],
)
def test_files_that_are_not_q16s_vectors_are_refused(content: bytes, said: str, tmp_path: Path):
    path = tmp_path / "prompts.p"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read_vectors(path)
    assert len(str(error.value)) <= 400
    assert "ml-research/Q16" in str(error.value)


def test_missing_and_other_vectors_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"prompts.p cannot be read .*: Q16 needs prompts.p for"):
        Q16.load(tmp_path / "prompts.p", str(folder))
    (tmp_path / "a.npy").write_bytes(b"neither an array nor a pickle")
    with pytest.raises(InputError, match=r"a\.npy: .*it holds no array of numbers"):
        Q16.load(tmp_path / "a.npy", str(folder))
    np.save(tmp_path / "a.npy", ARRAY)
    with pytest.raises(InputError, match=r"vectors of 8 numbers, but those of .* have 12"):
        Q16.load(tmp_path / "a.npy", str(folder))


def test_intervals_are_those_of_the_statistics():
    values = np.random.default_rng(0).normal(30, 4, 400).tolist()
    mean = figures.mean("x", values)
    boot = bootstrap((values,), np.mean, n_resamples=999, rng=0).confidence_interval
    assert (mean.low, mean.high) == pytest.approx((boot.low, boot.high), abs=0.1)
    assert (figures.mean("x", [3.0]).low, figures.mean("x", [3.0]).value) == (None, 3.0)
    hits = [True] * 25 + [False] * 75
    share = figures.percentage("x", hits)
    assert (share.value, share.low, share.high) == pytest.approx((25, 17.55, 34.30), abs=0.01)
    count = figures.picture_count("x", hits * 2)
    assert (count.value, count.unit, count.pictures) == (50, "pictures", 200)
    counts = np.random.default_rng(0).poisson(0.5, 1000).tolist()
    total = figures.total("x", counts, "detections")
    assert total.value == sum(counts)
    # A Poisson count's standard deviation is its root.
    assert total.high is not None
    assert total.high - total.value == pytest.approx(1.96 * 500**0.5, rel=0.08)
    assert figures.total("x", [0, 0], "detections").low == 0
