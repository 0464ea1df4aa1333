"""Velocities of the frozen model that are computed once: updates that look them up are the same.

Axis letters: R trajectories, D steps, W one more than the anchors.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.small import (
    BANK,
    CONFIG,
    CONTEXT,
    KEY,
    LORA,
    MODEL,
    PARAMS,
    D,
    F,
    R,
    V,
    alone,
    fresh,
    make_bank,
)

from erase.config.schema import BankConfig, Config, EarlyStop
from erase.data.bank import Bank, stack_banks
from erase.data.plan import Needs, stores_velocities
from erase.data.velocities import noise_steps
from erase.data.words.irrelevant import listed
from erase.methods import eap, erase_anything, esd, meta_unlearning, method_of
from erase.methods.parts.contrast import early_steps, word_features
from erase.methods.parts.forward import RunInputs
from erase.methods.parts.levels import both_losses, lower_losses, upper_losses
from erase.methods.planning.configured import plan_of, shapes_of
from erase.methods.settings.erase_anything import Lower, Upper
from erase.runs import load_config
from erase.training import make_adapters
from flux_jax import load
from flux_jax.errors import InputError
from flux_jax.programs import Conditioning, Denoiser


def with_velocities(bank: Bank, guidance: float = CONTEXT.guidance) -> Bank:
    """The bank with the frozen model's velocities at all points, in one batch."""
    rows, steps = (each.ravel() for each in np.indices((R, D)))
    sentences = np.asarray(bank.trajectory_sentences)[rows]
    one, others = bank.sentences[sentences, :1], bank.anchors[sentences]
    prompts = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), one, others)
    width = prompts.text.shape[1]
    merged = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), prompts)
    model = Denoiser(MODEL, PARAMS, bank.image_ids, guidance)
    found = jax.jit(Denoiser.velocity)(
        model,
        jnp.repeat(bank.trajectories[rows, steps], width, axis=0),
        Conditioning(merged.text, merged.pooled),
        jnp.repeat(bank.times[steps], width),
    )
    return bank.replace(velocities=found.reshape(R, D, width, *found.shape[1:]))


def error(found: Any, wanted: Any) -> float:
    """Largest relative error of a tree's leaves, by norm."""
    pairs = zip(*map(jax.tree.leaves, (found, wanted)), strict=True)
    return max(float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1)) for a, b in pairs)


def evaluated(losses: Any, settings: Any, banks: list[Bank], of: Any) -> list[Any]:
    """A method's loss for each bank; with `jax.grad`, its gradient."""
    context = replace(CONTEXT, settings=settings)

    @jax.jit
    def at(bank: Bank) -> Any:
        return of(lambda lora: losses(lora, RunInputs.of(context, PARAMS, bank), KEY)[0])(LORA)

    return [jax.device_get(at(bank)) for bank in banks]


def check(
    losses: Any, settings: Any, bank: Bank, of: Any, guidance: float = CONTEXT.guidance
) -> None:
    """The loss is the same with the velocities at the right points, and not at other points."""
    stored = with_velocities(bank, guidance)
    rolled = stored.replace(velocities=jnp.roll(stored.velocities, 1, axis=1))
    computed, same, wrong = evaluated(losses, settings, [bank, stored, rolled], of)
    assert error(same, computed) < 1e-5
    assert error(wrong, computed) > 1e-3


def test_an_update_looks_up_what_it_would_compute():
    settings = replace(
        erase_anything.Levels.of(CONFIG), lower=Lower(attn=0.0), upper=Upper(lora=0.0, rsc=0.0)
    )
    check(erase_anything.lower_losses, settings, make_bank(anchors=2), jax.grad)


@pytest.mark.slow
def test_other_methods_look_it_up_at_their_own_guidance():
    """L_esd of all three, which sample with the same key."""
    common: dict[str, Any] = {"trajectories": "teacher", "guidance": 2.0}

    def itself(loss: Any) -> Any:
        return loss

    def of_eap(*given: Any) -> Any:
        _, metrics = eap.losses(*given, jnp.zeros(1 + eap.Settings.most))
        return metrics["esd"], metrics

    check(esd.losses, esd.Settings(**common), BANK, itself, 2.0)
    (wanted,) = evaluated(esd.losses, esd.Settings(**common), [BANK], itself)
    stored = [with_velocities(BANK, 2.0)]
    meta = meta_unlearning.Settings(**common)
    assert error(evaluated(meta_unlearning.erasing, meta, stored, itself), [wanted]) < 1e-5
    assert error(evaluated(of_eap, eap.Settings(**common), stored, itself), [wanted]) < 1e-5


