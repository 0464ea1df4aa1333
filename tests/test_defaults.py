"""Defaults: those of the model, and which of several values has priority."""

import dataclasses
import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks.experiments.study import read_study
from configs import emoji_newcomer
from configs.suite import KEPT
from erase.config import model_file
from erase.config.fields import merge_fields, paths
from erase.config.schema import Config
from erase.methods import OWNERS
from erase.runs import EACH, RunConfig, configure, load_config, load_runs
from erase.runs.presets import PRESETS
from erase.training.variants import learnt_from
from flux_jax.errors import InputError
from flux_jax.lora import TEXT_QUERY_KEY
from recipes.emoji_flux.erasing import KNOWN, write_known
from recipes.emoji_flux.world import INVERSE

ROOT = Path(__file__).resolve().parents[1]
MODEL = {"path": "models/emoji-flux"}
STUDIES = "benchmarks/experiments/studies.py"
SHIPPED = json.loads((ROOT / "tests" / "shipped_configs.json").read_text())
# Raised by ml_collections when it loads a configuration's file.
LOADS_FILES = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def three_lines(concept: str, **more: Any) -> Config:
    return load_config(configure(**{"concept": concept, "model": MODEL} | more))


def differing(config: Config) -> dict[str, Any]:
    """Fields that differ from the program's defaults, without other methods' settings."""
    plain = dataclasses.asdict(RunConfig(concept=""))
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    plain = json.loads(json.dumps(plain))
    # EraseAnything's always count: the digests are older than the settings of each method.
    kept = {name for name in fields if OWNERS.get(name) in (None, "erase_anything", config.method)}
    told: dict[str, Any] = {}
    for name in sorted(kept - {"kind", "sense"}):
        if isinstance(fields.get(name), dict):
            for inner, value in fields[name].items():
                if value != plain[name][inner]:
                    told[f"{name}.{inner}"] = value
        elif name in fields and fields[name] != plain[name]:
            told[name] = fields[name]
    return told


def digest(file: str, preset: str = "", method: str = "erase_anything") -> str:
    given = runpy.run_path(str(ROOT / "configs" / f"{file}.py"))["get_config"](preset)
    given.method = method
    runs = {name: differing(config) for name, config in load_runs(given).items()}
    return hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.slow
@pytest.mark.parametrize("case", SHIPPED["digests"], ids=str)
def test_shipped_configurations_are_what_they_were(case: str):
    """The digests from before the model had defaults, when the committed results were computed."""
    assert digest(*case.split(":")) == SHIPPED["digests"][case]


def test_the_demo_is_what_it_was():
    given = runpy.run_path(str(ROOT / "configs" / "emoji_soccer_ball.py"))["get_config"]()
    assert differing(load_config(given)) == SHIPPED["emoji_soccer_ball"]


@pytest.mark.slow
def test_three_lines_have_what_a_shipped_configuration_has():
    cat, shipped = (
        three_lines("cat"),
        load_config(runpy.run_path("configs/emoji_cat.py")["get_config"]()),
    )
    # Chosen by hand there; its figures were computed with the paper's layers and a lower rate.
    words = {"prompts", "irrelevant", "concept_ablation", "mace", "uce"}
    assert cat.adapter.targets == (*TEXT_QUERY_KEY, "dual_blocks/attn/add_v_proj")
    assert (cat.lower.learning_rate, cat.upper.learning_rate) == (3e-3, 3e-3)
    slower = dataclasses.replace(
        cat,
        adapter=shipped.adapter,
        lower=dataclasses.replace(cat.lower, learning_rate=1e-3),
        upper=dataclasses.replace(cat.upper, learning_rate=1e-3),
    )
    for field in dataclasses.fields(cat):
        if field.name not in words:
            assert getattr(slower, field.name) == getattr(shipped, field.name), field.name
    for concept in ("sticker", "above"):
        runs = load_runs(runpy.run_path("configs/emoji_all.py")["get_config"]())
        assert three_lines(concept) == runs[concept]


