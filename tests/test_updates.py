"""Both updates: what they compute, draw, change and leave alone, on one device and on four.

Axis letters: M sentences, V forms, T text tokens, R trajectories, D steps, F pictures, S image
tokens, C latent channels, E text width, P pooled width.
"""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_on

from erase import losses
from erase.bank import Bank
from erase.config import AdapterConfig, Config, Lower, Upper, load_config
from erase.updates import (
    Setup,
    State,
    lower_losses,
    lower_update,
    make_mesh,
    start,
    upper_losses,
    upper_update,
)
from flux_jax.load import abstract_params
from flux_jax.pipeline import Conditioning, apply_transformer
from flux_jax.transformer import FluxConfig, FluxTransformer
from flux_jax.vae import latent_ids

ROOT = Path(__file__).resolve().parents[1]
M, V, T, R, D, F = 3, 5, 6, 4, 4, 2
SIZES = {
    "in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 6,
    "guidance_embeds": True,
    "axes_dims_rope": (2, 2, 4),
}
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
CONFIG = Config(
    concept="cat",
    batch_size=4,
    adapter=AdapterConfig(rank=2, alpha=3.0),
    lower=Lower(esd=1.0, attn=2.0, eta=1.5),
    upper=Upper(lora=0.5, rsc=0.25, early=0.5, temperature=0.5),
)


def random_tree(shapes: Any, seed: int, scale: float = 0.3) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), shapes
    )


def make_bank(anchors: int = 1) -> Bank:
    """A bank of random arrays."""
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def conditioning(*lead: int) -> Conditioning:
        return Conditioning(normal(*lead, T, 12), normal(*lead, 6))

    ids = latent_ids(4, 6)
    masks = np.zeros((M, V, T), np.float32)
    for m, v in np.ndindex(M, V):
        masks[m, v, [v % T, (m + v + 1) % T]] = 1
    return Bank(
        sentences=conditioning(M, V),
        masks=jnp.asarray(masks),
        anchors=conditioning(anchors),
        trajectories=normal(R, D, len(ids), 8),
        trajectory_sentences=jnp.arange(R) % M,
        pictures=normal(F, len(ids), 8),
        picture_prompts=conditioning(F),
        times=jnp.array([1.0, 0.8, 0.5, 0.2]),
        image_ids=ids,
    )


MODEL = FluxTransformer(FluxConfig.from_dict(SIZES))
SETUP = Setup.of(CONFIG, MODEL)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def params() -> dict:
    return random_tree(abstract_params("transformer", SIZES), 1)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return make_bank()


@pytest.fixture(scope="module")
def lora(params: dict) -> dict:
    """An adapter that changes something."""
    return random_tree(start(KEY, params, CONFIG).lora, 2)


def fresh(params: dict) -> State:
    return start(KEY, params, CONFIG)


def scaled(lora: dict) -> dict:
    """alpha / rank = 1.5, folded into every B."""
    return jax.tree.map_with_path(
        lambda path, leaf: leaf * 1.5 if path[-1].key == "B" else leaf, lora
    )


