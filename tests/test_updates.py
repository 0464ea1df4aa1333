"""Both updates: their changes, for one run and several, on any mesh."""

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.devices import run_on
from helpers.small import (
    BANK,
    CONFIG,
    CONTEXT,
    KEY,
    KEYS,
    MODEL,
    PARAMS,
    every,
    fresh,
    lower,
    make_bank,
    run,
    upper,
    with_levels,
)

from erase.config.schema import MeshConfig
from erase.data.bank import stack_banks
from erase.methods.erase_anything import joint_update, lower_update, upper_update
from erase.methods.planning.configured import context_of, shapes_of, start
from erase.runs import load_config
from erase.runtime.mesh import make_mesh
from flux_jax import sharding
from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.weights.loading import abstract_params

ROOT = Path(__file__).resolve().parents[1]
FLUX_DEV = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}


@pytest.mark.slow
def test_updates_are_adamw_steps_with_states_of_their_own():
    before = fresh()
    # Copies, since the update may reuse the memory.
    first = jax.tree.map(np.array, before)
    after, metrics = lower_update(
        every(fresh()), PARAMS, stack_banks([BANK]), KEYS, context=CONTEXT
    )
    after, metrics = run(after), run(metrics)
    gradient = jax.jit(
        jax.grad(lambda tree: lower(tree, params=PARAMS, bank=BANK, key=KEY, context=CONTEXT)[0])
    )(before.lora)
    # AdamW's first step: rate * sign(gradient), up to its epsilon, and the decay.
    level = CONFIG.lower
    trees = jax.device_get((first.lora, after.lora, gradient))
    for old, new, g in zip(*map(jax.tree.leaves, trees), strict=True):
        step = g / (np.abs(g) + 1e-8) + level.weight_decay * old
        np.testing.assert_allclose(new, old - level.learning_rate * step, atol=2e-5)
    norm = np.sqrt(sum(np.vdot(g, g) for g in jax.tree.leaves(trees[-1])))
    np.testing.assert_allclose(metrics["lower_gradient"], norm, rtol=1e-4)
    assert set(metrics) == {"esd", "attn", "lower_gradient"}
    assert int(after.own["lower"][0].count) == 1
    assert int(after.own["upper"][0].count) == 0

    lower_state = jax.tree.map(np.array, after.own["lower"])
    both, metrics = upper_update(every(after), PARAMS, stack_banks([BANK]), KEYS, context=CONTEXT)
    both = run(both)
    assert set(metrics) == {"lora", "rsc", "upper_gradient"}
    assert int(both.own["upper"][0].count) == 1
    pairs = zip(*map(jax.tree.leaves, (lower_state, both.own["lower"])), strict=True)
    for old, new in pairs:
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_joint_updates():
    """One loss of each level here, and the other two in adaptive updates, to compile less."""
    lower_key, upper_key = jax.random.split(KEY)
    level, other = replace(CONFIG.lower, attn=0.0), replace(CONFIG.upper, lora=0.0)
    context = with_levels(CONTEXT, lower=level, upper=other)

    def total(tree: dict) -> jax.Array:
        erasing, _ = lower(tree, params=PARAMS, bank=BANK, key=lower_key, context=context)
        return erasing + upper(tree, params=PARAMS, bank=BANK, key=upper_key, context=context)[0]

    before = start(KEY, PARAMS, replace(CONFIG, alternation="joint"))
    gradient = jax.device_get(jax.jit(jax.grad(total))(before.lora))
    after, metrics = joint_update(every(before), PARAMS, stack_banks([BANK]), KEYS, context=context)
    trees = (*jax.device_get((fresh().lora, run(after).lora)), gradient)
    for old, new, g in zip(*map(jax.tree.leaves, trees), strict=True):
        step = g / (np.abs(g) + 1e-8) + level.weight_decay * old
        np.testing.assert_allclose(new, old - level.learning_rate * step, atol=2e-5)
    assert set(metrics) == {"esd", "rsc", "joint_gradient"}


@pytest.mark.slow
def test_adaptive_updates():
    _, upper_key = jax.random.split(KEY)
    level, other = replace(CONFIG.lower, esd=0.0), replace(CONFIG.upper, rsc=0.0)
    context = with_levels(CONTEXT, lower=level, upper=other, adaptive=True)
    # Placed as the update returns it, so that the next one is the same program.
    state = context.divided(every(start(KEY, PARAMS, replace(CONFIG, alternation="adaptive"))))
    state, metrics = joint_update(state, PARAMS, stack_banks([BANK]), KEYS, context=context)
    # At w = 0 the step only erases; then w makes Adam's first step, in the other loss's direction.
    before, after = (
        upper(tree, params=PARAMS, bank=BANK, key=upper_key, context=context)[0]
        for tree in (fresh().lora, run(state).lora)
    )
    assert set(metrics) == {"attn", "lora", "balance", "joint_gradient"}
    np.testing.assert_allclose(metrics["balance"], 0.3 * np.sign([after - before]), rtol=1e-3)
    state, metrics = joint_update(state, PARAMS, stack_banks([BANK]), KEYS, context=context)
    np.testing.assert_allclose(metrics["balance"], state.own["balance"][0])


