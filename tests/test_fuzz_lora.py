"""Adapters with mixed layouts, missing halves or inconsistent headers: read, or refused."""

import copy
import functools
import json
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.adapters import only, random_layers, small_shapes
from helpers.bounds import tells_or_works
from hypothesis import example, given
from hypothesis import strategies as st

from convert import inspect
from convert.adapters.files import read_adapter, read_layers, write_layers
from convert.adapters.names import LAYOUTS
from convert.adapters.torch_files import JOINED_LAYERS, PEFT_METADATA
from erase.compose import METHODS, combine, fusion
from erase.report import card
from flux_jax.weights.safetensors_files import NUMPY, open_safetensors, read_file, write_file

Headers = dict[str, str]


class Tensors(dict[str, np.ndarray]):
    """Tensors whose failing examples fit on a screen."""

    def __repr__(self) -> str:
        said = (f"{k}: {v.dtype.name}{list(v.shape)} {v.ravel()[-1:]}" for k, v in self.items())
        return f"<{'; '.join(said)}>"


KINDS = ([4], [2, 4], [3])


@functools.cache
def real(layout: str, mixed: int) -> tuple[Tensors, Headers]:
    """Tensors and header of a small adapter; in the uneven ones ranks and alphas differ."""
    words = ("add_q_proj", "add_k_proj") if layout == "flax" or mixed != 1 else ("attn", "proj_mlp")
    ranks, alphas = ([4], [8.0]) if layout == "flax" else (KINDS[mixed], [8.0, 3.0][: mixed + 1])
    layers = only(random_layers(small_shapes(), ranks=ranks, alphas=alphas, seed=mixed), words)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"concept": "cat", "prompts": ["a {}"], "synonyms": ["kitty"]}
        header = {"concept": f"cat {mixed}", "settings": json.dumps(settings), "base_model": "m"}
        file = write_layers(Path(folder), layout, layers, header)
        tensors = Tensors({name: np.array(each) for name, each in read_file(file).items()})
        return tensors, dict(open_safetensors(file).metadata())


ODD = st.sampled_from([0.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 1e300, -1e300, 4.0, 0.1, 1e38])
SHAPES = st.sampled_from([(), (0,), (1,), (2,), (4, 8), (8, 4), (4,), (1, 1), (0, 8), (2, 3, 4)])
KIND = st.sampled_from(list(NUMPY.values()))


