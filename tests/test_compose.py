"""Composition: sums are exact, the approximation is optimal, incompatible adapters are refused."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from convert.adapters.files import read_adapter, read_layers, write_layers, write_lora
from convert.adapters.layers import Full, Pair
from erase.cli.compose import main
from erase.compose.combine import check, compose, plain, read_part, summed, truncated
from erase.model.adapters import parse_adapter
from flux_jax import load
from flux_jax.errors import InputError
from flux_jax.lora import TEXT_QUERY_KEY
from flux_jax.tree import flatten, nest

Make = Callable[..., Path]
RANK, WIDTH = 3, 32


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a random adapter for the tiny transformer, with its concept in the file's metadata."""

    def made(concept: str | None, *, rank=RANK, width=WIDTH, alpha=2.0, **header) -> Path:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        rng = np.random.default_rng(len(folder.name) + sum(map(ord, concept or "")))
        flat = {}
        for target in TEXT_QUERY_KEY:
            flat[f"{target}/A"] = rng.normal(size=(2, WIDTH, rank)).astype(np.float32)
            flat[f"{target}/B"] = rng.normal(size=(2, rank, width)).astype(np.float32)
        metadata = {"base_model": "tiny"} | ({"concept": concept} if concept else {}) | header
        write_lora(folder, nest(flat), alpha, metadata)
        return folder

    return made


def changes(path: Path) -> dict[str, np.ndarray]:
    """Each target's change [L, I, O]."""
    found = read_adapter(path)
    flat = flatten(found.lora)
    return {
        target: found.alpha
        / flat[f"{target}/A"].shape[-1]
        * (flat[f"{target}/A"].astype(np.float64) @ flat[f"{target}/B"])
        for target in {name.rpartition("/")[0] for name in flat}
    }


def assert_sum(path: Path, parts: dict[Path, float]):
    """Assert that a file's change is the weighted sum of the parts'."""
    terms = [(weight, changes(part)) for part, weight in parts.items()]
    for target, change in changes(path).items():
        wanted = sum(weight * each[target] for weight, each in terms)
        np.testing.assert_allclose(change, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "factors"),
    [("sum", (1, 0.5, -2)), ("concat", (1, 0.5, -2)), ("normalized", (-2, -1, 4))],
)
def test_a_sum_is_exact_at_the_sum_of_the_ranks(make: Make, tmp_path: Path, method, factors):
    cat, dog, car = make("cat"), make("dog", alpha=5.0), make("car")
    out = tmp_path / "out"
    main([str(cat), f"{dog}:0.5", f"{car}:-2", "--method", method, "--out", str(out)])
    assert_sum(out, dict(zip((cat, dog, car), factors, strict=True)))
    assert next(iter(flatten(read_adapter(out).lora).values())).shape[-1] == 3 * RANK


def test_biases_add_up_and_fusion_refuses_them(make: Make):
    one, two = (read_part(str(make(name))) for name in ("cat", "dog"))
    place, pair = next(iter(one.layers.items()))
    bias = np.arange(WIDTH, dtype="f4")
    biased = replace(one, layers={**one.layers, place: replace(pair, bias=bias)})
    other = two.layers[place]
    both = replace(two, layers={**two.layers, place: replace(other, bias=bias + 1)})
    for parts, wanted in (([biased, two], 2 * bias), ([biased, both], -bias - 3)):
        made = summed(parts, [2, -3])
        np.testing.assert_allclose(made[place].bias, wanted)
        assert sum(each.bias is not None for each in made.values()) == 1
        shortened, _ = truncated(made, 1)
        np.testing.assert_allclose(shortened[place].bias, wanted)
    options = argparse.Namespace(rank=None, keep=None, prompts=1, seed=0)
    with pytest.raises(InputError, match="has biases, which fusion does not support"):
        compose([biased, two], "fusion", Path("out"), options)


def test_weights_of_one_are_normalized_to_equal_shares(make: Make, tmp_path: Path):
    parts = [make(name) for name in ("cat", "dog", "car", "bus")]
    main([*map(str, parts), "--method", "normalized", "--out", str(tmp_path / "out")])
    assert_sum(tmp_path / "out", dict.fromkeys(parts, 0.25))


