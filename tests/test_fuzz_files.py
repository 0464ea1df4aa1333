"""Inconsistent, truncated, mutated or random safetensors files: read, or refused with an error."""

import functools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.adapters import only, random_layers, small_shapes
from helpers.bounds import tells_or_works
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from convert import inspect
from convert.adapters.files import read_adapter, read_layers, write_layers
from convert.adapters.names import LAYOUTS
from flux_jax.weights.safetensors_files import NUMPY, STEMS, find_weights, read_component, read_file

MODEST = 256 << 20
NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
NAMES = st.one_of(
    st.sampled_from(
        [
            "a",
            "__metadata__",
            "x/y",
            "x",
            "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight",
            "transformer.transformer_blocks.0.attn.add_q_proj.lora_B.weight",
            "dual_blocks/attn/add_q_proj/A",
        ]
    ),
    st.text(max_size=5),
)
TYPES = st.one_of(
    st.sampled_from([*NUMPY, "U16", "U64", "F4", "F8_E8M0", "C64", "f32", "", "F32\0"]), JSON
)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """JSON text of a header: mostly well-formed, with possibly repeated names."""
    entries, end = [], 0
    for _ in range(draw(st.integers(0, 4))):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        kind = draw(st.sampled_from([*NUMPY]))
        size = int(np.prod(shape, dtype=int)) * NUMPY[kind].itemsize
        entry: Any = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
        for lie in draw(st.lists(st.sampled_from(["dtype", "shape", "data_offsets", "all"]))):
            few = draw(st.lists(NUMBERS, max_size=3))
            many = st.sampled_from([[1] * 40, [1] * 70, [0, 2**63], [2**63, 0], [2**32] * 2])
            others = {
                "dtype": TYPES,
                "shape": st.one_of(JSON, st.just(few), many),
                "data_offsets": st.one_of(JSON, st.just(few), st.just([end, end - size])),
            }
            if lie == "all" or not isinstance(entry, dict):
                entry = draw(JSON)
            else:
                entry[lie] = draw(others[lie])
        entries.append(f"{json.dumps(draw(NAMES))}: {json.dumps(entry)}")
    return ("{" + ", ".join(entries) + "}").encode()


def file_of(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    said = len(header) if length is None else length
    return struct.pack("<Q", said) + header + data


@functools.cache
def real(layout: str) -> bytes:
    """A small adapter's file in one of the layouts."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        layers = only(random_layers(small_shapes()), ("add_q_proj", "add_k_proj"))
        return write_layers(Path(folder), layout, layers, {"concept": "cat"}).read_bytes()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A real file after some changes, most of them in its header."""
    content = bytearray(real(draw(st.sampled_from(LAYOUTS))))
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, 8), st.integers(0, header), st.integers(0, 10**4)))
        place = min(place, len(content))
        piece = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"}", b'"', b"99", b"-"])))
        match draw(st.sampled_from(["flip", "insert", "replace", "cut", "remove"])):
            case "flip" if place < len(content):
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                content[place:place] = piece
            case "replace":
                content[place : place + len(piece)] = piece
            case "remove":
                del content[place : place + len(piece)]
            case "cut":
                del content[place:]
    return bytes(content)


LENGTHS = st.sampled_from([None, 0, 1, 2**31, 2**63, 2**64 - 1, 100_000_000, 100_000_001])
CONTENTS = st.one_of(
    mutated(),
    st.builds(file_of, headers(), st.binary(max_size=60), LENGTHS),
    st.builds(file_of, headers(), st.integers(0, 60).map(bytes)),
    st.builds(file_of, JSON.map(json.dumps).map(str.encode), st.binary(max_size=8)),
    st.builds(file_of, st.binary(max_size=30), st.binary(max_size=8)),
    st.binary(max_size=40),
)
DIGITS = b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'
DEEP = b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"
TWICE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def shaped(shape: list[int]) -> bytes:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 if 0 not in shape else 0]}
    return file_of(json.dumps({"a": entry}).encode(), bytes(4 if 0 not in shape else 0))


@given(content=CONTENTS)
@example(content=b"")
@example(content=file_of(b"{}"))
@example(content=file_of(DIGITS, bytes(4)))
@example(content=file_of(DEEP))
@example(content=file_of(b'{"a":' + TWICE + b',"a":' + TWICE + b"}", bytes(4)))
@example(content=file_of(b'{"\xff":' + TWICE + b"}", bytes(4)))
@example(content=file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)))
@example(content=shaped([1] * 65))
@example(content=shaped([0, 2**63]))
@example(content=shaped([2**62, 0]))
def test_files_are_read_or_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with tells_or_works(limit=MODEST):
        tensors = read_file(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)
    with tells_or_works():
        read_layers(path)
    with tells_or_works():
        read_adapter(path)


@given(content=CONTENTS)
@example(content=real("kohya"))
def test_whatever_is_read_can_be_shown(content: bytes, tmp_path: Path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with tells_or_works():
        found = read_layers(path)
        rows = inspect.lines(found)
        console = Console(width=80, quiet=True)
        console.print(inspect.header_table(path, found, rows))
        console.print(inspect.target_table(rows))


def refused_text(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        inspect.main([str(path)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_the_command_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "file.safetensors"
    for content in (b"", b"\0" * 8, file_of(DEEP), real("kohya")[:-1]):
        path.write_bytes(content)
        assert "not a safetensors file" in refused_text(path, capsys)


INDICES = st.one_of(
    JSON.map(json.dumps),
    st.dictionaries(NAMES, st.one_of(st.text(max_size=4), JSON, st.just("one.safetensors"))).map(
        lambda places: json.dumps({"weight_map": places})
    ),
    st.text(max_size=10),
)


@given(text=INDICES)
@example(text="[" * 10**5)
@example(text='{"weight_map": []}')
@example(text='{"weight_map": {"a": 5}}')
@example(text='{"weight_map": {"a": ["one.safetensors"]}}')
@example(text='{"weight_map": {"a": "../one.safetensors"}}')
@example(text=json.dumps({"weight_map": {"a": "x" * 300}}))
@example(text='{"weight_map": {"a": "x\\u0000"}}')
@example(text='{"weight_map": {"a": "\\ud800"}}')
@example(text='"' + "9" * 5000 + '"')
@example(text="9" * 5000)
def test_indices_of_shards_are_read_or_refused(text: str, tmp_path: Path):
    (tmp_path / "one.safetensors").write_bytes(file_of(b'{"a":' + TWICE + b"}", bytes(4)))
    index = tmp_path / f"{STEMS[0]}.safetensors.index.json"
    index.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert find_weights(tmp_path) == index
    with tells_or_works(limit=MODEST):
        assert set(read_component(tmp_path)) <= {"a"}
