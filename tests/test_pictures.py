"""Pictures: laid out in rows, generated in batches, written as PNG files."""

import io
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erase.model.draw import png, sheet
from erase.runtime.files import read_json, write
from flux_jax.errors import InputError


def test_sheet_puts_pictures_in_reading_order():
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    laid = sheet(pictures, columns=3)
    assert laid.shape == (4, 9, 3)
    assert laid[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 255]]


def test_png_keeps_pixels_and_notes():
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    with Image.open(io.BytesIO(png(picture, {"prompt": "a “cat”"}))) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), picture)
        assert read.info["prompt"] == "a “cat”"
    assert png(picture) != png(picture + np.uint8(1))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "of" / "run.json"
    write(path, '{"a": "ü"}')
    assert path.read_bytes() == b'{"a": "\xc3\xbc"}'
    assert read_json(path) == {"a": "ü"}

    def full(*paths: Path) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as context:
        context.setattr("os.replace", full)
        with pytest.raises(OSError, match="no space"):
            write(path, "other")
    assert read_json(path) == {"a": "ü"}
    assert [each.name for each in path.parent.iterdir()] == ["run.json"]


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its content first, then its name in the folder."""
    steps, replace = [], os.replace

    def renamed(*paths: Path) -> None:
        steps.append("renamed")
        replace(*paths)

    def synced(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    monkeypatch.setattr("os.replace", renamed)
    monkeypatch.setattr("os.fsync", synced)
    write(tmp_path / "run.json", "{}")
    assert steps == ["file", "renamed", "folder"]


def test_json_files_that_cannot_be_read_are_named(tmp_path: Path):
    path = tmp_path / "run.json"
    with pytest.raises(InputError, match=r"run\.json is missing: look elsewhere"):
        read_json(path, "look elsewhere")
    for content in (b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"run\.json is not JSON .*; mend it") as raised:
            read_json(path, mend="mend it")
        assert len(str(raised.value)) < 400
    path.write_text(str(list(range(1000))))
    with pytest.raises(InputError, match=r"is not a JSON object, but \[0, 1") as raised:
        read_json(path)
    assert len(str(raised.value)) < 400