@jax.jit
def alone(
    params: dict, lora: dict | None, latents: jax.Array, prompt: Conditioning, time: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Velocity and all attention weights of one sample, which has no batch axis."""
    velocity, out = apply_transformer(
        MODEL,
        params,
        None if lora is None else scaled(lora),
        latents[None],
        jax.tree.map(lambda leaf: leaf[None], prompt),
        time[None],
        latent_ids(4, 6),
        3.5,
        attention="weights",
    )
    return velocity[0], out["attention"][:, 0]


lower = jax.jit(lower_losses, static_argnames="setup")
upper = jax.jit(upper_losses, static_argnames="setup")


def test_one_pass_gives_both_lower_losses(params: dict, bank: Bank, lora: dict):
    """Recomputed without batching: each sample, each prompt and the full weights by themselves."""
    total, metrics = lower(lora, params=params, bank=bank, key=KEY, setup=SETUP)
    row_key, step_key = jax.random.split(KEY)
    rows = jax.random.randint(row_key, (4,), 0, R)
    steps = jax.random.randint(step_key, (4,), 0, D)
    esd, attn = [], []
    for row, step in zip(rows, steps, strict=True):
        x, t = bank.trajectories[row, step], bank.times[step]
        concept = bank.sentences[int(row) % M, 0]
        student, weights = alone(params, lora, x, concept, t)
        base, empty = (alone(params, None, x, p, t)[0] for p in (concept, bank.anchors[0]))
        esd.append(np.square(student - (empty - 1.5 * (base - empty))).mean())
        tokens = np.flatnonzero(bank.masks[int(row) % M, 0])
        attn.append(weights[..., T:, tokens].sum(-1).mean())
    np.testing.assert_allclose(metrics["esd"], np.mean(esd), rtol=1e-5)
    np.testing.assert_allclose(metrics["attn"], np.mean(attn), rtol=1e-5)
    np.testing.assert_allclose(total, metrics["esd"] + 2 * metrics["attn"], rtol=1e-6)


def test_a_second_anchor_takes_the_empty_prompts_place(params: dict, lora: dict):
    bank = make_bank(anchors=2)
    setup = replace(SETUP, lower=replace(CONFIG.lower, attn=0.0))
    _, metrics = lower(lora, params=params, bank=bank, key=KEY, setup=setup)
    same = bank.replace(anchors=bank.anchors[:1])
    _, plain = lower(lora, params=params, bank=same, key=KEY, setup=setup)
    swapped = bank.replace(anchors=bank.anchors[np.array([0, 0])])
    _, twice = lower(lora, params=params, bank=swapped, key=KEY, setup=setup)
    assert abs(metrics["esd"] - plain["esd"]) > 1e-3
    np.testing.assert_allclose(twice["esd"], plain["esd"], rtol=1e-5)


def test_upper_losses_sample_by_sample(params: dict, bank: Bank, lora: dict):
    total, metrics = upper(lora, params=params, bank=bank, key=KEY, setup=SETUP)
    lora_key, rsc_key = jax.random.split(KEY)
    keys = jax.random.split(lora_key, 3)
    rows, steps = (jax.random.randint(k, (4,), 0, n) for k, n in zip(keys, (F, D), strict=False))
    noises = jax.random.normal(keys[2], (4, *bank.pictures.shape[1:]))
    errors = []
    for row, step, noise in zip(rows, steps, noises, strict=True):
        clean, t = bank.pictures[row], bank.times[step]
        mixed = (1 - t) * clean + t * noise
        velocity, _ = alone(params, lora, mixed, bank.picture_prompts[row], t)
        errors.append(np.square(velocity - (noise - clean)).mean())
    np.testing.assert_allclose(metrics["lora"], np.mean(errors), rtol=1e-5)

    base = replace(SETUP, upper=replace(CONFIG.upper, rsc=0.0, lora_target="base"))
    errors = []
    for row, step, noise in zip(rows, steps, noises, strict=True):
        t = bank.times[step]
        mixed = (1 - t) * bank.pictures[row] + t * noise
        adapted, frozen = (
            alone(params, each, mixed, bank.picture_prompts[row], t)[0] for each in (lora, None)
        )
        errors.append(np.square(adapted - frozen).mean())
    _, held = upper(lora, params=params, bank=bank, key=KEY, setup=base)
    np.testing.assert_allclose(held["lora"], np.mean(errors), rtol=1e-5)
    unchanged = fresh(params).lora
    _, held = upper(unchanged, params=params, bank=bank, key=KEY, setup=base)
    assert held["lora"] < 1e-10

    row_key, step_key = jax.random.split(rsc_key)
    rows = jax.random.randint(row_key, (4,), 0, R)
    steps = jax.random.randint(step_key, (4,), 0, D // 2)
    terms = []
    for row, step in zip(rows, steps, strict=True):
        forms = []
        for form in range(V):
            x, prompt = bank.trajectories[row, step], bank.sentences[int(row) % M, form]
            _, weights = alone(params, lora, x, prompt, bank.times[step])
            tokens = np.flatnonzero(bank.masks[int(row) % M, form])
            columns = np.asarray(weights)[..., T:, tokens].mean((1, 3))
            forms.append(columns / np.linalg.norm(columns, axis=-1, keepdims=True))
        for block in range(2):
            concept, synonym, *others = (f[block] for f in forms)
            near = np.exp(concept @ synonym / 0.5)
            far = sum(np.exp(concept @ other / 0.5) for other in others)
            terms.append(-np.log(far / (near + far)))
    np.testing.assert_allclose(metrics["rsc"], np.mean(terms), rtol=1e-4)
    np.testing.assert_allclose(total, 0.5 * metrics["lora"] + 0.25 * metrics["rsc"], rtol=1e-6)


@pytest.mark.parametrize("level", ["lower", "upper"])
def test_gradients_are_the_losses_slopes(params: dict, bank: Bank, lora: dict, level: str):
    """Of L_rsc's features only the concept's move, so it is left out of the numerical slope."""
    setup = replace(SETUP, upper=replace(CONFIG.upper, rsc=0.0))
    function = {"lower": lower, "upper": upper}[level]

    def loss(lora: dict) -> jax.Array:
        return function(lora, params=params, bank=bank, key=KEY, setup=setup)[0]

    direction = random_tree(lora, 9, 1.0)
    step = 1e-2
    plus, minus = (
        loss(jax.tree.map(lambda a, d, s=s: a + s * d, lora, direction)) for s in (step, -step)
    )
    gradient = jax.grad(loss)(lora)
    slope = sum(
        jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
    )
    np.testing.assert_allclose(slope, (plus - minus) / (2 * step), rtol=2e-2, atol=1e-4)


@pytest.mark.slow
def test_contrast_moves_the_concepts_features_alone(params: dict, bank: Bank, lora: dict):
    setup = replace(SETUP, upper=replace(CONFIG.upper, lora=0.0, rsc=1.0))
    _, rsc_key = jax.random.split(KEY)
    row_key, step_key = jax.random.split(rsc_key)
    rows = jax.random.randint(row_key, (4,), 0, R)
    steps = jax.random.randint(step_key, (4,), 0, D // 2)

    def features(lora: dict, form: int) -> jax.Array:
        _, out = apply_transformer(
            MODEL,
            params,
            scaled(lora),
            bank.trajectories[rows, steps],
            bank.sentences[bank.trajectory_sentences[rows], form],
            bank.times[steps],
            bank.image_ids,
            3.5,
            token_masks=bank.masks[bank.trajectory_sentences[rows], form][..., None],
            stop_after="dual",
        )
        return losses.attention_features(out["attention"][..., 0], T)

    features = jax.jit(features, static_argnums=1)
    fixed = [features(lora, form) for form in range(1, V)]
    expected = jax.grad(
        lambda tree: losses.reverse_contrastive(
            features(tree, 0), fixed[0], jnp.stack(fixed[1:], axis=2), 0.5
        )
    )(lora)
    actual = jax.grad(lambda tree: upper(tree, params=params, bank=bank, key=KEY, setup=setup)[0])(
        lora
    )
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        # The slope is a small difference of nearly equal terms.
        np.testing.assert_allclose(a, e, atol=1e-4 * float(jnp.abs(e).max()))


@pytest.mark.slow
def test_updates_are_adamw_steps_with_states_of_their_own(params: dict, bank: Bank):
    before = fresh(params)
    # Copies, since the update may reuse the memory.
    first = jax.tree.map(np.array, before)
    after, metrics = lower_update(fresh(params), params, bank, KEY, setup=SETUP)
    gradient = jax.grad(
        lambda tree: lower(tree, params=params, bank=bank, key=KEY, setup=SETUP)[0]
    )(before.lora)
    # AdamW's first step: rate * sign(gradient), up to its epsilon, and the decay.
    level = CONFIG.lower
    for old, new, g in zip(*map(jax.tree.leaves, (first.lora, after.lora, gradient)), strict=True):
        step = g / (np.abs(g) + 1e-8) + level.weight_decay * old
        np.testing.assert_allclose(new, old - level.learning_rate * step, atol=2e-5)
    norm = np.sqrt(sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["lower_gradient"], norm, rtol=1e-4)
    assert set(metrics) == {"esd", "attn", "lower_gradient"}
    assert int(after.lower[0].count) == 1
    assert int(after.upper[0].count) == 0

    lower_state = jax.tree.map(np.array, after.lower)
    both, metrics = upper_update(after, params, bank, KEY, setup=SETUP)
    assert set(metrics) == {"lora", "rsc", "upper_gradient"}
    assert int(both.upper[0].count) == 1
    for old, new in zip(jax.tree.leaves(lower_state), jax.tree.leaves(both.lower), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_fresh_adapter_is_the_base(params: dict, bank: Bank):
    _, metrics = lower(fresh(params).lora, params=params, bank=bank, key=KEY, setup=SETUP)
    row_key, step_key = jax.random.split(KEY)
    rows = jax.random.randint(row_key, (4,), 0, R)
    steps = jax.random.randint(step_key, (4,), 0, D)
    errors = []
    for row, step in zip(rows, steps, strict=True):
        prompts = bank.sentences[int(row) % M, 0], bank.anchors[0]
        x, t = bank.trajectories[row, step], bank.times[step]
        base, empty = (alone(params, None, x, prompt, t)[0] for prompt in prompts)
        # The student is the base, so the target is (1 + η) (v(c) - v(∅)) away.
        errors.append(np.square(2.5 * (base - empty)).mean())
    np.testing.assert_allclose(metrics["esd"], np.mean(errors), rtol=1e-5)


def test_states_are_donated_and_follow_the_key(params: dict, bank: Bank):
    given = fresh(params)
    first, _ = lower_update(given, params, bank, KEY, setup=SETUP)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.lora))
    again, _ = lower_update(fresh(params), params, bank, KEY, setup=SETUP)
    other, _ = lower_update(fresh(params), params, bank, jax.random.key(8), setup=SETUP)
    leaves = [jax.tree.leaves(state.lora) for state in (first, again, other)]
    assert all(np.array_equal(a, b) for a, b in zip(*leaves[:2], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True))


def test_training_lowers_what_it_weighs(params: dict, bank: Bank):
    setup = replace(SETUP, lower=replace(CONFIG.lower, esd=0.0, learning_rate=0.02))
    state, seen, metrics = fresh(params), [], {}
    for _ in range(30):
        state, metrics = lower_update(state, params, bank, KEY, setup=setup)
        seen.append(float(metrics["attn"]))
    assert "esd" not in metrics
    assert seen[-1] < 0.95 * seen[0]


@pytest.mark.slow
def test_four_devices_give_what_one_gives():
    done = run_on(4, "import test_updates; test_updates.compare_meshes()")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["4", "devices", "agree"]


def compare_meshes() -> None:
    """Takes an iteration on a mesh of one and on one of four, and compares."""
    params, bank = random_tree(abstract_params("transformer", SIZES), 1), make_bank(anchors=2)
    results = []
    for devices in (1, 4):
        setup = Setup.of(CONFIG, MODEL, make_mesh(devices))
        state = setup.replicated(start(KEY, params, CONFIG))
        placed = setup.replicated(params), setup.replicated(bank)
        state, metrics = lower_update(state, *placed, KEY, setup=setup)
        text = lower_update.lower(state, *placed, KEY, setup=setup).compile().as_text() or ""
        # Work is really divided: gradients have to be summed over the devices.
        assert ("all-reduce" in text) == (devices > 1)
        state, more = upper_update(state, *placed, KEY, setup=setup)
        for leaf in jax.tree.leaves(state.lora):
            assert leaf.sharding.is_fully_replicated
            assert len(leaf.sharding.device_set) == devices
        results.append((state.lora, metrics | more))
    for one, four in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(four, one, rtol=2e-4, atol=2e-6)
    print(jax.device_count(), "devices agree")


def test_as_many_devices_as_share_the_batch():
    assert Setup.of(replace(CONFIG, batch_size=3), MODEL).mesh.shape == {"data": 1}


def test_both_updates_trace_at_full_size():
    """FLUX.1 [dev] under configs/nudity.py: shapes only, no memory."""
    config = load_config(runpy.run_path(str(ROOT / "configs/nudity.py"))["get_config"]())
    model = FluxTransformer(FluxConfig.from_dict(FLUX_DEV), jnp.bfloat16)
    shape = jax.ShapeDtypeStruct
    params = jax.tree.map(
        lambda leaf: shape(leaf.shape, jnp.bfloat16), abstract_params("transformer", FLUX_DEV)
    )
    assert 11.8e9 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 12e9

    def conditioning(*lead: int) -> Conditioning:
        return Conditioning(
            shape((*lead, config.text_tokens, 4096), jnp.bfloat16),
            shape((*lead, 768), jnp.bfloat16),
        )

    tokens = 1024
    forms = 2 + config.upper.negatives
    bank = Bank(
        sentences=conditioning(config.bank.sentences, forms),
        masks=shape((config.bank.sentences, forms, config.text_tokens), jnp.float32),
        anchors=conditioning(1),
        trajectories=shape((config.bank.trajectories, config.steps, tokens, 64), jnp.bfloat16),
        trajectory_sentences=shape((config.bank.trajectories,), jnp.int32),
        pictures=shape((config.upper.pictures, tokens, 64), jnp.bfloat16),
        picture_prompts=conditioning(config.upper.pictures),
        times=shape((config.steps,), jnp.float32),
        image_ids=shape((tokens, 3), jnp.float32),
    )
    setup = Setup.of(config, model)
    state = jax.eval_shape(lambda: start(jax.random.key(0), params, config))
    # The paper's figure: 3.57 MiB in bfloat16.
    leaves = jax.tree.leaves(state.lora)
    assert sum(leaf.size for leaf in leaves) == 1_867_776
    assert sum(leaf.shape[0] for leaf in leaves) == 2 * 2 * 19
    for update, names in (
        (lower_update, {"esd", "attn", "lower_gradient"}),
        (upper_update, {"lora", "rsc", "upper_gradient"}),
    ):
        after, metrics = jax.eval_shape(
            lambda *arguments, update=update: update(*arguments, setup=setup),
            state,
            params,
            bank,
            jax.random.key(0),
        )
        assert set(metrics) == names
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), state
        )
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.lora))