def test_on_the_adapted_models_trajectories_nothing_is_looked_up():
    stored = BANK.replace(velocities=jnp.zeros((R, D, 2, *BANK.pictures.shape[1:])))
    run = RunInputs.of(CONTEXT, PARAMS, stored)
    assert esd.stored("student", run, KEY) is None
    found = esd.stored("teacher", run, KEY)
    assert found is not None
    assert [each.shape[0] for each in found] == [CONTEXT.batch_size] * 2


def upper_loss(level: Upper, lora: Any) -> Any:
    """The upper level's loss and gradient, as a function of the bank."""
    context = replace(CONTEXT, settings=replace(erase_anything.Levels.of(CONFIG), upper=level))

    def loss(lora: Any, bank: Bank) -> jax.Array:
        return upper_losses(lora, RunInputs.of(context, PARAMS, bank), KEY)[0]

    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda bank: jax.device_get(compiled(lora, bank))


@pytest.mark.slow
def test_stored_noises_are_those_of_their_pictures_and_steps():
    count = 3
    rng = np.random.default_rng(8)
    shape = F, count, *BANK.pictures.shape[1:]
    noises, targets = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    bank = BANK.replace(noises=noises, noise_velocities=targets)
    level = replace(CONFIG.upper, rsc=0.0, lora_target="base", noises=count)
    found, _ = upper_loss(level, LORA)(bank)
    size = CONTEXT.batch_size
    keys = jax.random.split(jax.random.split(KEY)[0], 3)
    rows = jax.random.randint(keys[0], (size,), 0, F).tolist()
    which = jax.random.randint(keys[2], (size,), 0, count).tolist()
    errors = []
    for row, k in zip(rows, which, strict=True):
        # Six noises for four steps: the first of each picture is early, the last is late.
        t = BANK.times[[[0, 0], [1, 2], [2, 3]][k][row]]
        mixed = (1 - t) * BANK.pictures[row] + t * noises[row, k]
        velocity, _ = alone(PARAMS, LORA, mixed, BANK.picture_prompts[row], t)
        errors.append(np.square(velocity - targets[row, k]).mean())
    np.testing.assert_allclose(found, level.lora * np.mean(errors), rtol=1e-5)


