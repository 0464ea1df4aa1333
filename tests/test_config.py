"""Configurations: defaults, files, overrides, and messages about invalid values."""

import dataclasses
import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

from erase.config.fields import paths, unknown
from erase.config.schema import Config, Model
from erase.methods import METHODS, esd, uce
from erase.runs import RunConfig, configure, load_config, load_runs
from erase.runs.presets import AUTHORS, PRESETS
from flux_jax.errors import InputError
from flux_jax.lora import TEXT_QUERY_KEY

# ml_collections loads files this way; the warning is not ours to fix.
LOADS_FILES = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
USABLE: dict[str, Any] = {
    "concept": "cat",
    "synonyms": ("kitty",),
    "irrelevant": ("dog", "sun", "tree"),
    # A model without defaults.
    "model": {"path": "nowhere"},
}
PLAIN = RunConfig(**USABLE | {"model": Model("nowhere")})


def test_defaults_are_the_methods():
    config = load_config(configure(**USABLE))
    assert config == PLAIN
    assert (config.lower.learning_rate, config.upper.learning_rate) == (1e-3, 5e-4)
    assert (config.lower.eta, config.lower.erase_to) == (1.0, "")
    assert (config.upper.temperature, config.upper.negatives) == (0.07, 3)
    assert (config.iterations, config.steps, config.batch_size) == (1000, 28, 1)
    assert config.bank.shuffled == 1.0
    assert config.adapter.targets == (
        "dual_blocks/attn/add_q_proj",
        "dual_blocks/attn/add_k_proj",
    )


