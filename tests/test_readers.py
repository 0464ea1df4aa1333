"""Files of unknown origin: formats, kinds, limits, types, and many damaged ones in a short test."""

import json
import os
import resource
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import warm
from helpers.report_run import write_run
from PIL import Image
from typing_extensions import TypedDict

from benchmarks.torture import files as torture
from benchmarks.torture import samples
from benchmarks.torture.weights import write_orbax
from convert.adapters.files import read_layers
from erase.data import captioned_folder
from erase.report import report
from erase.runtime.run_folder import lines_until
from erase.training import checkpoints
from flux_jax.errors import InputError
from flux_jax.models.config import read_fields
from flux_jax.models.transformer import FluxConfig
from flux_jax.system import pictures
from flux_jax.system.arrays import read_npz
from flux_jax.system.files import open_regular, read_bytes
from flux_jax.system.json_files import checked, parse_json, read_json
from flux_jax.weights import checkpoint
from flux_jax.weights.safetensors_files import MOST_HEADER, MOST_TENSORS, read_file

# Quick readers for the short test, with the share of their tries.
SHORT = {
    "a run's results": 0.02,
    "a run's log": 0.1,
    "a checkpoint's manifest": 0.1,
    "a model's configuration": 0.05,
    "pictures and captions": 0.1,
    "shards and their index": 0.1,
    "an adapter (diffusers)": 0.1,
    "an adapter (peft)": 0.1,
    "an adapter (LoKr)": 0.1,
    "an adapter (LoHa)": 0.1,
    "an adapter (XLabs)": 0.1,
    "a model in one file": 0.1,
    "GGUF": 0.1,
    "NF4, FP4, int8 and fp8": 0.1,
}
# Those that read with Orbax, and their tries.
ORBAX = {"a model's Orbax checkpoint": 15, "a run's checkpoints, sealed again": 6}


def refusal(read: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(*arguments)
    text = str(caught.value)
    assert len(text) <= 400
    assert "\n" not in text
    return text


def picture(path: Path, kind: str = "PNG", side: int = 8) -> Path:
    Image.new("RGB", (side, side), "red").save(path, kind)
    path.with_suffix(".txt").write_text("a caption")
    return path


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_pictures_are_of_three_formats_whatever_their_names_are(kind: str, tmp_path: Path):
    path = picture(tmp_path / "a.png", kind)
    assert "neither PNG, JPEG nor WebP" in refusal(captioned_folder.read, tmp_path, 8, 8)
    assert "neither PNG, JPEG nor WebP" in refusal(pictures.read_picture, path, "draw it again")
    for allowed in pictures.FORMATS:
        assert pictures.read_picture(picture(path, allowed), "").shape == (8, 8, 3)


def test_a_postscript_file_reaches_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from PIL import EpsImagePlugin

    called: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: called.append(given))
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    path.with_suffix(".txt").write_text("a caption")
    assert "a.png is not a readable picture" in refusal(captioned_folder.read, tmp_path, 8, 8)
    assert not called


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_only_regular_files_are_read(tmp_path: Path):
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError) as caught:
        captioned_folder.read(tmp_path, 8, 8)
    text = str(caught.value)
    assert "a.png is not a readable picture (a named pipe, not a regular file)" in text
    assert "a.txt is not readable text" in text
    assert "a named pipe, not a regular file" in refusal(read_json, pipe)
    assert "a named pipe" in refusal(read_npz, pipe, ("a",), "write it again")
    for odd, kind in ((Path("/dev/zero"), "a device"), (tmp_path, "a directory")):
        with pytest.raises(OSError, match=f"{kind}, not a regular file"):
            read_bytes(odd)
    with pytest.raises(OSError, match="no file can have this name"):
        open_regular(Path("a\0b"))


