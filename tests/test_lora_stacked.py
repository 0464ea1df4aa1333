"""Layers with other ranks, alphas, blocks and dtypes in the one tree that the model takes."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers.adapters import WIDTH, only, random_layers, small_shapes

from convert.adapters.layers import Full, Pair
from convert.adapters.stacked import extents, stack, uneven
from flux_jax.errors import InputError
from flux_jax.tree import flatten

FILE = Path("file")
QUERY, KEY, OUT = "dual_blocks/attn/add_q_proj", "single_blocks/attn/to_k", "proj_out"


def pair(rank, alpha=1.0, *, inputs=WIDTH, outputs=WIDTH, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    down, up = rng.normal(size=(rank, inputs)), rng.normal(size=(outputs, rank))
    return Pair(down.astype(dtype), up.astype(dtype), np.array(alpha, np.float32))


def product(change, index):
    """What a stacked target adds to a block's kernel."""
    A, B = (np.asarray(change[name][index], np.float64) for name in "AB")
    return A @ B


def test_each_target_has_its_own_rank_and_as_many_blocks_as_the_file_says():
    layers = {
        (QUERY, 1): pair(2, 5.0),
        (QUERY, 3): pair(3, 1.0, seed=1),
        (KEY, 0): pair(7, seed=2, outputs=2 * WIDTH),
        (OUT, None): pair(1, 2.0, seed=3),
    }
    lora, alpha = stack(FILE, layers)
    leaves = flatten(lora)
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        f"{QUERY}/A": (4, WIDTH, 3),
        f"{QUERY}/B": (4, 3, WIDTH),
        f"{KEY}/A": (1, WIDTH, 7),
        f"{KEY}/B": (1, 7, 2 * WIDTH),
        f"{OUT}/A": (WIDTH, 1),
        f"{OUT}/B": (1, WIDTH),
    }
    # The largest rank, so that the scale is 1.
    assert alpha == 7
    for (target, block), each in layers.items():
        change = {name: leaves[f"{target}/{name}"] for name in "AB"}
        index = () if block is None else block
        wanted = float(each.scale) * (each.up @ each.down).T
        np.testing.assert_allclose(product(change, index), wanted, rtol=1e-5, atol=1e-6)
    for block in (0, 2):
        assert not leaves[f"{QUERY}/A"][block].any()
        assert not leaves[f"{QUERY}/B"][block].any()


def test_one_rank_and_alpha_in_all_blocks_stay_bit_for_bit():
    shapes = {place: shape for place, shape in small_shapes().items() if place[1] is not None}
    layers = only(random_layers(shapes, types=(ml_dtypes.bfloat16,)), ("attn",))
    assert uneven(layers) is None
    lora, alpha = stack(FILE, layers)
    leaves = flatten(lora)
    assert float(alpha) == 8
    for (target, block), each in layers.items():
        for name, part in (("A", each.down), ("B", each.up)):
            leaf = leaves[f"{target}/{name}"]
            assert leaf.dtype == ml_dtypes.bfloat16
            assert leaf[block].tobytes() == part.T.tobytes()


def test_scales_of_bfloat16_layers_are_not_rounded_to_it():
    layers = {
        (QUERY, 0): pair(3, 1.0, dtype=ml_dtypes.bfloat16),
        (QUERY, 1): pair(2, 1.0, dtype=ml_dtypes.bfloat16, seed=1),
    }
    B = flatten(stack(FILE, layers)[0])[f"{QUERY}/B"]
    wanted = layers[QUERY, 0].up.astype(np.float64).T / 3
    np.testing.assert_allclose(B[0], wanted, rtol=1e-6)


def test_all_kinds_have_leaves_of_their_own_and_nothing_where_a_block_has_none():
    vector = np.arange(WIDTH, dtype=np.float32)
    delta = np.ones((WIDTH, WIDTH), ml_dtypes.bfloat16)
    layers = {
        (QUERY, 0): Full(delta, vector),
        (QUERY, 2): Pair(
            *(each for each in (pair(2).down, pair(2).up)), np.array(2, np.float32), None, vector
        ),
    }
    leaves = {
        path.rpartition("/")[2]: leaf for path, leaf in flatten(stack(FILE, layers)[0]).items()
    }
    assert leaves.keys() == {"A", "B", "D", "b", "M"}
    assert leaves["D"].dtype == ml_dtypes.bfloat16
    assert (leaves["D"][0] == 1).all()
    np.testing.assert_array_equal(leaves["b"], [vector, 0 * vector, 0 * vector])
    np.testing.assert_array_equal(leaves["M"][2], vector)
    assert np.isnan(leaves["M"][:2]).all()
    assert not leaves["A"][:2].any()
    assert not leaves["D"][1:].any()


@pytest.mark.parametrize(("inputs", "outputs"), [(WIDTH, 3 * WIDTH), (3 * WIDTH, WIDTH), (1, 1)])
def test_ranks_above_a_layers_widths_take_no_more_than_its_weight(inputs, outputs):
    layers = {
        (KEY, 0): pair(2, inputs=inputs, outputs=outputs),
        (KEY, 37): pair(20_000, 3.0, inputs=inputs, outputs=outputs, seed=1),
    }
    lora, _ = stack(FILE, layers)
    leaves = {path.rpartition("/")[2]: leaf for path, leaf in flatten(lora).items()}
    assert leaves["A"].shape == (38, inputs, min(inputs, outputs))
    big = layers[KEY, 37]
    wanted = 3 / 20_000 * (big.up.astype(np.float64) @ big.down).T
    np.testing.assert_allclose(product(leaves, 37), wanted, rtol=1e-4, atol=1e-6)


def test_widths_that_no_model_has_are_refused_in_one_line():
    odd = {(KEY, 0): pair(2), (KEY, 1): pair(2, outputs=WIDTH + 1)}
    for attempt in (extents, stack):
        with pytest.raises(InputError) as caught:
            attempt(FILE, odd)
        assert str(caught.value) == (
            "file: single_transformer_blocks.1.attn.to_k has 8 inputs and 9 outputs, in another "
            "block 8 and 8; take a file of one model"
        )
    far = {(KEY, 0): pair(1, inputs=1 << 14, outputs=1 << 14)}
    far[KEY, 999] = far[KEY, 0]
    with pytest.raises(InputError, match="1000 blocks of 16384 inputs and 16384 outputs") as caught:
        stack(FILE, far)
    assert len(str(caught.value)) <= 400