@pytest.mark.parametrize("thing", KNOWN.of_kind("entity"), ids=lambda thing: thing.name)
def test_an_entity_s_words(thing: model_file.Thing):
    config = three_lines(thing.name)
    groups = {each.name: each.group for each in KNOWN.things}
    assert config.kind == "entity"
    assert config.synonyms == thing.words
    # Similar and dissimilar ones, and none that is the concept.
    assert not {*thing.names} & {*config.irrelevant}
    near = [word for word in config.irrelevant if groups[word] == thing.group]
    same = [each.name for each in KNOWN.of_kind("entity") if each.group == thing.group]
    at = same.index(thing.name)
    assert near == [*same[at + 1 :], *same[:at]][:4]
    assert len({groups[word] for word in config.irrelevant}) == 6
    assert len(config.irrelevant) == 9
    beside = [name for name in KEPT if config.prompts[-1].endswith(f" {name}")]
    assert beside
    assert groups[beside[0]] != thing.group
    shown = " ".join(config.upper.prompts)
    assert len(config.upper.prompts) == len(KEPT) - (thing.name in KEPT)
    assert f"a {thing.name}" not in shown or thing.name not in KEPT
    assert config.upper.pictures == len(KEPT)
    assert config.evaluation.judge == "models/emoji-flux/judge"


@pytest.mark.parametrize("thing", KNOWN.of_kind("relation"), ids=lambda thing: thing.name)
def test_no_relation_is_led_to_its_converse(thing: model_file.Thing):
    config = three_lines(thing.phrase)
    converse = KNOWN.find(INVERSE.get(thing.name, ""))
    words = {*config.irrelevant, *(config.upper.prompts)}
    assert thing.phrase not in words
    assert converse is None or converse.phrase not in words
    assert (config.kind, config.bank.shuffled, config.evaluation.strength) == ("relation", 0.0, 0.5)
    assert config.batch_size == 4
    # Another method's adapter is used at full strength.
    assert three_lines(thing.phrase, method="esd").evaluation.strength == 1.0


def test_twenty_newcomers_are_three_lines_each_and_nothing_was_chosen_on_them():
    runs = load_runs(emoji_newcomer.get_config())
    assert len(runs) == 20
    for config in runs.values():
        assert config == three_lines(config.concept)
        for file in ("configs/suite.py", "configs/__init__.py", STUDIES):
            assert f'"{config.concept}"' not in (ROOT / file).read_text()