def test_pictures_captions_and_folders_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = picture(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 63)
    text = refusal(captioned_folder.read, tmp_path, 8, 8)
    assert "8 x 8 = 64 pixels, over the limit of 63" in text
    monkeypatch.setattr(pictures, "MOST_PIXELS", 64)
    caption = path.with_suffix(".txt")
    caption.write_text("x" * captioned_folder.MOST_CHARACTERS)
    assert len(captioned_folder.read(tmp_path, 8, 8)[1][0]) == 4000
    caption.write_text("x" * 4001)
    text = refusal(captioned_folder.read, tmp_path, 8, 8)
    assert "a.txt has a caption of 4,001 characters, over the limit of 4,000" in text
    caption.write_bytes(bytes(captioned_folder.MOST_BYTES + 1))
    assert "a.txt has more than 65,536 bytes" in refusal(captioned_folder.read, tmp_path, 8, 8)
    picture(tmp_path / "b.png")
    monkeypatch.setattr(captioned_folder, "MOST_PICTURES", 1)
    assert "has 2 pictures, over the limit of 1" in refusal(captioned_folder.read, tmp_path, 8, 8)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"a": 1, "a": 1}', "the key 'a' occurs twice"),
        (b'{"a": NaN}', "NaN is not a number in JSON"),
        (b'{"a": -Infinity}', "Infinity is not"),
        (b'{"a": 1e999}', "a number is too large"),
        (b'{"a": 1' + b"0" * 50 + b"}", "an integer is over"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "limit"),
        (b'{"a": "\\ud800"}', "is not Unicode text"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper than 64"),
        (b'{"a": ' + b"[" * 100_000, "nested deeper than 64"),
        (b'{"a": "\xff"}', "utf-8"),
    ],
)
def test_json_outside_of_the_limits_is_refused(text: bytes, problem: str, tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    assert problem in refusal(read_json, path)
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_json_within_the_limits_is_read():
    text = '{"a": [1, 2.5, null, "é"], "b": ' + "[" * 60 + "]" * 60 + "}"
    assert parse_json(text) == json.loads(text)
    assert np.isnan(parse_json("NaN", finite=False))


class Inner(TypedDict):
    number: int


class Outer(TypedDict):
    name: str
    inner: list[Inner]


def test_values_of_another_type_are_named():
    good = {"name": "x", "inner": [{"number": 1}], "more": None}
    assert checked(Outer, good, "file") is good
    wrong = {"name": "x", "inner": [{"number": "1" * 500}]}
    assert refusal(checked, Outer, wrong, "file").startswith("file: inner.0.number = '111")
    assert "file: name is missing; mend" in refusal(checked, Outer, {"inner": []}, "file", "mend")
    assert checked(Outer, {"inner": []}, "file", complete=False) == {"inner": []}
    with pytest.raises(InputError, match=r"inner\.0\.number is missing"):
        checked(Outer, {"inner": [{}]}, "file", complete=False)


@pytest.mark.slow
def test_archives_of_arrays_have_limits(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones(3), b=np.array([1, 2]), c=np.array([np.nan]))
    assert read_npz(path, ("a",), "")["a"].tolist() == [1, 1, 1]
    for name, problem in (("b", "finite floats"), ("c", "finite floats"), ("d", "d is not a file")):
        assert problem in refusal(read_npz, path, (name,), "write it again")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("a.npy", "w") as out,
    ):
        for _ in range(257):
            out.write(bytes(1 << 20))
    assert "over the limit" in refusal(read_npz, path, ("a",), "write it again")
    path.write_bytes(b"")
    assert "a.npz cannot be read" in refusal(read_npz, path, ("a",), "write it again")


def test_damaged_lines_at_the_end_of_a_log_are_cut(tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}).encode() + b"\n" for step in (1, 2, 3)]
    for end in (
        b"",
        b"\xff\n",
        b'{"step": 4, "lo',
        b"[1]\n\0\n",
        b'{"step": "4"}\n',
        b"x" * (2 << 20),
    ):
        log.write_bytes(b"".join(lines) + end)
        assert lines_until(log, 3) == b"".join(lines)
        assert lines_until(log, 2) == b"".join(lines[:2])
    # A line that lacks only its end, and one that lies between good ones.
    log.write_bytes(b"".join(lines)[:-1])
    assert lines_until(log, 3) == b"".join(lines)
    log.write_bytes(lines[0] + b"\xff\n" + lines[1])
    text = refusal(lines_until, log, 3)
    assert "metrics.jsonl, line 2, is damaged" in text
    assert "remove the line, and run the same command: it resumes" in text
    assert lines_until(log, 1) == lines[0]


def test_an_empty_manifest_seals_nothing(tmp_path: Path):
    (tmp_path / "state").write_bytes(b"state")
    manifest = tmp_path / checkpoints.MANIFEST
    for content in ('{"files": {}}', '{"files": []}', "[]", "[" * 10**5, '{"files": {"x": 5}}'):
        manifest.write_text(content)
        assert "cannot be read" in (checkpoints.fault(tmp_path) or "")
    checkpoints.seal(tmp_path)
    assert checkpoints.fault(tmp_path) is None
    (tmp_path / "more").touch()
    assert checkpoints.fault(tmp_path) == "more is not in manifest.json"


