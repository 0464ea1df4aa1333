"""Plans of the paper's tables: numbers of adapters and pictures, GPU hours, and memory."""

from dataclasses import replace

import pytest

from configs import nudity
from configs.flux import concepts, cost, plan
from configs.flux.tables import TABLES, Part
from erase.config.schema import Config
from erase.data.words.irrelevant import listed
from erase.methods import method_of
from erase.methods.planning import flops
from erase.model.open import open_model
from erase.runs import load_runs
from erase.training import memory_plan
from flux_jax.pipeline import Pipeline

# A forward pass of a picture at 512 x 512 with 256 and 512 text tokens, in float64 from the sizes
# of FLUX.1 [dev]: 57 blocks of 12 C² weights a token, attention to all tokens, and the rest.
C, BLOCKS, IMAGE = 3072, 57, 1024


def dense_and_attention(text: int, blocks: int = BLOCKS) -> float:
    tokens = float(IMAGE + text)
    return blocks * (2 * tokens * 12 * C**2 + 4 * tokens**2 * C)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return open_model(nudity_by("erase_anything"), unread=True)


@pytest.fixture(scope="module")
def every() -> dict[str, list[Part]]:
    return {number: make() for number, make in TABLES.items()}


def nudity_by(method: str, **changes: object) -> Config:
    return load_runs(nudity.get_config(), {"method": method, **changes})[""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "adapters", "pictures"),
    [
        ("2", 8, 9 * 14_703),
        ("3", 2 * 30, 2 * 30 * 3 * 50),
        # Five templates: five seeds of the person, one of each of the fifty who are kept.
        ("4", 6 * 50, 6 * 50 * 5 * (5 + 50)),
    ],
)
def test_adapters_and_pictures_are_counted(
    number: str, adapters: int, pictures: int, every: dict[str, list[Part]]
):
    parts = every[number]
    assert sum(len(part.runs) for part in parts) == adapters
    assert sum(part.pictures for part in parts) == pictures


def test_an_iteration_of_eraseanything_is_the_plans(pipe: Pipeline):
    config = nudity_by("erase_anything")
    config = replace(config, bank=replace(config.bank, teacher="computed"))
    passes = cost.passes_of(config, pipe)
    assert cost.ITERATION["erase_anything"](config, passes) == flops.iteration(
        config, pipe.transformer.config, IMAGE, 256
    )
    # 1,000 iterations of 0.33 s, and 32 trajectories and 8 pictures.
    share = dense_and_attention(256) / dense_and_attention(512)
    expected = 330.3 + 40 * 1.11 * share
    assert cost.training_seconds(config, pipe) == pytest.approx(expected, rel=2e-3)


def test_losses_that_are_left_out_cost_nothing(pipe: Pipeline):
    full = nudity_by("erase_anything")
    passes = cost.passes_of(full, pipe)

    def operations(**weights: float) -> int:
        overrides = {path.replace("_", "."): value for path, value in weights.items()}
        return cost.ITERATION["erase_anything"](nudity_by("erase_anything", **overrides), passes)

    all_of_it = operations()
    without_lora = all_of_it - operations(upper_lora=0.0)
    assert without_lora == passes.update
    # A gradient through the dual-stream blocks, and passes for a synonym and three other words.
    dual = passes.dual
    assert all_of_it - operations(upper_rsc=0.0) == 5 * dual.forward + dual.backward
    # L_attn alone needs neither the single-stream blocks nor the frozen model.
    only = operations(lower_esd=0.0, upper_lora=0.0, upper_rsc=0.0)
    assert only == dual.forward + dual.backward
    # Its second attention to the concept.
    assert all_of_it - operations(lower_attn=0.0) == 3 * 4 * (IMAGE + 256) ** 2 * C * 19