def parsed(tmp_path: Path, *overrides: str) -> Config:
    """Load a configuration file with overrides from a command line."""
    path = tmp_path / "config.py"
    path.write_text(
        "from erase.runs import configure\n"
        "def get_config():\n"
        "    return configure(concept='cat', lower={'attn': 5}, upper={'rsc': 0},\n"
        "                     model={'path': 'nowhere'})\n"
    )
    arguments = ["program", f"--config={path}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    return load_config(values.config)


@LOADS_FILES
def test_overrides_reach_every_kind_of_field(tmp_path: Path):
    config = parsed(
        tmp_path,
        "--config.lower.attn=2.5",
        "--config.lower.esd=2",
        "--config.iterations=7",
        "--config.adapter.alpha=0.5",
        "--config.text_tokens=32",
        "--config.model.dtype=bfloat16",
        "--config.evaluation.judge=some/where",
        "--config.synonyms=('kitty', 'feline')",
        "--config.height",
        "64",
    )
    assert (config.lower.attn, config.lower.esd, config.iterations) == (2.5, 2.0, 7)
    assert (config.adapter.alpha, config.text_tokens, config.model.dtype) == (0.5, 32, "bfloat16")
    assert config.evaluation.judge == "some/where"
    assert (config.synonyms, config.height) == (("kitty", "feline"), 64)
    assert isinstance(config.lower.esd, float)


@LOADS_FILES
def test_without_overrides_absent_values_stay_absent(tmp_path: Path):
    config = parsed(tmp_path)
    assert config.adapter.alpha is None
    assert config.evaluation.judge is None
    assert config.lower.attn == 5.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conept": "cat"}, r"conept is not a field .* did you mean concept"),
        ({"lowr": {"esd": 1}}, r"lowr is not a field .* did you mean lower"),
        ({"lower": {"esdd": 1}}, r"lower\.esdd is not a field .* did you mean lower\.esd"),
        ({"attn": 2}, r"attn is not a field .* lower\.attn"),
        ({"qqq": 2}, r"qqq is not a field .* choose from concept"),
        ({"concept": "  "}, r"concept = '  ' is empty"),
        ({"concept": 5}, r"concept = 5 must be text"),
        ({"prompts": ()}, r"prompts = \(\) is empty"),
        ({"prompts": "a {}"}, r"prompts = 'a \{\}' must be a tuple of texts"),
        ({"prompts": ("a {}", "a dog")}, r"prompts: 'a dog' does not hold the concept 'cat'"),
        ({"prompts": ("a {}", "a bob{}")}, r"prompts: 'a bob\{\}' has .* within another word"),
        ({"irrelevant": ("dog", "sun", "kitties")}, r"irrelevant: 'kitties' is the concept or a"),
        ({"synonyms": ("-",)}, r"synonyms = '-' is empty"),
        ({"synonyms": ("kitty", "")}, r"synonyms = .* none of them empty"),
        ({"synonyms": ("Cat",)}, r"synonyms = \('Cat',\) holds the concept itself"),
        ({"part_of_speech": "adverb"}, r"part_of_speech = 'adverb' must be noun or adjective"),
        ({"irrelevant": ("dog", "dog", "sun")}, r"irrelevant = .* fewer than upper\.negatives = 3"),
        ({"irrelevant": ("dog", "sun", "KITTY")}, r"'KITTY' is the concept or a synonym"),
        ({"language_model": 1}, r"language_model = 1 must be True or False"),
        ({"model": {"dtype": "float16"}}, r"model.dtype = 'float16' must be float32 or bfloat16"),
        ({"upper": {"lora_target": "x"}}, r"upper\.lora_target = 'x' must be noise or base"),
        ({"iterations": 0}, r"iterations = 0 must be at least 1"),
        ({"iterations": 2.5}, r"iterations = 2\.5 must be a whole number"),
        ({"batch_size": True}, r"batch_size = True must be a whole number"),
        ({"adapter": {"rank": 0}}, r"adapter\.rank = 0 must be at least 1"),
        ({"adapter": {"targets": ()}}, r"adapter\.targets = \(\) is empty"),
        ({"lower": {"esd": -1}}, r"lower\.esd = -1\.0 must be at least 0"),
        ({"lower": {"esd": 0, "attn": 0}}, r"lower\.esd = lower\.attn = 0"),
        ({"lower": {"eta": float("nan")}}, r"lower\.eta = nan must be a finite number"),
        ({"lower": {"learning_rate": 0}}, r"lower\.learning_rate = 0\.0 must be above 0"),
        ({"lower": 3}, r"lower = 3 must be a dictionary"),
        ({"upper": {"temperature": 0.0}}, r"upper\.temperature = 0\.0 must be above 0"),
        (
            {"upper": {"without_concept": True, "prompts": ("a dog",)}},
            r"upper\.prompts: 'a dog' does not hold the concept 'cat'",
        ),
        (
            {"upper": {"folder": "mine", "prompts": ("a cat",)}},
            r"upper\.folder = 'mine' has its own captions",
        ),
        ({"upper": {"early": 1.5}}, r"upper\.early = 1\.5 must be at most 1"),
        ({"upper": {"negatives": 4}}, r"fewer than upper\.negatives = 4"),
        ({"bank": {"shuffled": 2}}, r"bank\.shuffled = 2\.0 must be at most 1"),
        ({"evaluation": {"templates": ("a cat",)}}, r"evaluation\.templates: 'a cat' needs"),
        ({"evaluation": {"templates": ()}}, r"evaluation\.templates = \(\) is empty"),
        ({"evaluation": {"pictures": -1}}, r"evaluation\.pictures = -1 must be at least 0"),
    ],
)
def test_bad_values_are_named(changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        load_config(configure(**{**USABLE, **changes}))


def test_everything_wrong_is_told_at_once():
    with pytest.raises(InputError) as caught:
        load_config(configure(lower={"eta": -1}, iterations=0, modle="x"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for word in ("concept is missing", "lower.eta", "iterations", "modle"):
        assert any(word in line for line in lines)


@pytest.mark.parametrize("given", [None, 5, "text"])
def test_what_is_no_configuration_is_refused(given: object):
    with pytest.raises(InputError, match="config"):
        load_config(given)


def test_every_field_is_found_under_its_own_name():
    assert "did you mean upper.learning_rate" in unknown(RunConfig, "upper.learning_rat")
    for part in dataclasses.fields(RunConfig):
        assert f"did you mean {part.name}" in unknown(RunConfig, f"{part.name}x")


def test_presets_set_every_value_of_the_method():
    method = {"lower", "upper", "adapter"}
    left = {"upper.folder", "adapter.targets"}
    wanted = {path for path in paths(RunConfig) if path.partition(".")[0] in method} - method - left
    wanted |= {"iterations", "batch_size", "steps", "guidance", "alternation", "bank.shuffled"}
    wanted.add("evaluation.strength")
    for preset in PRESETS.values():
        own = {name: value for name, value in preset.items() if name != "by_method"}
        named = {f"{a}.{b}" for a in own if isinstance(own[a], dict) for b in own[a]}
        assert wanted == named | {name for name in own if not isinstance(own[name], dict)}
    with pytest.raises(InputError, match=r"preset = 'papr' is unknown; did you mean paper\?"):
        configure("papr")


AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "concept_ablation": {
        "learning_rate": 1.6e-5,
        "weight_decay": 0.01,
        "clip": 1.0,
        "target": "model",
        "prior": 0.0,
    },
    "esd": {
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "clip": None,
        "eta": 1.0,
        "stand_in": None,
        "erase_to": "",
        "trajectories": "student",
        "guidance": 1.0,
    },
    "uce": {
        "templates": ("{}",),
        "synonyms": False,
        "guide": "",
        "ridge": 0.5,
        "preserve": 1.0,
    },
    "mace": {"learning_rate": 1e-5, "weight_decay": 0.0, "clip": None},
    "eap": {
        "learning_rate": 1e-5,
        "weight_decay": 0.0,
        "clip": None,
        "logits_rate": 1e-2,
        "temperature": 2.0,
        "preserve": 1.0,
        "most": 100,
        "eta": 1.0,
        "stand_in": None,
        "trajectories": "student",
        "guidance": None,
    },
    "meta_unlearning": {
        "learning_rate": 1e-5,
        "weight_decay": 1e-4,
        "clip": 1.0,
        "eta": 3.0,
        "keep": 0.1,
        "meta": 0.1,
        "inner_rate": 1e-5,
    },
    "gem": {
        "learning_rate": 1e-3,
        "clip": None,
        "eta": 1.0,
        "gamma": 100.0,
        "early": 10,
        "points": 6,
    },
    "eraseflow": {
        "learning_rate": 3e-4,
        "weight_decay": 1e-4,
        "clip": None,
        "noise": 0.7,
        "log_reward": 1000.0,
        "flow_rate": 5e-4,
    },
}


@pytest.mark.parametrize("preset", ["paper", "native"])
def test_no_other_method_shuffles_words_or_misses_its_authors_values(preset: str):
    assert load_config(configure(preset, **USABLE)).bank.shuffled == 1.0
    for name, (values, native) in AUTHORS.items():
        config = load_config(configure(preset, **USABLE, method=name))
        assert config.bank.shuffled == 0.0
        assert config.adapter.targets == (native if preset == "native" else TEXT_QUERY_KEY)
        for field, value in values.get(name, {}).items():
            assert getattr(getattr(config, name), field) == value
            # A value that is the method's default is declared only there, except for words.
            settings = METHODS[name].fields.settings
            assert settings
            assert value != getattr(settings(), field) or field in ("stand_in", "guide")
        for field, value in AS_PUBLISHED[name].items():
            assert getattr(getattr(config, name), field) == value


def test_changes_go_on_top_of_a_preset():
    config = load_config(configure("official", **USABLE, lower={"attn": 2.0}))
    assert (config.lower.attn, config.lower.attn_form) == (2.0, "released")


EACH = {
    "black_cat": {"concept": "cat", "synonyms": ("kitty",)},
    "dog": {"concept": "dog", "synonyms": ("hound",), "seed": 3, "lower": {"stand_in": ""}},
}
OTHERS = ("sun", "tree", "key")


def test_runs_that_train_at_once_differ_in_what_is_their_own():
    runs = load_runs(configure(irrelevant=OTHERS, iterations=7, each=EACH))
    assert list(runs) == ["black_cat", "dog"]
    assert [config.concept for config in runs.values()] == ["cat", "dog"]
    assert [config.iterations for config in runs.values()] == [7, 7]
    assert [config.lower.stand_in for config in runs.values()] == [None, ""]
    assert list(load_runs(configure(**USABLE))) == [""]


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ({}, r"each = \{\} is empty"),
        ({"dog": 3}, "each must hold a dictionary"),
        ({**EACH, "a/b": EACH["dog"]}, "each.a/b: a run's name is also its"),
        ({**EACH, "x": {"concept": ""}}, "each.x: concept = '' is empty"),
        ({**EACH, "x": {"concept": "cat", "lowr": 1}}, "each.x: lowr is not a field"),
        (
            {**EACH, "x": {**EACH["dog"], "lower": {"attn": 2.0}}},
            r"each\.x\.lower\.attn = 2\.0 and each\.black_cat\.lower\.attn = 1\.0: it must be",
        ),
        (
            {**EACH, "x": {**EACH["dog"], "model": {"path": "m"}}},
            "each.x.model.path = 'm' and each.black_cat",
        ),
    ],
)
def test_runs_that_cannot_train_at_once_are_refused(each: dict, message: str):
    with pytest.raises(InputError, match=message):
        load_runs(configure(irrelevant=OTHERS, model=USABLE["model"], each=each))