@pytest.mark.slow
def test_a_sum_draws_what_its_adapters_draw_together(make: Make, tmp_path: Path, tiny_folder: Path):
    cat, dog = make("cat"), make("dog")
    main([str(cat), f"{dog}:0.5", "--method", "sum", "--out", str(tmp_path / "out")])
    pipe = load(tiny_folder, jnp.float32)
    given = (pipe.noise([0], 16, 16), pipe.encode(["a cat"]), jnp.ones(1), pipe.image_ids(16, 16))
    apart = [parse_adapter(str(cat)), parse_adapter(f"{dog}:0.5")]
    together = [parse_adapter(str(tmp_path / "out"))]
    wanted = pipe.velocity(*given, adapters=apart)
    np.testing.assert_allclose(pipe.velocity(*given, adapters=together), wanted, atol=2e-5)
    assert np.abs(wanted - pipe.velocity(*given)).max() > 1e-2


@pytest.mark.parametrize("rank", [1, 4, 6])
def test_svd_is_the_best_approximation(make: Make, tmp_path: Path, rank: int, capsys):
    cat, dog = make("cat"), make("dog")
    out = tmp_path / "out"
    main([str(cat), str(dog), "--method", "svd", "--rank", str(rank), "--out", str(out)])
    shown = capsys.readouterr().out
    exact = [changes(part) for part in (cat, dog)]
    for target, change in changes(out).items():
        wanted = exact[0][target] + exact[1][target]
        values = np.linalg.svd(wanted, compute_uv=False)
        least = np.linalg.norm(values[:, rank:])
        assert np.linalg.norm(change - wanted) == pytest.approx(least, abs=1e-4)
        assert f"{least / np.linalg.norm(values):.3f}" in shown


def test_a_change_of_nothing_has_no_error():
    place = "proj_out", None
    made, errors = truncated({place: plain(np.ones((2, 4)), np.zeros((4, 2)))}, 1)
    assert errors == {"proj_out": 0}
    assert not np.any(made[place].up @ made[place].down)


def test_the_file_says_what_it_is_made_of(make: Make, tmp_path: Path):
    cat, dog = make("cat", version="1"), make("dog", version="1")
    main([str(cat), f"{dog}:0.5", "--method", "svd", "--out", str(tmp_path / "out")])
    metadata = read_adapter(tmp_path / "out").metadata
    settings = json.loads(metadata.pop("settings"))
    assert metadata == {
        "concept": "cat, dog",
        "base_model": "tiny",
        "method": "erase.compose",
        "version": "1",
    }
    assert (settings["method"], settings["rank"]) == ("svd", RANK)
    assert [part["weight"] for part in settings["adapters"]] == [1, 0.5]


def uneven_parts(tmp_path: Path) -> tuple[Path, Path]:
    """Adapters of different ranks, alphas, targets and blocks."""
    rng = np.random.default_rng(0)

    def pair(rank: int, alpha: float) -> Pair:
        down, up = rng.normal(size=(rank, WIDTH)), rng.normal(size=(WIDTH, rank))
        return Pair(down.astype("f4"), up.astype("f4"), np.array(alpha, "f4"))

    query, key = TEXT_QUERY_KEY
    one = {(query, 0): pair(2, 4.0), (query, 1): pair(3, 3.0)}
    two = {(query, 1): pair(5, 1.0), (key, 0): pair(1, 2.0), ("x_embedder", None): pair(2, 2.0)}
    return (
        write_layers(tmp_path / "one", "diffusers", one),
        write_layers(tmp_path / "two", "diffusers", two),
    )


