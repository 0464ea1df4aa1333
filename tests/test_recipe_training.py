"""The recipe's training: resumption, targets and initialisation."""

import functools
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.devices import run_on

from flux_jax.models.vae import AutoencoderKL, VAEConfig
from flux_jax.tree import flatten
from recipes.emoji_flux import fit as training
from recipes.emoji_flux import flux_training, vae_training
from recipes.emoji_flux.flux_training import FluxData

TOKENS, SCENES = 8, 12


def configs() -> dict[str, Any]:
    """The shipped model's configurations, with one block of each kind."""
    texts = flux_training.text_configs(60, 59, 50, TOKENS)
    texts["text_encoder_2"] |= {"num_layers": 1}
    few = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    return {"transformer": flux_training.TRANSFORMER | few, **texts}


@pytest.fixture(scope="module")
def modules() -> dict[str, Any]:
    return flux_training.build_modules(configs(), jnp.float32)


@pytest.fixture(scope="module")
def data() -> FluxData:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((SCENES, 64, 64)).astype(np.float32)
    ids = (rng.integers(3, 50, shape) for shape in ((SCENES, TOKENS), (SCENES, TOKENS)))
    return FluxData(
        jnp.asarray(latents),
        *(jnp.asarray(each) for each in ids),
        empty_clip=jnp.full(TOKENS, 59),
        empty_t5=jnp.zeros(TOKENS, jnp.int32).at[0].set(1),
    )


@pytest.fixture(scope="module")
def fresh(modules: dict[str, Any]) -> Any:
    return jax.jit(lambda key: flux_training.initial_params(key, modules))(jax.random.key(0))