BY_METHOD = {
    "esd": {"iterations": 20, "adapter": {"rank": 2}, "esd": {"eta": 2.0}},
    "uce": {"uce": {"guide": "dog"}},
}


def test_a_method_brings_its_own_values():
    def loaded(overrides: dict[str, Any] | None = None, **changes: Any) -> Config:
        given = configure(**USABLE, **{"by_method": BY_METHOD} | changes)
        for path, value in (overrides or {}).items():
            part, _, name = path.rpartition(".")
            setattr(attrgetter(part)(given) if part else given, name, value)
        return load_runs(given, overrides)[""]

    assert loaded() == PLAIN
    esd_ = loaded(method="esd")
    assert (esd_.iterations, esd_.adapter.rank, esd_.method_settings(esd.Settings).eta) == (
        20,
        2,
        2.0,
    )
    assert esd_.method_settings(uce.Settings).guide == ""
    # The command line has priority.
    changed = loaded({"method": "esd", "iterations": 7, "esd.eta": 3.0})
    assert (changed.iterations, changed.adapter.rank) == (7, 2)
    assert changed.method_settings(esd.Settings).eta == 3.0
    # The config.json of a run is read back unchanged.
    assert load_config(json.loads(json.dumps(dataclasses.asdict(esd_)))) == esd_