def filled(value: float, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.full(shape, value).astype(dtype)


WORDS = st.one_of(
    st.sampled_from([".alpha", ".dora_scale", ".lora_A.weight", ".lora_down.weight", "/A", "/A/B"]),
    st.text(max_size=3),
)
NUMBERS = st.sampled_from(["1", "7", "٣", "²", "00", "-1", "999", "999999999", "9" * 5000])


@st.composite
def changed(
    draw: st.DrawFn, layouts: Sequence[str] = LAYOUTS, kinds: int = len(KINDS), most: int = 4
) -> tuple[Tensors, Headers]:
    """A real adapter after some changes to its tensors and its header."""
    layout, mixed = draw(st.sampled_from(layouts)), draw(st.integers(0, kinds - 1))
    whole, header_of = real(layout, mixed)
    tensors, header = copy.copy(whole), copy.copy(header_of)
    for _ in range(draw(st.integers(0, most))):
        name = draw(st.sampled_from(sorted(tensors) or ["x"]))
        match draw(st.integers(0, 9)):
            case 0:
                tensors.pop(name, None)
            case 1:
                tensors |= dict(draw(st.sampled_from(list(OTHERS))))
            case 2:
                tensors[name] = filled(draw(ODD), draw(SHAPES), draw(KIND))
            case 3 if name in tensors:
                with np.errstate(all="ignore"):
                    tensors[name] = tensors[name].astype(draw(KIND))
            case 4:
                stem = name.rsplit(".", 2)[0] if layout == "diffusers" else name.split(".lora")[0]
                stem = stem.removesuffix(".lora_A").removesuffix(".lora_B")
                tensors[f"{stem}.alpha"] = filled(draw(ODD), draw(SHAPES), draw(KIND))
            case 5 if name in tensors:
                number = draw(NUMBERS)
                tensors[name.replace("_1", f"_{number}").replace(".1", f".{number}")] = tensors.pop(
                    name
                )
            case 6 if name in tensors:
                tensors[name + draw(WORDS)] = tensors.pop(name)
            case 7 if name in tensors and tensors[name].size:
                with np.errstate(all="ignore"):
                    value = np.float64(draw(ODD)).astype(tensors[name].dtype)
                tensors[name] = tensors[name].copy()
                tensors[name].reshape(-1)[-1] = value
            case 8 if name in tensors:
                tensors[name] = tensors[name][..., :-1] if tensors[name].ndim else tensors[name]
            case _:
                header |= draw(HEADERS)
    return tensors, header


OTHERS = tuple(real(layout, 0)[0].items() for layout in LAYOUTS)
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-1, 9),
        st.floats(),
        st.sampled_from(["", "float32", "x", "inf", 10**400]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
LAYER = st.sampled_from(
    [
        "double_blocks.0.txt_attn.qkv",
        "double_blocks.1.img_attn.qkv",
        "single_blocks.0.linear1",
        "single_blocks.1.linear1",
    ]
)
TELLS = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {
            "rank": st.one_of(st.integers(-1, 12), JSON),
            "alpha": st.one_of(ODD, JSON),
            "types": st.one_of(
                st.lists(st.sampled_from(["float32", "bfloat16", "int8", "x"]), max_size=4), JSON
            ),
        }
    ),
)
PATTERNS = st.sampled_from(
    ["(", "(a+)+b", "(.*)*x", "((a|.)(a|.))+$", "[", "\\1", "*", "a{99999999}", ".*", "(?i)x", "x"]
)
NAMED = st.sampled_from(["lora_alpha", "alpha_pattern", "use_dora", "use_rslora", "r"])
PEFT = st.dictionaries(
    NAMED.map("transformer.{}".format),
    st.one_of(ODD, JSON, st.dictionaries(PATTERNS, st.one_of(ODD, JSON), max_size=3)),
)
SETTINGS = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {"concept": st.one_of(st.sampled_from(["cat", "", "\ud800"]), JSON)},
        optional={
            "prompts": JSON,
            "evaluation": st.one_of(
                st.dictionaries(st.sampled_from(["steps", "guidance", "x"]), JSON), JSON
            ),
            "model": st.one_of(st.dictionaries(st.sampled_from(["path", "x"]), JSON), JSON),
            "height": JSON,
            "width": JSON,
            "text_tokens": JSON,
            "upper": JSON,
        },
    ),
)
HEADERS = st.dictionaries(
    st.sampled_from(["alpha", "alpha_type", "format", "concept", "base_model", "method", "x"]),
    st.one_of(
        st.sampled_from(["nan", "inf", "1e999", "0", "-1", "O", "V8", "f8,f8", "S4", "M8[ns]", ""]),
        st.sampled_from(["bfloat16", "int8", "erase.compose", "[bold]", "x\n\u202e"]),
    ),
    max_size=3,
).flatmap(
    lambda plain: st.one_of(
        st.just(plain),
        *(
            told.map(lambda value, name=name: plain | {name: json.dumps(value)})
            for name, told in {
                JOINED_LAYERS: st.one_of(
                    JSON, st.dictionaries(LAYER, st.lists(TELLS, min_size=3, max_size=4))
                ),
                PEFT_METADATA: st.one_of(PEFT, JSON),
                "settings": SETTINGS,
            }.items()
        ),
        *(
            st.just(plain | {name: "[" * 10**5 + "]" * 10**5})
            for name in (JOINED_LAYERS, PEFT_METADATA, "settings")
        ),
    )
)


def written(folder: Path, tensors: Tensors, header: Headers) -> Path:
    file = folder / "adapter.safetensors"
    write_file(file, tensors, header)
    return file


def one_changed(layout: str, *changes: Tensors, mixed: int = 0, **header: Any) -> Any:
    """A real adapter with other tensors and header entries, for an example."""
    whole, header_of = real(layout, mixed)
    tensors, told = copy.copy(whole), copy.copy(header_of)
    for change in changes:
        tensors |= change
    told |= {name: json.dumps(value) for name, value in header.items()}
    return tensors, told


def ones(dtype: Any, *names: str, shape: tuple[int, ...] = ()) -> Tensors:
    return Tensors(dict.fromkeys(names, np.ones(shape, dtype)))