def test_pictures_of_a_report_lie_in_the_run_s_folder(tmp_path: Path):
    write_run(tmp_path)
    path = tmp_path / "evaluation.json"
    evaluation = json.loads(path.read_text())
    for name in ("/etc/a.png", "../a.png", "a\0b"):
        evaluation["pictures"][0]["before"] = name
        path.write_text(json.dumps(evaluation))
        assert "is not in the run's folder" in refusal(report.write, tmp_path)


def safetensors(path: Path, entries: dict[str, Any], data: bytes = b"") -> Path:
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_sizes_are_bounded_before_anything_is_allocated(tmp_path: Path):
    began = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = tmp_path / "a.safetensors"
    rank, name = 8000, "transformer.transformer_blocks.0.attn.add_q_proj.lora_{}.weight"
    pair = {
        name.format(part): {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [begin, begin + 4 * rank],
        }
        for part, shape, begin in (("A", [rank, 1], 0), ("B", [1, rank], 4 * rank))
    }
    safetensors(path, pair, struct.pack("<f", 1.0) * 2 * rank)
    assert "has rank 8000, more than its 1 inputs and 1 outputs" in refusal(read_layers, path)
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    safetensors(path, {f"t{number}": one for number in range(MOST_TENSORS + 1)})
    assert "32,769 tensors, over the limit of 32,768" in refusal(read_file, path)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 300_000_000))
        file.truncate(300_000_008)
    assert f"over the limit of {MOST_HEADER:,}" in refusal(read_file, path)
    # A product of two small factors.
    kron = "lycoris_transformer_blocks_0_attn_to_q.lokr_w{}"
    half = {"dtype": "F32", "shape": [400, 400], "data_offsets": [0, 640_000]}
    other = half | {"data_offsets": [640_000, 1_280_000]}
    safetensors(path, {kron.format(1): half, kron.format(2): other}, bytes(1_280_000))
    assert "has a change of 160,000 x 160,000, larger than any layer" in refusal(read_layers, path)
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000


@pytest.mark.parametrize(
    ("old", "new"),
    [("{", '{"a":' * 10_000 + "{"), ("np.ndarray", "string"), ("tree_metadata", "x")],
)
def test_metadata_of_a_checkpoint_in_another_form_ends_in_a_line(
    old: str, new: str, tmp_path: Path
):
    write_orbax(tmp_path)
    path = tmp_path / checkpoint.FOLDER / "_METADATA"
    assert checkpoint.stored_bytes(tmp_path) == 4 * (32 + 3)
    path.write_text(path.read_text().replace(old, new, 1))
    text = refusal(checkpoint.stored_bytes, tmp_path)
    assert "checkpoint: not a complete checkpoint" in text
    assert "convert the model again" in text


@pytest.mark.parametrize(
    "changes", [{"num_layers": 10**6}, {"in_channels": 10**9}, {"axes_dims_rope": [2] * 50}]
)
def test_sizes_of_a_model_have_limits(changes: dict[str, Any]):
    assert "over the limit of" in refusal(read_fields, FluxConfig, changes, "config.json")


@pytest.mark.slow
@pytest.mark.parametrize("what", SHORT)
def test_damaged_files_are_read_or_refused(what: str, tmp_path: Path):
    reader = next(each for each in torture.READERS if each.what == what)
    row = torture.row(reader, round(SHORT[what] * reader.tries), tmp_path)
    assert row.held == row.tried > 9, row.note


@pytest.mark.slow
def test_damaged_checkpoints_are_read_or_refused(tmp_path: Path):
    """In a process: Orbax leaves arrays behind that fail when nobody waits for them any more."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom benchmarks.torture.files import READERS, row\n"
        "for number, (what, tries) in enumerate(eval(sys.argv[1]).items()):\n"
        "    reader = next(each for each in READERS if each.what == what)\n"
        "    done = row(reader, tries, Path(sys.argv[2], str(number)))\n"
        "    assert done.held == done.tried == tries, done.note\n"
        "print('all held')"
    )
    done = warm.run("-c", code, repr(ORBAX), str(tmp_path))
    assert done.stdout.endswith("all held\n"), done.stderr[-2000:]


@pytest.mark.parametrize("layout", samples.READ_ONLY)
def test_adapters_are_read_before_they_are_damaged(layout: str, tmp_path: Path):
    samples.write_adapter(tmp_path, layout)
    read = read_layers(tmp_path)
    assert layout.lower() in read.described.lower()
    assert len(read.layers) >= 2


def test_the_short_test_finds_errors_of_other_kinds(tmp_path: Path):
    def careless(folder: Path) -> None:
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[2])["step"]

    log = next(each for each in torture.READERS if each.what == "a run's log")
    row = torture.row(torture.Reader("", 20, log.make, careless), 20, tmp_path)
    assert row.held < row.tried == 20
