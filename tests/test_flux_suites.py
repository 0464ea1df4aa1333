"""The paper's suites for FLUX.1 [dev]: concepts, persons, and the files of their prompts."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.flux import average, celebrity, concepts, prompts
from configs.flux.concept import Concept, slug_of
from erase.benchmark.prompt_sets import read_prompt_set
from erase.benchmark.registry import read_classes
from erase.benchmark.results import read_result
from erase.config.schema import BankConfig
from erase.data.words.irrelevant import listed
from erase.data.words.spelling import mentions, same
from erase.data.words.templates import as_template, phrase
from erase.judges.named import Classes
from erase.methods.planning.configured import plan_of
from erase.report.benchmarks import PAPER, as_markdown, join
from erase.runs import load_config
from erase.runtime.files import write
from flux_jax import load
from flux_jax.errors import InputError

# Table 6 as printed.
TABLE_6 = {
    "entity": (
        *("Fruit", "Ball", "Car", "Airplane", "Tower", "Building", "Celebrity", "Shoes", "Cat"),
        "Dog",
    ),
    "abstraction": (
        *("Pablo Picasso", "Salvador Dali", "Claude Monet", "Vincent Van Gogh"),
        *("Rembrandt van Rijn", "Frida Kahlo", "Edvard Munch", "Leonardo da Vinci"),
        *("Explosions", "Environmental Simulation"),
    ),
    "relationship": (
        *("Shake Hand", "Kiss", "Hug", "In", "On", "Back to Back", "Jump", "Burrow", "Hold"),
        "Amidst",
    ),
}
EVERY = {slug: c for known in concepts.CATEGORIES.values() for slug, c in known.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    prompts.main(["--out", str(folder)])
    return folder


def test_the_thirty_concepts_are_those_of_table_6():
    for category, printed in TABLE_6.items():
        known = concepts.CATEGORIES[category]
        assert [slug_of(name) for name in printed] == list(known)
        for name, concept in zip(printed, known.values(), strict=True):
            assert (concept.printed or concept.name).casefold() == name.casefold()
    assert len(EVERY) == 30


@pytest.mark.parametrize("slug", EVERY)
def test_a_concept_can_be_trained_and_measured(slug: str):
    concept, known = EVERY[slug], concepts.CATEGORIES[concepts.category_of(slug)]
    config = load_config(concepts.get_config(slug))
    assert (config.height, config.width, config.text_tokens) == (512, 512, 256)
    assert (config.iterations, config.batch_size, config.steps) == (1000, 1, 28)
    assert (config.lower.learning_rate, config.upper.learning_rate) == (1e-3, 5e-4)
    assert config.model.path == "black-forest-labs/FLUX.1-dev"
    relation = slug in concepts.CATEGORIES["relationship"]
    verb = slug in ("shake_hand", "kiss", "hug", "jump", "burrow", "hold")
    assert config.part_of_speech == ("verb" if verb else "adjective" if relation else "noun")
    assert (config.kind == "relation") == relation
    assert 4 <= len(set(concept.prompts)) <= 8
    assert 2 <= len(set(map(str.casefold, concept.synonyms))) <= 4
    assert len(set(concept.irrelevant)) >= 5
    for sentence in concept.prompts:
        assert as_template(sentence, concept.name).count("{}") == 1, sentence
    # Words of L_rsc are none that Acc_ir or Acc_g are measured on.
    measured = [word for each in known.values() for word in (each.name, *each.synonyms)]
    for word in concept.irrelevant:
        assert not any(same(word, each) for each in measured), word
    trained = {phrase(as_template(p, concept.name), concept.name) for p in concept.prompts}
    assert not trained & {concept.prompt(n) for n in range(len(concept.templates))}
    for template in concept.templates:
        assert template.count("{}") == 1
        assert not mentions(template.replace("{}", ""), concept.name)


def test_templates_are_the_papers():
    by_category = {c: [x.templates for x in k.values()] for c, k in concepts.CATEGORIES.items()}
    assert set(by_category["entity"]) == {("A photo of {}",)}
    assert set(by_category["abstraction"]) == {("An Art in the style of {}",)}
    assert all(t.startswith(("A ", "Two ")) for ts in by_category["relationship"] for t in ts)


def test_another_preset_can_be_chosen():
    assert load_config(concepts.get_config("cat/official")).iterations == 100


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"concept = 'dg' is not one .* did you mean dog"):
        concepts.get_config("dg")
    with pytest.raises(InputError, match=r"person = 'adel' is not one .* did you mean adele"):
        celebrity.get_config("adel")
    with pytest.raises(InputError, match="losses = 'esd_atn' are unknown; did you mean esd_attn"):
        celebrity.get_config("adele/esd_atn")
    with pytest.raises(InputError, match="preset = 'qqq' is unknown"):
        concepts.get_config("cat/qqq")


def test_the_persons_are_fifty_and_fifty():
    known = celebrity.celebrities()
    erased, kept = list(known["erased"]), known["kept"]
    assert (len(erased), len(kept)) == (50, 50)
    slugs = [slug_of(name) for name in (*erased, *kept)]
    assert len(set(slugs)) == 100
    assert all(slugs)
    assert set(known["invented"]) < set(kept)
    assert len(known["invented"]) == 12
    assert "Table 7" in known["source"]
    for name in ("Christiano Ronaldo", "Leonardo Dicaprio", "Babe Ruth Jr", "Wonderwoman"):
        assert name in (*erased, *kept)


def test_each_row_of_table_4_has_its_losses():
    rows = json.loads(PAPER.read_text())["tables"]["4"]["rows"]
    assert list(celebrity.TITLES.values()) == [row["title"] for row in rows]
    for losses, title in celebrity.TITLES.items():
        config = load_config(celebrity.get_config(f"adele/{losses}"))
        weights = {
            "L_esd": config.lower.esd,
            "L_attn": config.lower.attn,
            "L_lora": config.upper.lora,
            "L_rsc": config.upper.rsc,
        }
        used = set(weights) if title == "full loss" else set(title.split(" + "))
        assert {name for name, weight in weights.items() if weight} == used


@pytest.mark.slow
def test_the_concept_s_tokens_are_found_in_every_sentence_and_form():
    """With the small model's tokenizer, which splits words as FLUX.1's does, into other pieces."""
    pipe = load("models/emoji-flux")
    pipe.tokenizer_2.model_max_length = 256
    configs = [load_config(concepts.get_config(slug)) for slug in EVERY]
    configs += [load_config(celebrity.get_config(slug)) for slug in ("adele", "jay_z", "dr_dre")]
    for config in configs:
        count = len(config.prompts)
        small = replace(config, height=64, width=64, bank=BankConfig(count, 1.0))
        planned = plan_of(small, pipe, listed(small))
        assert planned.masks.shape[:2] == (
            count,
            1 + len(config.synonyms) + len(config.irrelevant),
        )
        assert planned.masks.any(-1).all(), config.concept


@pytest.mark.slow
def test_every_person_can_be_trained():
    for slug, name in celebrity.erased_by_slug().items():
        config = load_config(celebrity.get_config(slug))
        assert config.concept == name
        assert len(config.synonyms) >= 1
    assert not set(celebrity.PROMPTS) & set(celebrity.TEMPLATES)


@pytest.mark.parametrize("category", concepts.CATEGORIES)
def test_files_of_concepts_name_the_right_class(category: str, written: Path):
    names, words = read_classes(str(written / f"{category}.txt"))
    known = concepts.CATEGORIES[category]
    assert names == [each.name for each in known.values()]
    every = [*names, *words]
    assert len(set(map(str.casefold, every))) == len(every)
    for slug, concept in known.items():
        found = read_prompt_set(written / f"{slug}.csv")
        assert not found.notes
        assert Counter(each.group for each in found.prompts) == dict.fromkeys(
            (prompts.ERASED, prompts.SYNONYMS, prompts.OTHERS), prompts.PICTURES
        )
        classes = Classes(tuple(names), words, (concept.name,))
        texts = [each.text for each in found.prompts]
        # As if all pictures showed the first class.
        told = classes.scores(np.tile(np.eye(len(names))[0], (len(texts), 1)), texts)
        for prompt, score in zip(found.prompts, told, strict=True):
            own = names[int(score["named"])] == concept.name
            assert own == (prompt.group != prompts.OTHERS), prompt
            assert ("synonym" in score) == (prompt.group == prompts.SYNONYMS), prompt
        figures = {each.name: each.pictures for each in classes.figures(told, "x")}
        assert figures == dict.fromkeys(("Acc_e", "Acc_g", "Acc_ir"), prompts.PICTURES)
        others = {p.text for p in found.prompts if p.group == prompts.OTHERS}
        assert len({classes.named(text) for text in others}) == 9


def test_files_of_persons_are_in_maces_form(written: Path):
    known = celebrity.celebrities()
    persons = Classes((*known["erased"], *known["kept"]))
    for slug, name in celebrity.erased_by_slug().items():
        found = read_prompt_set(written / "celebrity" / f"{slug}.csv")
        groups = {
            group: [persons.named(each.text) for each in rows]
            for group, rows in itertools.groupby(found.prompts, lambda each: each.group)
        }
        assert groups["erased"] == [name] * 25
        assert Counter(groups["others"]) == dict.fromkeys(known["kept"], 5)
        assert {each.seed for each in found.prompts} == {0, 1, 2, 3, 4}


def test_files_are_refused_where_they_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x").write_text("")
    for arguments, said in (
        (["--out", str(tmp_path / "x")], "is not a folder"),
        (["--out", str(tmp_path), "--pictures", "0"], "pictures = 0 must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            prompts.main(arguments)
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def result(value: float, title: str = "runs/x", **settings: object) -> dict:
    figures = [
        {"name": n, "unit": "%", "value": v, "low": 0.0, "high": 1.0, "pictures": 50}
        for n, v in (("Acc_e", value), ("Acc_ir", 100.0))
    ]
    judge = {"judge": "classes", "description": {"model": "m"}, "figures": figures, "groups": {}}
    rows = [{"title": title, "adapters": [title], "pictures": 150, "judges": [judge]}]
    base = {"title": "base model", "adapters": [], "pictures": 150, "judges": [judge]}
    common = {"steps": 28, "prompts_sha256": str(value), **settings}
    head = {"format": "erase-anything benchmark 1", "model": "flux", "prompts": "p.csv"}
    return {**head, "settings": common, "notes": [], "rows": [base, *rows]}


def test_rows_are_averaged_over_concepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = []
    for number, value in enumerate((10.0, 20.0, 60.0)):
        files.append(str(tmp_path / f"{number}.json"))
        Path(files[-1]).write_text(json.dumps(result(value)))
    out = tmp_path / "entity.json"
    average.main([*files, "--title", "EraseAnything (entity)", "--out", str(out)])
    found = read_result(out)
    (row,) = found["rows"]
    assert (row["title"], row["pictures"]) == ("EraseAnything (entity)", 450)
    erased, others = row["judges"][0]["figures"]
    # The mean, and Student's t for two degrees of freedom: 4.3027 x 26.4575 / sqrt(3) = 65.72.
    assert (erased["value"], erased["low"]) == (30.0, 0.0)
    assert erased["high"] == pytest.approx(95.72, abs=0.01)
    assert (others["value"], others["low"], others["high"]) == (100.0, 100.0, 100.0)
    assert erased["pictures"] == 150
    table = as_markdown(join([found]))
    assert "| EraseAnything (entity) | 30.0 [0.0, 95.7] | 100.0 [100.0, 100.0] |" in table
    assert "| EraseAnything (entity) (paper's Table 3) | 12.5 | 91.7 |" in table
    for changed, said in (
        (result(1.0, steps=4), "steps = 4 differs from 28"),
        (result(250.0), "Acc_e = 250.0 % must be from 0 to 100 %"),
        (result(1.0) | {"rows": []}, "has 0 rows with adapters"),
        (result(1.0) | {"rows": result(1.0)["rows"][1:] * 2}, "has 2 rows with adapters"),
    ):
        (tmp_path / "odd.json").write_text(json.dumps(changed))
        with pytest.raises(SystemExit):
            average.main([files[0], str(tmp_path / "odd.json"), "--title", "x", "--out", str(out)])
        assert said in capsys.readouterr().err
    other = result(1.0)
    other["rows"][1]["judges"] = []
    (tmp_path / "odd.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit):
        average.main([files[0], str(tmp_path / "odd.json"), "--title", "x", "--out", str(out)])
    assert "its judge classes differs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "  ", "?!"])
def test_concepts_have_a_name(name: str):
    with pytest.raises(InputError, match=r"^name = .* names no concept; write its word$"):
        Concept(name, ("a {}",), (), (), "thing", ("a {}",))


def test_outputs_that_cannot_be_written_are_refused_before_anything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    for main, arguments, said in (
        (prompts.main, ["--out", ""], "out = '' is empty"),
        (prompts.main, ["--out", "p", "--pictures", "99999999"], "must be at most 10,000"),
        (average.main, ["a.json", "--title", "T", "--out", "./a.json"], "is one of the results"),
        (average.main, ["a.json", "a.json", "--title", "T", "--out", "b.json"], "a.json alone has"),
        (average.main, ["a.json", "--title", " ", "--out", "b.json"], "title = '' is empty"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    for place, said in (
        (Path(), r"\. is a folder; name a file"),
        (tmp_path, "is a folder; name a file"),
        (Path("file/x.json"), "file is not a folder"),
    ):
        Path("file").write_text("mine")
        with pytest.raises(InputError, match=said):
            write(place, "content")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert Path("file").read_text() == "mine"