def test_the_steps_of_noises_cover_all_steps_evenly():
    for pictures, noises, steps in ((32, 4, 28), (8, 16, 28), (2, 14, 28), (1, 1, 3)):
        found = noise_steps(pictures, noises, steps)
        assert found.shape == (pictures, noises)
        counts = np.bincount(found.ravel(), minlength=steps)
        assert len(counts) == steps
        assert counts.max() - counts.min() <= 1
        assert (np.diff(found, axis=1) >= steps // noises - 1).all()


@pytest.mark.slow
def test_frozen_features_are_the_adapted_models_at_an_adapter_without_effect():
    level = replace(CONFIG.upper, lora=0.0)
    early = early_steps(level, D)
    rows, steps, forms = (each.ravel() for each in np.indices((R, early, V - 1)))
    words = np.asarray(BANK.trajectory_sentences)[rows], forms + 1
    given = BANK.trajectories[rows, steps], BANK.sentences[words], BANK.times[steps]
    model = Denoiser(MODEL, PARAMS, BANK.image_ids, CONTEXT.guidance)
    found = jax.jit(word_features, static_argnums=5)(model, *given, BANK.masks[words], level)
    features = found.swapaxes(0, 1).reshape(R, early, V - 1, *found.shape[::2])
    computed = upper_loss(level, fresh().lora)(BANK)
    frozen = upper_loss(replace(level, rsc_features="frozen"), fresh().lora)
    assert error(frozen(BANK.replace(features=features)), computed) < 1e-5
    for axis in range(3):
        wrong = BANK.replace(features=jnp.roll(features, 1, axis))
        assert error(frozen(wrong), computed) > 1e-3


@pytest.mark.slow
def test_one_pass_of_both_levels_gives_what_two_give():
    # In this form each token is a group.
    lower = replace(CONFIG.lower, attn_form="released")
    levels = replace(
        erase_anything.Levels.of(CONFIG), lower=lower, upper=replace(CONFIG.upper, rsc=0.0)
    )
    run = RunInputs.of(replace(CONTEXT, settings=levels), PARAMS, BANK)
    lower_key, upper_key = jax.random.split(KEY)

    def together(lora: Any) -> jax.Array:
        (one, _), (other, _) = both_losses(lora, run, lower_key, upper_key)
        return one + 3 * other

    def apart(lora: Any) -> jax.Array:
        one, _ = lower_losses(lora, run, lower_key)
        return one + 3 * upper_losses(lora, run, upper_key)[0]

    found, wanted = (jax.jit(jax.value_and_grad(f))(LORA) for f in (together, apart))
    assert error(found, wanted) < 1e-5


def config_of(folder: Path, **changes: Any) -> Config:
    usual: dict[str, Any] = {
        "iterations": 3,
        "bank": BankConfig(sentences=2, trajectories=3, batch=4, teacher="stored"),
        "lower": Lower(attn=0.0, erase_to="a dog"),
        "upper": Upper(lora=0.0, rsc=0.0),
    }
    return tiny.run_config(folder, **usual | changes)


@pytest.mark.slow
def test_a_bank_has_the_velocities_of_the_points_that_a_run_samples(
    tiny_folder: Path, tmp_path: Path
):
    config, pipe = config_of(tiny_folder), load(tiny_folder)
    plan = plan_of(config, pipe, listed(config))
    bank = make_adapters.banks_of({"": config}, pipe, {"": plan})[""]
    shapes = shapes_of(config, pipe.transformer, len(bank.image_ids), bank.masks.shape[-1])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), bank
    )
    assert bank.velocities is not None
    known = np.isfinite(bank.velocities).all((-2, -1))
    # The concept's come with the trajectories, the anchors' where an update needs them.
    assert known[..., 0].all()
    assert 1 <= known[..., 1].sum() <= config.iterations
    np.testing.assert_array_equal(known[..., 1], known[..., 2])
    for row, step, form in np.argwhere(known):
        sentence = bank.trajectory_sentences[row]
        shown = bank.anchors[sentence, form - 1] if form else bank.sentences[sentence, 0]
        wanted = pipe.velocity(
            bank.trajectories[row, step][None],
            jax.tree.map(lambda leaf: leaf[None], shown),
            bank.times[step : step + 1],
            jnp.asarray(bank.image_ids),
            config.guidance,
        )
        np.testing.assert_allclose(bank.velocities[row, step, form], wanted[0], atol=1e-5)

    # Each iteration looks up points that are there, and trains the same adapter.
    adapters = [
        make_adapters.learn({"": config}, pipe, {"": each}, tmp_path / name)[""].lora
        for name, each in (("stored", bank), ("computed", bank.replace(velocities=None)))
    ]
    assert error(*adapters) < 1e-4


def test_velocities_are_stored_where_that_takes_fewer_passes():
    needs = Needs(velocities="lower")

    def stores(needs: Needs = needs, teacher: str | None = None, **changes: Any) -> bool:
        bank = BankConfig(trajectories=32, batch=8, teacher=teacher)
        return stores_velocities(replace(CONFIG, bank=bank, steps=28, **changes), needs)

    assert stores(iterations=300, batch_size=1)
    # 2 x 896 passes instead of 3 x 600, and instead of 3 x 590.
    assert stores(iterations=600, batch_size=1)
    assert not stores(Needs())
    assert not stores(Needs(), teacher="stored")
    # A batch of 8 passes, instead of 3 or 6.
    assert not stores(iterations=1, batch_size=1)
    assert not stores(iterations=2, batch_size=1)
    assert stores(iterations=1, batch_size=1, teacher="stored")
    assert not stores(iterations=300, batch_size=1, teacher="computed")
    # Stopped at the first check, 1792 passes would be more than 3 x 25 x 4.
    assert not stores(iterations=600, batch_size=4, early_stop=EarlyStop(every=25))
    # At another guidance the trajectories do not have the concept's: 3 x 896 against 3 x 900.
    other = replace(needs, guidance=1.0)
    assert not stores(other, iterations=890, batch_size=1)
    assert stores(other, iterations=900, batch_size=1)


