"""The name tables' mapping, without any model code of our own."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from helpers import tiny
from safetensors.numpy import save_file

from flux_jax.errors import InputError
from flux_jax.tree import flatten, nest
from flux_jax.weights.mapping import is_finite, to_flax, to_torch
from flux_jax.weights.rules import LINEAR, VECTOR, Joined, Permuted, Row, Table, match, placeholders
from flux_jax.weights.safetensors_files import read_component
from flux_jax.weights.tables import CLIP, COMPONENTS, T5, TRANSFORMER, VAE


def shapes_of(table, tensors):
    """Shapes of the Flax tree for these tensors, by reading the table forwards.

    The first row whose PyTorch name matches wins, as T5's relative bias of block 0 is its own leaf.
    """
    shapes = {}
    for name, tensor in tensors.items():
        for row in table.rows:
            numbers = match(row.torch, name.removeprefix(table.prefix))
            if numbers is not None:
                break
        else:
            raise AssertionError(f"no row for {name}")
        shape = tuple(tensor.shape[axis] for axis in row.rule.axes)
        (counter,) = placeholders(row.torch) - placeholders(row.flax[0]) or (None,)
        if counter is not None:
            depth = max(int(numbers[counter]) + 1, shapes.get(row.flax[0], (0,))[0])
            shape = (depth, *shape)
        shapes[row.flax[0].format(**numbers)] = shape
    return nest({path: SimpleNamespace(shape=shape) for path, shape in shapes.items()})


def arrays(model, dtype=np.float32):
    return {name: value.numpy().astype(dtype) for name, value in model.state_dict().items()}


MODELS = {
    "dev": (TRANSFORMER, lambda: tiny.transformer()),
    "schnell": (TRANSFORMER, lambda: tiny.transformer(guidance=False, dual=1, single=1)),
    "deep": (TRANSFORMER, lambda: tiny.transformer(dual=3, single=11, heads=3)),
    "clip": (CLIP, lambda: tiny.clip(50)),
    "t5": (T5, lambda: tiny.t5(50, depth=3)),
    "vae": (VAE, lambda: tiny.vae()),
    "vae-deep": (VAE, lambda: tiny.vae(widths=(8, 16, 16), layers=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_exact_and_keeps_the_dtype(name, dtype):
    table, make = MODELS[name]
    tensors = arrays(make(), dtype)
    params = to_flax(table, tensors, shapes_of(table, canonical(table, tensors)))
    assert {leaf.dtype for leaf in flatten(params).values()} == {np.dtype(dtype)}
    again = to_torch(table, params)
    wanted = canonical(table, tensors)
    assert again.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert again[key].shape == tensor.shape
        assert again[key].tobytes() == tensor.tobytes(), key


def canonical(table, tensors):
    """Tensors under the names that we write."""
    return {
        table.prefix + name.removeprefix(table.prefix): tensor
        for name, tensor in tensors.items()
        if name not in table.copies
    }


def test_values_land_where_flax_expects_them():
    model = tiny.transformer()
    tensors = arrays(model)
    params = to_flax(TRANSFORMER, tensors, shapes_of(TRANSFORMER, tensors))
    block = model.transformer_blocks[1]
    np.testing.assert_array_equal(
        params["dual_blocks"]["attn"]["to_out"]["kernel"][1],
        block.attn.to_out[0].weight.detach().numpy().T,
    )
    autoencoder = tiny.vae()
    tensors = arrays(autoencoder)
    params = to_flax(VAE, tensors, shapes_of(VAE, tensors))
    kernel = params["decoder"]["up_blocks_1"]["resnets_0"]["conv1"]["kernel"]
    weight = autoencoder.decoder.up_blocks[1].resnets[0].conv1.weight.detach().numpy()
    assert kernel.shape == (3, 3, 16, 8)
    np.testing.assert_array_equal(kernel[2, 0], weight[:, :, 2, 0].T)


def test_torch_tensors_are_taken_as_they_are():
    state = tiny.transformer().state_dict()
    params = to_flax(TRANSFORMER, state, shapes_of(TRANSFORMER, state))
    np.testing.assert_array_equal(params["proj_out"]["bias"], state["proj_out.bias"].numpy())


def test_every_name_is_there_once():
    for table in COMPONENTS.values():
        assert len({row.torch for row in table.rows}) == len(table.rows)
        assert len({row.flax for row in table.rows}) == len(table.rows)


def test_defects_are_counted_and_one_of_each_kind_is_shown():
    tensors = arrays(tiny.transformer())
    shapes = shapes_of(TRANSFORMER, tensors)
    del tensors["proj_out.bias"], tensors["transformer_blocks.1.attn.norm_q.weight"]
    tensors["x_embedder.weight"] = tensors["x_embedder.weight"].T
    extra = {
        name.replace("blocks.0.", "blocks.7."): tensor
        for name, tensor in tensors.items()
        if name.startswith("transformer_blocks.0.")
    }
    with pytest.raises(InputError) as caught:
        to_flax(TRANSFORMER, tensors | extra, shapes, source="somewhere/transformer")
    said, surplus = str(caught.value), next(iter(extra))
    start, *shown, dots, mend = said.split("; ")
    first = "missing: transformer_blocks.1.attn.norm_q.weight [16]"
    assert start == (f"somewhere/transformer: {3 + len(extra)} tensors do not fit: {first}")
    assert shown == [
        "misshapen: x_embedder.weight is [16, 32], expected [32, 16]",
        f"surplus: {surplus} {list(extra[surplus].shape)}",
    ]
    assert (dots, mend) == ("...", "take weights and config.json of one model")


@pytest.mark.parametrize("name", ["x", "x" * 10_000])
def test_a_refusal_is_a_line_whatever_the_names(name):
    tensors = arrays(tiny.transformer())
    shapes = shapes_of(TRANSFORMER, tensors)
    names = {f"{name}.{number}": np.zeros(3) for number in range(1000)}
    with pytest.raises(InputError, match=": 1000 tensors do not fit") as caught:
        to_flax(TRANSFORMER, tensors | names, shapes)
    assert len(str(caught.value)) <= 400
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("surplus: x") >= 1


FLOATS = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
}


@pytest.mark.parametrize(
    ("types", "common"),
    [
        ("float8_e4m3fn bfloat16", "bfloat16"),
        ("float16 float8_e5m2", "float16"),
        ("float8_e4m3fn float8_e5m2", "bfloat16"),
        ("bfloat16 float16", "float32"),
        ("float8_e4m3fn bfloat16 float16", "float32"),
        ("float32 bfloat16 float8_e5m2", "float32"),
    ],
)
def test_blocks_of_unlike_types_get_a_type_that_holds_all_of_them(types: str, common: str):
    tensors = arrays(tiny.transformer())
    names = [f"single_transformer_blocks.{block}.proj_mlp.weight" for block in range(3)]
    for block, name in enumerate(names):
        kinds = types.split()
        tensors[name] = tensors[name].astype(FLOATS[kinds[block % len(kinds)]])
    params = to_flax(TRANSFORMER, tensors, shapes_of(TRANSFORMER, tensors))
    leaf = params["single_blocks"]["proj_mlp"]["kernel"]
    assert leaf.dtype.name == common
    for block, name in enumerate(names):
        np.testing.assert_array_equal(
            leaf[block].astype(np.float64), tensors[name].astype(np.float64).T
        )
    assert params["dual_blocks"]["ff"]["linear_1"]["kernel"].dtype == np.float32


def test_whole_numbers_are_no_weights():
    tensors = arrays(tiny.transformer())
    name = "single_transformer_blocks.1.proj_mlp.weight"
    tensors[name] = np.ones_like(tensors[name], np.int8)
    with pytest.raises(InputError, match=f"integers: {name} is int8"):
        to_flax(TRANSFORMER, tensors, shapes_of(TRANSFORMER, tensors))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_number_of_every_type_is_known_as_finite_or_not(dtype: str):
    kind = np.dtype(FLOATS[dtype])
    bits = {1: range(256), 2: range(0, 65536, 7), 4: range(0, 2**32, 10_000_019)}[kind.itemsize]
    last = {1: [], 2: [0x7F80, 0x7C00, 0x7FC0, 0x7FFF], 4: [0x7F800000, 0xFF800001, 0x7FC00000]}
    numbers = np.array([*bits, *last[kind.itemsize]], f"u{kind.itemsize}").view(kind)
    with np.errstate(invalid="ignore"):
        expected = np.isfinite(numbers.astype(np.float64))
    assert [is_finite(number.reshape(1)) for number in numbers] == expected.tolist()
    assert not is_finite(numbers)
    assert is_finite(numbers[expected])


def test_leaves_without_a_name_are_refused():
    with pytest.raises(InputError, match=r"surplus: dual_blocks/attn/to_z/kernel \[1, 2, 2\]"):
        to_torch(TRANSFORMER, nest({"dual_blocks/attn/to_z/kernel": np.zeros((1, 2, 2))}))


def test_t5_alias_may_replace_or_repeat_the_embedding_but_not_contradict_it():
    state = arrays(tiny.t5(50))
    shapes = shapes_of(T5, canonical(T5, state))
    alias, name = "encoder.embed_tokens.weight", "shared.weight"
    assert alias in state
    both = to_flax(T5, state, shapes)
    only_alias = {key: value for key, value in state.items() if key != name}
    for path, leaf in flatten(to_flax(T5, only_alias, shapes)).items():
        np.testing.assert_array_equal(leaf, flatten(both)[path])
    with pytest.raises(InputError, match=f"{alias} differs from {name}"):
        to_flax(T5, state | {alias: state[name] + 1}, shapes)


def test_clip_with_prefix_and_old_buffer_equals_clip_without():
    plain = {name.removeprefix("text_model."): x for name, x in arrays(tiny.clip(50)).items()}
    shapes = shapes_of(CLIP, plain)
    old = {f"text_model.{name}": tensor for name, tensor in plain.items()}
    old["text_model.embeddings.position_ids"] = np.arange(77)[None]
    new = flatten(to_flax(CLIP, plain, shapes))
    for path, leaf in flatten(to_flax(CLIP, old, shapes)).items():
        np.testing.assert_array_equal(leaf, new[path])


def test_another_layout_is_only_another_table():
    flat = {
        f"blocks/{name}/kernel": np.random.default_rng(number).normal(size=(3, 4, 5 + number))
        for number, name in enumerate(("q", "k", "mlp"))
    } | {"out/kernel": np.arange(6.0).reshape(2, 3)}
    joined = tuple(f"blocks/{name}/kernel" for name in ("q", "k", "mlp"))
    table = Table(
        (
            Row("deep.{i}.linear1.weight", joined, Joined(LINEAR)),
            Row("out.weight", ("out/kernel",), LINEAR),
        )
    )
    tensors = to_torch(table, nest(flat))
    assert {name: x.shape for name, x in tensors.items()} == {
        "out.weight": (3, 2),
        **{f"deep.{block}.linear1.weight": (18, 4) for block in range(3)},
    }
    again = flatten(to_flax(table, tensors, nest(flat)))
    for path, leaf in flat.items():
        np.testing.assert_array_equal(again[path], leaf)
    del flat["blocks/k/kernel"]
    with pytest.raises(InputError, match="missing: blocks/k/kernel, the partner of blocks/q"):
        to_torch(table, nest(flat))


def test_permutation_and_its_shape_are_inverse():
    rule = Permuted((2, 3, 1, 0))
    weight = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    kernel = rule.to_leaf(weight, [(4, 5, 3, 2)], 0)
    assert kernel.shape == (4, 5, 3, 2)
    assert rule.torch_shape([kernel.shape]) == weight.shape
    np.testing.assert_array_equal(rule.to_torch([kernel]), weight)


def test_leaves_are_made_one_after_the_other(tmp_path):
    names = ("a.0", "a.1", "b")
    arrays = {name: np.full(4, number, np.float32) for number, name in enumerate(names)}
    save_file(arrays, tmp_path / "model.safetensors")
    tensors = read_component(tmp_path)
    table = Table((Row("a.{i}", ("a",), VECTOR), Row("b", ("b",), VECTOR)))
    placed, seen, advanced = [], [], []

    def place(path, leaf):
        placed.append((path, leaf.tolist()))
        seen.append(sum(advanced))
        return len(placed)

    shapes = {"a": np.empty((2, 4)), "b": np.empty(4)}
    made = to_flax(table, tensors, shapes, place=place, advance=advanced.append)
    assert made == {"a": 1, "b": 2}
    assert placed == [("a", [[0] * 4, [1] * 4]), ("b", [2] * 4)]
    assert seen == [32, 48]


def test_the_largest_leaf_is_placed_first():
    sizes = {"a": 2, "b": 5, "c": 3}
    tensors = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    table = Table(tuple(Row(name, (name,), VECTOR) for name in sizes))
    placed = []
    made = to_flax(table, tensors, tensors, place=lambda path, leaf: placed.append(path))
    assert placed == ["b", "c", "a"]
    assert list(made) == ["a", "b", "c"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_listed(dtype):
    table = Table((Row("q.{i}", ("q",), VECTOR), Row("b", ("b",), VECTOR)))
    tensors = {name: np.ones(3, dtype) for name in ("q.0", "q.1", "q.2", "b")}
    shapes = {"q": np.empty((3, 3)), "b": np.empty(3)}
    to_flax(table, tensors, shapes)
    tensors["q.1"][2], tensors["b"][0] = np.inf, np.nan
    with pytest.raises(InputError, match=r"2 tensors .*: q\.1 .*: b contains infinities"):
        to_flax(table, tensors, shapes)