@pytest.mark.slow
def test_what_entities_get_was_chosen_on_others():
    study = read_study(str(ROOT / STUDIES) + ":entities")
    asked = {fields["concept"] for fields in study.concepts.values()}
    assert len(asked) == 20
    assert not asked & set(emoji_newcomer.newcomers())
    runs = {
        variant: load_runs({EACH: {n: merge_fields(f, changes) for n, f in study.concepts.items()}})
        for variant, changes in study.variants.items()
    }
    # Their prompts and settings are those of the three-line configuration; the pictures differ.
    for config in runs["values too, 3e-3"].values():
        assert learnt_from(config) == dataclasses.replace(
            learnt_from(three_lines(config.concept)), bank=config.bank
        )
        assert config.evaluation.seed == 2_000_000

    def told(variant: str) -> tuple[int, float, float, int, int]:
        one = next(iter(runs[variant].values()))
        rates = one.lower.learning_rate, one.upper.learning_rate
        return len(one.adapter.targets), *rates, one.iterations, one.batch_size

    assert {variant: told(variant) for variant in runs} == {
        "queries and keys, 1e-3": (2, 1e-3, 1e-3, 300, 1),
        "queries and keys, 1e-3, 600 iterations": (2, 1e-3, 1e-3, 600, 1),
        "values too, 1e-3": (3, 1e-3, 1e-3, 300, 1),
        "values too, 2e-3": (3, 2e-3, 2e-3, 300, 1),
        "values too, 3e-3": (3, 3e-3, 3e-3, 300, 1),
        "values too, 3e-3, batches of 4": (3, 3e-3, 3e-3, 300, 4),
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_counts_more_than_the_model_s_method_and_leaves_its_place(preset: str):
    for concept, method in (
        ("guitar", "erase_anything"),
        ("above", "erase_anything"),
        ("cat", "esd"),
    ):
        config = load_config(configure(preset, concept=concept, model=MODEL, method=method))
        plain = load_config(
            configure(
                preset,
                concept="x",
                irrelevant=("a", "b", "c"),
                model={"path": "nowhere"},
                method=method,
            )
        )
        assert (config.height, config.width) == (64, 64)
        assert config.evaluation.judge == "models/emoji-flux/judge"
        assert config.evaluation.strength == 1.0
        for part in ("lower", "upper", "bank", "adapter", "iterations", "batch_size"):
            assert getattr(config, part) == getattr(plain, part), part
        assert config.irrelevant


def on_the_command_line(tmp_path: Path, text: str, *overrides: str) -> dict[str, Config]:
    """Load a configuration's file with overrides."""
    path = tmp_path / "config.py"
    path.write_text(f"from erase.runs import configure\ndef get_config():\n    return {text}\n")
    arguments = ["program", f"--config={path}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    changed = config_flags.get_override_values(values["config"])
    given: dict[str, Any] = {}
    for name in changed:
        value: Any = values.config
        for each in name.split("."):
            value = getattr(value, each)
        given[name] = value
    return load_runs(values.config, given)


THREE = "configure(concept='guitar', model={'path': 'models/emoji-flux'})"


@LOADS_FILES
def test_overrides_lead_to_the_defaults_of_what_they_name(tmp_path: Path):
    def of(*overrides: str, text: str = THREE) -> Config:
        return on_the_command_line(tmp_path, text, *overrides)[""]

    assert of() == three_lines("guitar")
    assert of("--config.concept=above") == three_lines("above")
    assert of("--config.model.path=nowhere/FLUX.1-dev").height == 512
    assert (
        of(text="configure(concept='cat', model={'path': 'nowhere/FLUX.1-dev'})").text_tokens == 256
    )
    moved = of(
        "--config.model.path=models/emoji-flux",
        text="configure(concept='cat', model={'path': 'x'})",
    )
    assert moved == three_lines("cat")
    # An explicit value has priority, even if it is the program's default.
    said = of("--config.height=512", "--config.upper.lora=0.1", "--config.bank.shuffled=1.0")
    assert (said.height, said.upper.lora, said.bank.shuffled) == (512, 0.1, 1.0)
    assert (said.width, said.upper.pictures) == (64, 32)
    assert of("--config.sense=2").sense == "2"
    assert (
        of("--config.method=uce")
        .method_settings(type(load_config(configure(concept="cat", model=MODEL)).uce))
        .ridge
        == 50.0
    )


def test_what_a_file_says_counts_more_than_the_model():
    config = three_lines("cat", height=512, lower={"attn": 1.0}, synonyms=("dog",), kind="entity")
    assert (config.height, config.width, config.lower.attn) == (512, 64, 1.0)
    assert config.synonyms == ("dog",)
    # The user's name of the concept is no irrelevant word.
    assert "dog" not in config.irrelevant
    assert "a photo of a dog" not in config.upper.prompts
    assert three_lines("cat", irrelevant=("kitty", "sun", "key")).synonyms == ("feline", "pussycat")
    assert three_lines("cat", upper={"folder": "mine"}).upper.prompts == ()
    assert three_lines("cat", upper={"without_concept": True}).upper.prompts == ()
    given: Any = configure(concept="cat", model=MODEL)
    given.height = 512
    given.evaluation.judge = None
    config = load_config(given)
    assert (config.height, config.width, config.evaluation.judge) == (512, 64, None)


def test_runs_of_several_kinds_share_what_the_strongest_kind_needs():
    each = {name: {"concept": name} for name in ("cat", "sticker", "above")}
    runs = load_runs(configure(model=MODEL, each=each))
    assert {config.batch_size for config in runs.values()} == {4}
    strengths = {name: config.evaluation.strength for name, config in runs.items()}
    assert strengths == {"cat": 1.0, "sticker": 1.0, "above": 0.5}
    alone = load_runs(configure(model=MODEL, each={"cat": {"concept": "cat"}}))
    assert alone["cat"] == three_lines("cat")


@pytest.mark.parametrize(
    ("concept", "known_as"),
    [("bunny", "rabbit"), ("Cat", "cat"), ("back to back", "back to back with")],
)
def test_another_name_is_told(concept: str, known_as: str):
    with pytest.raises(InputError, match=f"'{concept}' is what the model knows as '{known_as}'"):
        three_lines(concept)
    assert three_lines(concept, prompts=("a {}",)).prompts == ("a {}",)


SIZES = {"joint_attention_dim": 4096, "in_channels": 64, "num_layers": 8}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (SIZES | {"guidance_embeds": True}, (512, 256, 28)),
        (SIZES | {"guidance_embeds": False}, (512, 256, 4)),
        (SIZES | {"in_channels": 16}, (512, None, 28)),
    ],
    ids=["dev", "schnell", "another"],
)
def test_a_flux_is_known_by_its_folder(sizes: dict, expected: tuple, tmp_path: Path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(sizes))
    model, irrelevant = {"path": str(tmp_path)}, ("sun", "key", "tree")
    config = load_config(configure(concept="guitar", irrelevant=irrelevant, model=model))
    assert (config.height, config.text_tokens, config.steps) == expected