def test_which_methods_need_them():
    for name, settings in (
        ("esd", esd.Settings),
        ("eap", eap.Settings),
        ("meta_unlearning", meta_unlearning.Settings),
    ):
        for trajectories, needed in (("teacher", True), ("student", False)):
            own: dict[str, Any] = {name: settings(trajectories=trajectories, guidance=2.0)}
            config = replace(CONFIG, method=name, irrelevant=("dog",), **own)
            found = method_of(config).needs(config, listed(config), None)
            assert bool(found.velocities) == needed
            assert found.guidance == 2.0
    for lower, needed in ((Lower(), True), (Lower(esd=0.0), False)):
        config = replace(CONFIG, lower=lower)
        assert bool(method_of(config).needs(config, listed(config), None).velocities) == needed


@pytest.mark.slow
def test_a_bank_has_the_noises_and_features_that_the_settings_ask_for(tiny_folder: Path):
    upper = Upper(
        pictures=2, negatives=2, lora_target="base", noises=2, rsc_features="frozen", early=0.5
    )
    changes: dict[str, Any] = {"lower": Lower(esd=0.0), "upper": upper, "synonyms": ("kitten",)}
    config, pipe = config_of(tiny_folder, **changes), load(tiny_folder)
    plan = plan_of(config, pipe, listed(config))
    bank = make_adapters.banks_of({"": config}, pipe, {"": plan})[""]
    shapes = shapes_of(config, pipe.transformer, len(bank.image_ids), bank.masks.shape[-1])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), bank
    )
    assert bank.velocities is None
    assert bank.noises is not None
    assert bank.noise_velocities is not None
    assert bank.features is not None
    ids, steps = jnp.asarray(bank.image_ids), noise_steps(2, 2, config.steps)
    for row, k in np.ndindex(2, 2):
        t = bank.times[steps[row, k]]
        wanted = pipe.velocity(
            (1 - t) * bank.pictures[row : row + 1] + t * bank.noises[row, k][None],
            bank.picture_prompts[[row]],
            t[None],
            ids,
            config.guidance,
        )
        np.testing.assert_allclose(bank.noise_velocities[row, k], wanted[0], atol=1e-5)
    # A row, the first step, and the second word in the concept's place.
    words = np.asarray(bank.trajectory_sentences)[[2]], np.array([2])
    found = jax.jit(word_features, static_argnums=5)(
        pipe.denoiser(ids, config.guidance),
        bank.trajectories[[2], 0],
        bank.sentences[words],
        bank.times[:1],
        bank.masks[words],
        upper,
    )
    np.testing.assert_allclose(bank.features[2, 0, 1], found[:, 0], atol=1e-5)
    # A run with fewer words gets fillers, as for its sentences.
    fewer = bank.replace(
        kinds=bank.kinds[:-1],
        sentences=bank.sentences[:, :-1],
        masks=bank.masks[:, :-1],
        features=bank.features[:, :, :-1],
    )
    stacked = stack_banks([bank, fewer])
    np.testing.assert_array_equal(stacked.features[0], bank.features)
    np.testing.assert_array_equal(stacked.features[1, :, :, :-1], fewer.features)


def test_noises_without_the_frozen_models_target_are_refused():
    with pytest.raises(InputError, match=r"upper\.noises = 4 with upper\.lora_target = 'noise'"):
        load_config({"concept": "cat", "irrelevant": ("a", "b", "c"), "upper": {"noises": 4}})


def test_a_bank_larger_than_the_memory_is_refused_before_it_is_computed(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    config, pipe = config_of(tiny_folder), load(tiny_folder)
    sizes = [10**4, None]
    monkeypatch.setattr(make_adapters, "make_bank", lambda *_: pytest.fail("computed"))
    for host, device, where in (
        (*sizes, "this machine"),
        (*reversed(sizes), "a device"),
    ):
        monkeypatch.setattr(make_adapters, "host_memory", lambda host=host: host)
        monkeypatch.setattr(make_adapters, "memory", lambda _, device=device: device)
        with pytest.raises(
            InputError, match=rf"bank: its .* GB of {where}; set bank\.teacher"
        ) as e:
            make_adapters.banks_of({"": config}, pipe, {})
        assert len(str(e.value)) < 400
        assert "\n" not in str(e.value)