def randomised(params: Any) -> Any:
    """The same parameters with no zeros left."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def added(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + 1, tree)


def draw(modules: dict[str, Any], params: Any, key: Any, data: FluxData, batch: int) -> Any:
    return jax.jit(lambda *given: flux_training.draw_batch(modules, *given, batch))(
        params, key, data
    )


def quadratic(params: Any, key: Any, data: Any) -> tuple[Any, dict[str, Any]]:
    chosen = data[jax.random.randint(key, (), 0, len(data))]
    value = jnp.sum(jnp.square(params["w"] - chosen))
    return value, {"chosen": chosen}


def fit(folder: Path, updates: int, chunk: int = 3) -> Any:
    optimizer = optax.sgd(0.1)
    state = training.start({"w": jnp.zeros(2)}, optimizer)
    data = jnp.arange(5.0)
    with mock.patch.object(training, "CHUNK", chunk):
        return training.fit(state, quadratic, data, optimizer, updates, folder, title="quadratic")


@pytest.mark.slow
def test_a_resumed_fit_ends_where_a_whole_one_does(tmp_path: Path):
    whole = fit(tmp_path / "whole", 8)
    fit(tmp_path / "parts", 4)
    parts = fit(tmp_path / "parts", 8)
    np.testing.assert_array_equal(whole["w"], parts["w"])
    lines = [json.loads(x) for x in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [3, 4, 7, 8]
    # Training is complete, so nothing changes.
    np.testing.assert_array_equal(fit(tmp_path / "parts", 8)["w"], whole["w"])


def test_a_fit_is_plain_descent_with_an_average_beside_it(tmp_path: Path):
    found = fit(tmp_path, 5, chunk=2)
    key, w, average, chosen = jax.random.key(0), np.zeros(2), np.zeros(2), []
    for update in range(5):
        # Every device samples its own batch; gradients are averaged.
        each = [jax.random.fold_in(key, device) for device in range(jax.device_count())]
        draws = [jax.random.randint(jax.random.fold_in(k, update), (), 0, 5) for k in each]
        target = float(np.mean(draws))
        chosen.append(target)
        w = w - 0.1 * 2 * (w - target)
        rate = min(0.999, (1 + update) / (10 + update))
        average = rate * average + (1 - rate) * w
    np.testing.assert_allclose(found["w"], average, rtol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    means = [np.mean(chosen[:2]), np.mean(chosen[2:4]), chosen[4]]
    assert [line["chosen"] for line in lines] == pytest.approx(means)


@pytest.mark.slow
def test_two_devices_average_their_gradients(tmp_path: Path):
    done = run_on(
        2,
        "import pathlib; import test_recipe_training as test;"
        f"test.test_a_fit_is_plain_descent_with_an_average_beside_it(pathlib.Path({str(tmp_path)!r}));"
        "assert test.training.per_device(4) == 2; test.training.per_device(3)",
    )
    # Only its last call fails.
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("InputError: batch = 3 is not a multiple of the 2 devices"), done.stderr


@pytest.mark.slow
def test_every_block_starts_as_the_identity(modules: dict[str, Any], fresh: Any, data: FluxData):
    flat = flatten(fresh["transformer"])
    zero = {path for path, leaf in flat.items() if path.endswith("kernel") and not np.any(leaf)}
    assert {p.rpartition("/")[0] for p in zero} == {
        "dual_blocks/norm1/linear",
        "dual_blocks/norm1_context/linear",
        "single_blocks/norm/linear",
        "norm_out/linear",
        "guidance_embedder/linear_2",
        "proj_out",
    }
    key = jax.random.key(0)
    loss, _ = jax.jit(functools.partial(flux_training.matching_loss, modules, 4))(fresh, key, data)
    _, target, *_ = draw(modules, fresh, key, data, 4)
    assert float(loss) == pytest.approx(float(jnp.mean(jnp.square(target))), rel=1e-5)


def test_a_cycle_starts_from_the_average_of_the_one_before(
    data: FluxData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun = []

    def fit(state: training.State, *given: Any, **named: Any) -> Any:
        _, _, _, updates, folder = given
        begun.append((jax.tree.map(np.asarray, state), (updates, folder.name, named["seed"])))
        return added(state.params)

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(flux_training, "initial_params", lambda *_: {"w": jnp.zeros(2)})
    last = flux_training.train(configs(), data, tmp_path, cycles=(5, 6, 7), batch=4)
    assert [run for _, run in begun] == [(5, "1", 1), (6, "2", 2), (7, "3", 3)]
    assert all(state.update == 0 for state, _ in begun)
    for index in range(2):
        former, latter = begun[index][0], begun[index + 1][0]
        jax.tree.map(np.testing.assert_array_equal, added(former.params), latter.params)
        jax.tree.map(np.testing.assert_array_equal, latter.params, latter.average)
    jax.tree.map(np.testing.assert_array_equal, added(begun[2][0].params), last)


@pytest.mark.slow
def test_a_batch_lies_on_the_straight_path(modules: dict[str, Any], fresh: Any, data: FluxData):
    x, velocity, time, caption, empty = draw(modules, fresh, jax.random.key(3), data, 64)
    clean = np.asarray(x - time[:, None, None] * velocity)
    latents = np.asarray(data.latents)
    distance = np.abs(clean[:, None] - latents[None]).max((2, 3)).min(1)
    assert distance.max() < 1e-5
    assert 0 < time.min() < time.max() < 1
    # About a tenth of the captions are empty, and most pooled vectors dropped, for both alike.
    dropped = np.abs(caption.text - empty.text).max((1, 2)) < 1e-4
    assert 1 <= dropped.sum() <= 16
    blind = np.abs(caption.pooled).max(1) == 0
    assert 48 <= blind.sum() < 64
    np.testing.assert_array_equal(blind, np.abs(empty.pooled).max(1) == 0)


@pytest.mark.slow
def test_distillation_aims_at_classifier_free_guidance(
    modules: dict[str, Any], fresh: Any, data: FluxData
):
    teacher, key = randomised(fresh), jax.random.key(5)
    student = randomised(fresh["transformer"])
    found_loss = jax.jit(functools.partial(flux_training.distillation_loss, modules, 4))
    loss, _ = found_loss(student, key, (data, teacher))

    batch_key, guidance_key = jax.random.split(key)
    x, _, time, caption, empty = draw(modules, teacher, batch_key, data, 4)
    scale = jax.random.uniform(guidance_key, (4,), minval=1.0, maxval=5.0)
    predict = jax.jit(functools.partial(flux_training.predict, modules))
    ones = jnp.ones(4)
    given = predict(teacher["transformer"], x, time, caption, ones)
    without = predict(teacher["transformer"], x, time, empty, ones)
    wanted = without + scale[:, None, None] * (given - without)
    found = predict(student, x, time, caption, scale)
    assert float(loss) == pytest.approx(float(jnp.mean(jnp.square(found - wanted))), rel=1e-4)
    assert float(jnp.abs(given - without).max()) > 1e-3


@pytest.mark.slow
def test_the_autoencoders_loss_is_its_formula():
    config = vae_training.CONFIG | {
        "block_out_channels": [4, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 2,
        "latent_channels": 2,
    }
    vae = AutoencoderKL(VAEConfig.from_dict(config))
    rng = np.random.default_rng(0)
    data = vae_training.SceneData(
        jnp.asarray(rng.integers(0, 255, (3, 64, 64, 4)), jnp.uint8),
        jnp.asarray([[0, -1, -1, -1, -1], [1, 2, -1, -1, -1]]),
        jnp.asarray(np.tile([32.0, 32.0, 40.0, 0.0], (2, 5, 1)), jnp.float32),
        jnp.asarray(rng.random((2, 2, 3)), jnp.float32),
    )
    params = jax.jit(vae.init)(jax.random.key(1), jnp.zeros((1, 64, 64, 3)))["params"]
    key = jax.random.key(2)
    loss, parts = jax.jit(functools.partial(vae_training.vae_loss, vae, 2))(params, key, data)

    row_key, noise_key = jax.random.split(key)
    pictures = data.pictures(jax.random.randint(row_key, (2,), 0, 2))
    mean, logvar = jax.jit(functools.partial(vae.apply, method="encode"))(
        {"params": params}, pictures
    )
    noise = np.asarray(jax.random.normal(noise_key, mean.shape))
    latents = mean + np.exp(0.5 * np.asarray(logvar)) * noise
    drawn = jax.jit(functools.partial(vae.apply, method="decode"))({"params": params}, latents)
    drawn = np.asarray(drawn, np.float64)
    real, mean, logvar = (np.asarray(each, np.float64) for each in (pictures, mean, logvar))
    absolute = np.abs(drawn - real).mean()
    edges = sum(np.abs(np.diff(drawn - real, axis=axis)).mean() for axis in (1, 2))
    divergence = (0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)).mean()
    psnr = np.mean(-10 * np.log10(((drawn - real) ** 2).mean((1, 2, 3)) / 4))
    wanted = absolute + vae_training.GRADIENT_WEIGHT * edges + vae_training.KL_WEIGHT * divergence
    assert float(loss) == pytest.approx(wanted, rel=1e-4)
    assert float(parts["psnr"]) == pytest.approx(psnr, rel=1e-4)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_gradients_of_word_tables_are_summed_in_float32(name: str):
    encoder = flux_training.build_modules(configs(), jnp.bfloat16)[name]
    ids = jnp.zeros((2, TOKENS), jnp.int32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids)

    def total(variables: Any) -> Any:
        return jnp.sum(encoder.apply(variables, ids).astype(jnp.float32))

    program = str(jax.make_jaxpr(jax.grad(total))(shapes))
    rows = encoder.config.vocab_size
    assert re.findall(rf"(\w+)\[{rows},\d+\] = scatter-add", program) == ["f32"]