@pytest.mark.slow
def test_a_run_among_others_is_what_it_is_alone():
    other = make_bank(anchors=2, seed=6).replace(eta=jnp.zeros(()))
    banks, keys = [make_bank(), other], jax.random.split(KEY, 2)
    context = context_of(CONFIG, MODEL, CONTEXT.mesh)
    states = every(*(start(key, PARAMS, CONFIG) for key in keys))
    states, together = lower_update(states, PARAMS, stack_banks(banks), keys, context=context)
    for index in range(2):
        state = every(start(keys[index], PARAMS, CONFIG))
        alone_, metrics = lower_update(
            state, PARAMS, stack_banks([banks[index]]), keys[index : index + 1], context=context
        )
        for name, values in metrics.items():
            np.testing.assert_allclose(together[name][index], values[0], rtol=1e-4)
        for a, b in zip(*map(jax.tree.leaves, (run(states, index), run(alone_))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_states_are_donated_and_follow_the_key():
    given, banks = every(fresh()), stack_banks([BANK])
    first, _ = lower_update(given, PARAMS, banks, KEYS, context=CONTEXT)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.lora))
    again, _ = lower_update(every(fresh()), PARAMS, banks, KEYS, context=CONTEXT)
    other_keys = jax.random.key(8)[None]
    other, _ = lower_update(every(fresh()), PARAMS, banks, other_keys, context=CONTEXT)
    leaves = [jax.tree.leaves(state.lora) for state in (first, again, other)]
    assert all(np.array_equal(a, b) for a, b in zip(*leaves[:2], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True))


@pytest.mark.slow
def test_training_lowers_what_it_weighs():
    context = with_levels(CONTEXT, lower=replace(CONFIG.lower, esd=0.0, learning_rate=0.02))
    state, seen, metrics = context.divided(every(fresh())), [], {}
    for _ in range(30):
        state, metrics = lower_update(state, PARAMS, stack_banks([BANK]), KEYS, context=context)
        seen.append(float(metrics["attn"][0]))
    assert "esd" not in metrics
    assert seen[-1] < 0.95 * seen[0]


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    done = run_on(8, "import test_updates; test_updates.compare_meshes()")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["8", "devices", "agree"]


def compare_meshes() -> None:
    """Compare an iteration of two runs on one device with that on several meshes."""
    # Even the tiny model's weights are split.
    sharding.WHOLE = 1
    config = replace(CONFIG, batch_size=8)
    banks = stack_banks([make_bank(anchors=2), make_bank(seed=6)])
    keys = jax.random.split(KEY)
    results = []
    for shape in ((1, 1, 1), (1, 2, 4), (2, 2, 2)):
        across, data, fsdp = shape
        mesh = make_mesh(
            MeshConfig(data, fsdp),
            across,
            config.batch_size,
            devices=jax.devices()[: math.prod(shape)],
        )
        assert mesh.shape == {"concept": across, "data": data, "fsdp": fsdp}
        context = context_of(config, MODEL, mesh)
        state = context.divided(every(*(start(key, PARAMS, config) for key in keys)))
        params = sharding.place_weights(mesh, PARAMS)
        placed = params, context.placed(banks), context.divided(keys)
        held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params))
        total = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert held == total if fsdp == 1 else held < 1.3 * total / fsdp
        compiled = lower_update.lower(state, *placed, context=context).compile()
        state, metrics = compiled(state, *placed)
        text = compiled.as_text() or ""
        # Work is really divided: gradients have to be summed over the devices of a run.
        assert ("all-reduce" in text) == (data * fsdp > 1)
        state, more = upper_update(state, *placed, context=context)
        for leaf in jax.tree.leaves(state.lora):
            assert len(leaf.sharding.device_set) == math.prod(shape)
            assert leaf.sharding.shard_shape(leaf.shape)[0] == 2 // across
        results.append((state.lora, metrics | more))
    for one, *others in zip(*map(jax.tree.leaves, results), strict=True):
        for other in others:
            np.testing.assert_allclose(other, one, rtol=2e-4, atol=2e-6)
    print(jax.device_count(), "devices agree")


def one_run(tree: Any) -> Any:
    """Shapes with the axis of runs."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), tree)


@pytest.mark.slow
def test_both_updates_trace_at_full_size():
    """FLUX.1 [dev] under configs/nudity.py: shapes only, no memory."""
    config = load_config(runpy.run_path(str(ROOT / "configs/nudity.py"))["get_config"]())
    model = FluxTransformer(FluxConfig.from_dict(FLUX_DEV), jnp.bfloat16)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16),
        abstract_params("transformer", FLUX_DEV),
    )
    assert 11.8e9 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 12e9
    assert config.text_tokens is not None
    bank = shapes_of(config, model, 1024, config.text_tokens)
    context = context_of(config, model, CONTEXT.mesh)
    state = jax.eval_shape(lambda: start(jax.random.key(0), params, config))
    bank = one_run(bank).replace(times=bank.times, image_ids=bank.image_ids)
    # The paper's figure: 3.57 MiB in bfloat16.
    leaves = jax.tree.leaves(state.lora)
    assert sum(leaf.size for leaf in leaves) == 1_867_776
    assert sum(leaf.shape[0] for leaf in leaves) == 2 * 2 * 19
    for update, names in (
        (lower_update, {"esd", "attn", "lower_gradient"}),
        (upper_update, {"lora", "rsc", "upper_gradient"}),
    ):
        after, metrics = jax.eval_shape(
            lambda *arguments, update=update: update(*arguments, context=context),
            one_run(state),
            params,
            bank,
            jax.random.split(jax.random.key(0), 1),
        )
        assert set(metrics) == names
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
            lambda leaf: ((1, *leaf.shape), leaf.dtype), state
        )
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.lora))