def test_a_flux_has_the_paper_s_values():
    model = {"path": "black-forest-labs/FLUX.1-dev"}
    config = load_config(configure(concept="guitar", model=model))
    paper = load_config(configure("paper", concept="guitar", model=model))
    assert dataclasses.replace(config, adapter=paper.adapter) == paper
    assert config.model.dtype == "bfloat16"
    assert all("{}" in prompt for prompt in config.prompts)
    assert len(config.irrelevant) >= 3
    assert config.evaluation.others == config.irrelevant[:3]
    for part in ({"part_of_speech": "adjective"}, {"kind": "style"}, {"kind": "relation"}):
        other = load_config(configure(concept="nude", model=model, **part))
        assert not {*other.prompts} & {*config.prompts}
        assert not {*other.irrelevant} & {*config.irrelevant}
    # A larger batch exceeds a GPU's memory.
    assert (
        load_config(configure(concept="x", model=model, method="meta_unlearning")).batch_size == 1
    )


def test_the_shipped_file_is_the_recipe_s(tmp_path: Path):
    write_known(tmp_path)
    made = (tmp_path / model_file.FILE).read_text()
    assert made == (ROOT / "models" / "emoji-flux" / model_file.FILE).read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "erase.json is not JSON"),
        ('{"thinks": []}', "erase.json: thinks: Extra inputs"),
        ('{"things": [{"name": "", "kind": "entity"}]}', r"things\.0\.name: String should have"),
        ('{"kinds": {"entity": {"prompts": ["a cat"], "templates": []}}}', r"entity\.prompts\.0: "),
    ],
)
def test_a_damaged_file_is_named(text: str, told: str, tmp_path: Path):
    (tmp_path / model_file.FILE).write_text(text)
    with pytest.raises(InputError, match=told) as caught:
        load_config(configure(concept="cat", model={"path": str(tmp_path)}))
    assert len(str(caught.value).splitlines()) == 1


def test_the_file_lies_beside_a_single_file_of_weights(tmp_path: Path):
    write_known(tmp_path)
    (tmp_path / "flux1-small.safetensors").write_bytes(b"")
    model = {"path": str(tmp_path / "flux1-small.safetensors")}
    config = load_config(configure(concept="guitar", model=model))
    assert (config.height, config.evaluation.judge) == (64, str(tmp_path / "judge"))


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, "\udfff"])
def test_what_is_no_path_has_no_defaults(path: str):
    given = configure(concept="cat", irrelevant=("a", "b", "c"), iterations=0, model={"path": path})
    with pytest.raises(InputError, match="iterations = 0 must be at least 1") as caught:
        load_config(given)
    assert len(str(caught.value)) < 1000


def test_a_field_that_the_model_s_file_has_wrong_is_named(tmp_path: Path):
    (tmp_path / model_file.FILE).write_text('{"place": {"height": 0}, "method": {"lowr": 1}}')
    with pytest.raises(InputError, match=r"erase\.json: height = 0 must be at least 1") as caught:
        load_config(configure(concept="cat", model={"path": str(tmp_path)}))
    assert "lowr is not a field" in str(caught.value)


def test_what_a_folder_keeps_is_taken_as_it_is():
    fields = {"concept": "cat", "irrelevant": ["sun", "key", "tree"]}
    assert load_config(fields).height == 512
    whole = three_lines("cat")
    assert load_config(json.loads(json.dumps(dataclasses.asdict(whole)))) == whole
    assert {"kind", "sense"} <= set(paths(Config))