@pytest.mark.parametrize(
    ("changes", "overrides", "told"),
    [
        ({"method": "ESD"}, {}, "method = 'ESD' must be erase_anything or"),
        ({"esd": {"etas": 1}}, {}, r"esd\.etas is not a field .*did you mean esd\.eta"),
        ({"by_method": {"edd": {}}}, {}, r"by_method\.edd is not a method; did you mean esd"),
        ({"by_method": {"esd": 3}}, {}, "by_method must hold a dictionary"),
        ({"method": "esd"}, {"lower.attn": 1.0}, r"lower\.attn is a setting of another method"),
        ({}, {"esd.eta": 1.0}, "or choose --config.method=esd"),
        ({"method": "uce", "uce": {"templates": ()}}, {}, r"uce\.templates = \(\) is empty"),
        ({"method": "uce", "uce": {"guide": "Cat"}}, {}, "uce.guide = 'Cat' is the concept"),
        ({"method": "eap", "eap": {"vocabulary": "no.txt"}}, {}, "eap.vocabulary = .* not a file"),
        (
            {"method": "mace", "mace": {"stand_in": "kitty"}},
            {},
            "mace.stand_in = .* is the concept",
        ),
        (
            {"method": "concept_ablation", "concept_ablation": {"anchor": "cat"}},
            {},
            "concept_ablation.anchor = .* is the concept",
        ),
        (
            {"method": "concept_ablation", "irrelevant": (), "language_model": True},
            {},
            "name a word to replace the concept",
        ),
        (
            {"method": "meta_unlearning", "irrelevant": (), "language_model": True},
            {},
            "Meta-Unlearning needs related",
        ),
    ],
)
def test_what_a_method_cannot_use_is_told(changes: Any, overrides: Any, told: str):
    with pytest.raises(InputError, match=told):
        load_runs(configure(**USABLE | changes), overrides)
