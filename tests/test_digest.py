"""Digests of the files that a run reads: what is changed in place is noticed, a copy is not."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny

from erase.model import digest
from erase.model.digest import FileRecords
from erase.runs import RunConfig
from erase.training import resume_check
from flux_jax.errors import InputError
from flux_jax.weights.safetensors_files import read_file, write_file

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def of(folder: Path) -> FileRecords:
    return digest.of_runs({"": tiny.run_config(folder)})[""]


def record(folder: Path, model: Path) -> Path:
    """A run's folder that records the model's files."""
    config = asdict(tiny.run_config(model))
    config |= {"command": "", "inputs": {name: asdict(each) for name, each in of(model).items()}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_folder, tmp_path / "model")
    return tmp_path / "model"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def zero(path: Path, name: str) -> None:
    """Set one tensor to 0."""
    tensors = {key: np.array(each) for key, each in read_file(path).items()}
    tensors[name][...] = 0
    path.unlink()
    write_file(path, tensors, {"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        WEIGHTS,
        "transformer/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_changed_byte_is_noticed(model: Path, tmp_path: Path, name: str):
    before, path = of(model), record(tmp_path, model)
    resume_check.check_files(path, of(model))
    stat = (model / name).stat()
    # White space in JSON does not change its meaning, so that the model still opens.
    content = (model / name).read_bytes()
    if name.endswith(".json"):
        (model / name).write_bytes(content + b"\n")
    else:
        flip(model / name, len(content) - 1)
    # Even if the times are set back.
    os.utime(model / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest.differing(before, of(model)) == [f"model/{name}"]
    for check in (
        lambda: resume_check.check_files(path, of(model)),
        lambda: resume_check.check_model(path, tiny.run_config(model), of(model)),
    ):
        with pytest.raises(InputError, match=f"model/{name} changed since; restore it") as raised:
            check()
        assert len(str(raised.value)) < 400
        assert "\n" not in str(raised.value)


def test_a_folder_that_was_moved_copied_or_touched_is_the_same(model: Path, tmp_path: Path):
    before, path = of(model), record(tmp_path, model)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(model, copy, copy_function=shutil.copyfile)
    for file in (file for file in copy.rglob("*") if file.is_file()):
        os.utime(file, (0, 0))
    (copy / "README.md").write_text("not read")
    assert digest.differing(before, of(copy)) == []
    assert digest.summary(before) == digest.summary(of(copy))
    resume_check.check_files(path, of(copy))
    moved = json.loads(json.dumps(asdict(tiny.run_config(copy)) | {"inputs": {}}))
    resume_check.check(tmp_path, {"": moved}, overwrite=False)
    assert resume_check.adapter_inputs(moved) != ""


def test_a_record_of_an_earlier_version_is_accepted(model: Path, tmp_path: Path):
    resume_check.check_files(tmp_path, of(model))
    earlier = asdict(tiny.run_config(model)) | {"command": "train"}
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    resume_check.check_files(tmp_path, of(model))
    resume_check.check_model(tmp_path, tiny.run_config(model), of(model))
    # Without digests, another folder may hold another model.
    moved = json.loads(json.dumps(earlier | asdict(tiny.run_config(tmp_path / "moved"))))
    with pytest.raises(InputError, match=r"model\.path"):
        resume_check.check(tmp_path, {"": moved}, overwrite=False)
    for damaged in ({"model/x": 1}, {"model/x": {"size": "many"}}, [1], "text"):
        (tmp_path / "config.json").write_text(json.dumps({"inputs": damaged}))
        with pytest.raises(InputError, match=r"config\.json: inputs are no records of files"):
            resume_check.check_files(tmp_path, of(model))


def test_of_a_large_model_every_tensor_is_sampled(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(digest, "WHOLE", 0)
    # Smaller than the tensors here, as blocks are at full size.
    monkeypatch.setattr(digest, "BLOCK", 8)
    before, path = of(model), record(tmp_path, model)
    assert before[f"model/{WEIGHTS}"].sampled
    names = sorted(read_file(model / WEIGHTS))
    content = (model / WEIGHTS).read_bytes()
    for name in names[:: len(names) // 4]:
        zero(model / WEIGHTS, name)
        assert digest.differing(before, of(model)) == [f"model/{WEIGHTS}"], name
        (model / WEIGHTS).write_bytes(content)
    os.utime(model / WEIGHTS, (0, 0))
    assert digest.differing(before, of(model)) == []
    resume_check.check_files(path, of(model))
    assert f"model/{WEIGHTS}: another time, but the same size" in capsys.readouterr().err
    # Another size is noticed without reading.
    (model / WEIGHTS).write_bytes(content + b"\0")
    assert digest.records({"w": model / WEIGHTS})["w"].size == len(content) + 1


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", b"\xff" * 16, b"\2" + bytes(7) + b"[]", b"\4" + bytes(7) + b'{"a"']
    + [(len(each)).to_bytes(8, "little") + each for each in (b'{"a": 1}', b'{"a": {}}')],
)
def test_any_file_has_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes):
    monkeypatch.setattr(digest, "WHOLE", 0)
    monkeypatch.setattr(digest, "BLOCK", 4)
    (tmp_path / "x").write_bytes(content)
    assert digest.records({"x": tmp_path / "x"})["x"].size == len(content)


def test_pictures_to_preserve_are_read_too(model: Path, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    for name, content in (("a.png", b"1"), ("a.txt", b"a cat"), ("notes.md", b"")):
        (tmp_path / "pictures" / name).write_bytes(content)
    config = tiny.run_config(model)
    assert isinstance(config, RunConfig)
    config = tiny.run_config(
        model, upper=type(config.upper)(folder=str(tmp_path / "pictures"), prompts=(), rsc=0.0)
    )
    names = digest.of_runs({"": config})[""].keys()
    assert {n for n in names if n.startswith("upper")} == {
        "upper.folder/a.png", "upper.folder/a.txt"
    }  # fmt: skip