STEM = "transformer.transformer_blocks.{}.attn.add_q_proj"
HALVES = (f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight")
ZERO = STEM.format(0)
QKV = "double_blocks.0.txt_attn.qkv"


def in_block(number: str) -> Any:
    return one_changed("diffusers", ones(np.float32, *(n.format(number) for n in HALVES)))


def tells(name: str, **entry: Any) -> Any:
    told = {"rank": 4, "alpha": 8.0, "types": ["float32"] * 3} | entry
    return one_changed("kohya", joined_layers={name: [told, told, told]})


def with_patterns(*patterns: str, alpha: Any = 1.0) -> Any:
    told = {"transformer.alpha_pattern": dict.fromkeys(patterns, alpha)}
    return one_changed("diffusers", lora_adapter_metadata=told)


@given(adapter=changed())
@example(adapter=in_block("9" * 5000))
@example(adapter=in_block("999999999"))
@example(adapter=one_changed("flax", ones(np.float32, "dual_blocks/attn/add_q_proj/A/B")))
@example(adapter=one_changed("flax", ones(np.float32, "dual_blocks/attn")))
@example(adapter=one_changed("flax", alpha_type="O"))
@example(adapter=one_changed("diffusers", ones(bool, f"{ZERO}.alpha")))
@example(adapter=one_changed("diffusers", ones(np.float32, HALVES[0].format(0))))
@example(adapter=one_changed("diffusers", ones(bool, HALVES[0].format(0), shape=(4, 8))))
@example(adapter=one_changed("diffusers", {f"{ZERO}.alpha": np.array(1e308)}))
@example(adapter=one_changed("diffusers", {HALVES[0].format(0): np.full((4, 8), 1e300)}))
@example(adapter=tells(QKV, rank=float("inf")))
@example(adapter=tells(QKV, rank=0))
@example(adapter=tells(QKV, alpha=float("nan")))
@example(adapter=tells(QKV, alpha=0))
@example(adapter=tells(QKV, alpha=10**400))
@example(adapter=one_changed("kohya", joined_layers=json.loads("[" * 900 + "]" * 900)))
@example(adapter=(real("kohya", 0)[0], {JOINED_LAYERS: "[" * 10**5 + "]" * 10**5}))
@example(adapter=(real("kohya", 0)[0], {PEFT_METADATA: "[" * 10**5 + "]" * 10**5}))
@example(adapter=with_patterns("([a-z_.0-9]+)+x"))
@example(adapter=with_patterns("(.|.)" * 40 + "x"))
@example(adapter=with_patterns("x", alpha=10**400))
def test_adapters_are_read_or_refused(adapter: tuple[Tensors, Headers], tmp_path: Path):
    file = written(tmp_path, *adapter)
    with tells_or_works():
        inspect.lines(read_layers(file))
    with tells_or_works():
        read_adapter(file)


# Compatible with the first of the same layout.
DOG = (real("diffusers", 0)[0], {"concept": "dog"})
HUGE = Tensors({name: np.full(each.shape, 1e200) for name, each in DOG[0].items()})


# Mostly compatible with each other.
EVEN = changed(("diffusers", "flax"), 1, 1)
EVEN_TOO = EVEN.map(lambda part: (part[0], {**part[1], "concept": "dog"}))


@pytest.mark.slow
@given(one=st.one_of(EVEN, changed()), other=EVEN_TOO, method=st.sampled_from(METHODS[:-1]))
@example(one=one_changed("diffusers", settings="damaged"), other=DOG, method="sum")
@example(one=(DOG[0], {"settings": "{"}), other=DOG, method="sum")
@example(one=(DOG[0], {"settings": "[" * 10**5}), other=DOG, method="sum")
@example(one=one_changed("diffusers", settings={"concept": "cat"}), other=DOG, method="sum")
@example(one=(DOG[0], {"method": card.COMPOSED}), other=DOG, method="sum")
@example(one=(HUGE, {}), other=DOG, method="sum")
@example(one=(HUGE, {}), other=DOG, method="svd")
def test_compositions_are_made_or_refused(
    one: tuple[Tensors, Headers],
    other: tuple[Tensors, Headers],
    method: str,
    tmp_path_factory,
):
    folder = tmp_path_factory.mktemp("parts")
    files = [written(folder / name, *part) for name, part in (("a", one), ("b", other))]
    out = folder / "out"
    before = set(folder.rglob("*"))
    with tells_or_works():
        for file in files:
            card.composed_of(file)
        parts = [combine.read_part(str(file)) for file in files]
        combine.check(parts)
        options = Namespace(rank=2)
        made = combine.compose(parts, method, out, options)
        read_adapter(made)
        card.composed_of(made)
    with tells_or_works():
        headers = {str(file): read_layers(file).metadata for file in files}
        fusion.prompts(headers, 2, 0)
    assert all(path == out or out in path.parents for path in set(folder.rglob("*")) - before)