@pytest.mark.parametrize(("method", "rank"), [("sum", 8), ("svd", 5), ("svd", 4)])
def test_ranks_alphas_targets_and_blocks_may_differ(tmp_path: Path, method: str, rank: int):
    one, two = uneven_parts(tmp_path)
    out = tmp_path / "out"
    more = ["--rank", str(rank)] if rank == 4 else []
    main([str(one), f"{two}:-0.5", "--method", method, "--out", str(out), *more])
    made = read_layers(out).layers
    parts = (read_layers(one).layers, 1.0), (read_layers(two).layers, -0.5)
    assert made.keys() == parts[0][0].keys() | parts[1][0].keys()
    assert max(pair.rank for pair in made.values()) == rank
    for place, pair in made.items():
        wanted = sum(
            weight * float(layers[place].scale) * layers[place].up @ layers[place].down
            for layers, weight in parts
            if place in layers
        )
        u, values, v = np.linalg.svd(wanted)
        wanted = (u[:, :rank] * values[:rank]) @ v[:rank]
        np.testing.assert_allclose(float(pair.scale) * pair.up @ pair.down, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bias": np.ones(WIDTH, "f4"), "magnitude": np.ones(WIDTH, "f4")}, "DoRA with a bias"),
        ({"magnitude": np.ones(WIDTH, "f4")}, "DoRA"),
        ({}, "full difference"),
    ],
)
def test_what_is_not_low_rank_is_refused_by_name(make: Make, tmp_path, change, told):
    part = read_part(str(make("cat")))
    place, pair = next(iter(part.layers.items()))
    layer = replace(pair, **change) if change else Full(pair.up @ pair.down)
    other = replace(part, path=tmp_path / "b", metadata={}, layers={**part.layers, place: layer})
    with pytest.raises(InputError) as caught:
        check([part, other])
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'b'}: transformer_blocks.0.attn.add_")
    assert f"is a {told}, but" in message
    assert "convert.merge" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 16}, r"is \[16, 32\], in .* \[32, 32\] \(outputs, inputs\)"),
        ({"base_model": "another"}, "made for another, .* for tiny"),
        ({"concept": "cat"}, "concept 'cat' appears 2 times"),
    ],
)
def test_adapters_that_do_not_fit_are_named(make: Make, tmp_path: Path, other, message: str):
    one, two = make("cat"), make(**{"concept": "dog"} | other)
    with pytest.raises(InputError, match=message):
        check([read_part(str(one)), read_part(str(two))])


def test_one_file_twice_and_one_alone_are_refused(make: Make):
    part = read_part(str(make(None)))
    with pytest.raises(InputError, match="appears 2 times"):
        check([part, part])
    with pytest.raises(InputError, match="at least two"):
        check([part])


@pytest.mark.parametrize("weight", ["strong", "nan", "inf", ""])
def test_a_weight_must_be_a_number(make: Make, weight: str):
    with pytest.raises(InputError, match=f"strength '{weight}' is not a finite number"):
        read_part(f"{make('cat')}:{weight}")


def test_what_cannot_be_composed_is_refused_and_nothing_is_written(
    make: Make, tmp_path: Path, capsys
):
    cat, dog, out = make("cat"), make("dog"), tmp_path / "out"
    lora = read_adapter(dog).lora
    lora["dual_blocks"]["attn"]["add_q_proj"]["B"][0, 0, 0] = np.nan
    write_lora(tmp_path / "broken", lora, 1.0)
    write_lora(tmp_path / "idle", read_adapter(dog).lora, 0.0)
    refused = {
        (cat, tmp_path / "broken", "sum"): "infinities or NaN",
        (cat, tmp_path / "idle", "sum"): "changes nothing: all 4 layers have an alpha of 0",
        (cat, f"{dog}:-1", "normalized"): "sum to 0",
        (cat, dog, "fusion"): "lacks the settings of its training",
    }
    for (one, two, method), message in refused.items():
        with pytest.raises(SystemExit) as end:
            main([str(one), str(two), "--method", method, "--out", str(out)])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(cat), str(dog), "--method", "svd", "--rank", "33", "--out", str(out)])
    assert "rank = 33 must be from 1 to 6" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    write_lora(out, read_adapter(cat).lora, 1.0)
    with pytest.raises(SystemExit):
        main([str(cat), str(dog), "--method", "sum", "--out", str(out)])
    assert "exists" in capsys.readouterr().err