@pytest.mark.parametrize(
    ("method", "changes", "forward", "backward"),
    [
        ("concept_ablation", {"concept_ablation.target": "model"}, 2, 1),
        ("concept_ablation", {"concept_ablation.target": "noise"}, 1, 1),
        ("esd", {"esd.trajectories": "teacher"}, 3, 1),
        # Half of 28 steps are 13.5 on average.
        ("esd", {"esd.trajectories": "student"}, 16.5, 1),
        # L_esd, L_keep before and after the inner steps, and these.
        (
            "meta_unlearning",
            {"meta_unlearning.trajectories": "teacher", "meta_unlearning.inner_steps": 2},
            7,
            5,
        ),
        ("eap", {"eap.trajectories": "teacher"}, 7, 4),
        ("uce", {}, 0, 0),
    ],
)
def test_iterations_of_other_methods(
    method: str, changes: dict, forward: float, backward: float, pipe: Pipeline
):
    config = nudity_by(method, **changes)
    passes = cost.passes_of(config, pipe)
    expected = forward * passes.plain.forward + backward * passes.plain.backward
    assert cost.ITERATION[method](config, passes) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_every_method_that_is_trained_in_a_table_has_a_cost(every: dict[str, list[Part]]):
    methods = {c.method for parts in every.values() for p in parts for c in p.runs.values()}
    assert methods == set(cost.ITERATION)


def test_what_is_drawn_before_training(pipe: Pipeline):
    del pipe
    assert cost.prepared(nudity_by("erase_anything")) == 32 + 8
    assert cost.prepared(nudity_by("erase_anything", **{"upper.lora": 0.0})) == 32
    uce = nudity_by("uce")
    # The concept, its guide, and nine other words; nothing is sampled.
    assert cost.prepared(uce) == 2 + len(uce.irrelevant)
    assert cost.iterations(uce) == 0


def test_hours_are_those_of_all_runs(pipe: Pipeline):
    runs = {slug: load_runs(concepts.get_config(slug))[""] for slug in ("cat", "dog")}
    row = plan.hours(Part("x", runs, 7200))
    seconds = sum(cost.training_seconds(config, pipe) for config in runs.values())
    assert (row.adapters, row.iterations, row.pictures) == (2, 1000, 7200)
    assert row.training == pytest.approx(seconds / 3600)
    assert row.drawing == pytest.approx(2 * 1.11)
    base = plan.hours(Part("base", {}, 100))
    assert (base.adapters, base.training) == (0, 0.0)
    both = plan.total([row, base])
    assert (both.adapters, both.pictures) == (2, 7300)
    assert both.training == row.training


@pytest.mark.slow
def test_kinds_of_runs_are_few_and_have_the_largest_bank(every: dict[str, list[Part]]):
    chosen = plan.kinds(every["3"])
    assert list(chosen) == ["CA (entity) and 2 more", "EraseAnything (entity) and 2 more"]
    config = chosen["EraseAnything (entity) and 2 more"]
    forms = [
        method_of(c).needs(c, listed(c), None).forms
        for part in every["3"][3:]
        for c in part.runs.values()
    ]
    assert method_of(config).needs(config, listed(config), None).forms == max(forms)
    assert len(plan.kinds(every["4"])) == 6


@pytest.mark.slow
def test_a_plan_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    need = memory_plan.Need(10**9, 2 * 10**9, 10**6, 10**7)
    programs = [("denoising", need), ("lower update", replace(need, temporaries=4 * 10**9))]
    monkeypatch.setattr(memory_plan, "plan", lambda configs, pipe: iter(programs))
    monkeypatch.setattr(memory_plan, "training", lambda config, runs, pipe: iter(programs[1:]))
    monkeypatch.setattr(memory_plan, "memory", lambda devices: 10**9)
    assert not plan.show("3")
    printed = capsys.readouterr()
    lines = [" ".join(line.replace("│", " ").split()) for line in printed.out.splitlines()]
    assert "total 60 3.40 9,000 2.8 6.2" in lines
    assert any(
        line.startswith("EraseAnything (relationship) 10 1000 1.02 1,500 0.5 1.5") for line in lines
    )
    assert sum("does not fit" in line for line in lines) == 1
    assert any(line.startswith("At most 5.01 of 1.00 GB") for line in lines)
    assert printed.err.count("compiled: ") == 3
    # Once for all rows.
    assert printed.err.count("denoising") == 1
    assert max(len(line) for line in printed.out.splitlines()) <= 80
