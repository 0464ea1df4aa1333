"""A user's folder of captioned pictures: how it is read, and messages about invalid ones."""

import numpy as np
import pytest
from PIL import Image

from erase.data.captioned_folder import read
from flux_jax.errors import InputError

ORIENTATION = 274


def add(path, pixels, caption="a thing", **options):
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    path.with_suffix(".txt").write_text(caption)


def plain(value, height=8, width=8):
    return np.full((height, width, 3), value, np.uint8)


def message(folder):
    with pytest.raises(InputError) as error:
        read(folder, 8, 8)
    return str(error.value)


def test_every_format_is_read_by_name_with_its_caption(tmp_path):
    names = ("b.jpeg", "a.PNG", "d.webp", "c.jpg")
    for level, name in enumerate(names):
        add(tmp_path / name, plain(40 * level), f"  caption of\n{name}\n")
    (tmp_path / "notes.md").write_text("neither picture nor caption")
    (tmp_path / "e.txt").write_text("a caption without a picture")
    pictures, captions = read(tmp_path, 8, 8)
    assert captions == tuple(f"caption of {name}" for name in sorted(names))
    assert pictures.shape == (4, 8, 8, 3)
    assert pictures.dtype == np.uint8
    np.testing.assert_allclose(pictures.mean((1, 2, 3)), [40, 0, 120, 80], atol=2)


def test_captions_are_utf8_with_or_without_a_byte_order_mark(tmp_path):
    for name, encoding in (("a", "utf-8"), ("b", "utf-8-sig")):
        add(tmp_path / f"{name}.png", plain(0))
        (tmp_path / f"{name}.txt").write_text("ein süßer Hund", encoding)
    assert read(tmp_path, 8, 8)[1] == ("ein süßer Hund",) * 2


@pytest.mark.parametrize("upright", [True, False])
def test_the_middle_of_the_longer_side_is_kept(tmp_path, upright):
    wide = np.concatenate([plain(0, 8, 4), plain(200, 8, 8), plain(0, 8, 4)], axis=1)
    add(tmp_path / "a.png", wide.swapaxes(0, 1) if upright else wide)
    assert (read(tmp_path, 8, 8)[0] == 200).all()


def test_pictures_are_scaled_to_cover_the_size(tmp_path):
    add(tmp_path / "large.png", np.concatenate([plain(0, 32, 32), plain(200, 32, 32)], axis=1))
    add(tmp_path / "small.png", np.concatenate([plain(0, 4, 4), plain(200, 4, 4)], axis=1))
    pictures, _ = read(tmp_path, 16, 32)
    assert pictures.shape == (2, 16, 32, 3)
    assert (pictures[:, :, :4] == 0).all()
    assert (pictures[:, :, 28:] == 200).all()


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path):
    noted = Image.Exif()
    noted[ORIENTATION] = 6  # rotate by a quarter turn, clockwise
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    add(tmp_path / "a.png", pixels, exif=noted)
    np.testing.assert_array_equal(read(tmp_path, 12, 8)[0][0], np.rot90(pixels, -1))


def test_grey_is_spread_and_what_is_transparent_becomes_white(tmp_path):
    add(tmp_path / "grey.png", plain(90)[..., 0])
    add(tmp_path / "half.png", np.concatenate([plain(0), plain(127)[..., :1]], axis=-1))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=bytes([255, 0]))
    (tmp_path / "palette.txt").write_text("nothing to see")
    pictures, _ = read(tmp_path, 8, 8)
    assert (pictures == np.array([90, 128, 255])[:, None, None, None]).all()


def test_a_folder_that_is_none_is_named(tmp_path):
    missing, file = tmp_path / "nowhere", tmp_path / "file"
    file.touch()
    assert f"'{missing}' does not exist; check the path" in message(missing)
    assert f"'{file}' is not a folder; check the path" in message(file)


def test_a_folder_without_pictures_says_what_belongs_there(tmp_path):
    (tmp_path / "a.txt").write_text("a caption")
    told = message(tmp_path)
    assert f"'{tmp_path}' has no pictures; put .png, .jpg, .jpeg, .webp files there" in told


def test_every_problem_is_told_on_a_line_of_its_own(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png", "e.jpg"):
        add(tmp_path / name, np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "d.png").write_text("no picture")
    whole = (tmp_path / "e.jpg").read_bytes()
    (tmp_path / "e.jpg").write_bytes(whole[:-100])
    (tmp_path / "f.webp").mkdir()
    (tmp_path / "f.txt").write_text("a folder")
    (tmp_path / "g.png").write_text("neither picture nor caption")
    told = message(tmp_path).split("\n")
    expected = (
        ("a.txt is missing", "write the caption of a.png there"),
        ("b.txt is empty", "write the caption of b.png there"),
        ("c.txt is not readable text", "save it as UTF-8"),
        ("d.png is not a readable picture", "repair or remove it"),
        ("e.jpg is not a readable picture", "truncated"),
        ("f.webp is not a readable picture", "directory"),
        ("g.png is not a readable picture", "repair or remove it"),
        ("g.txt is missing", "write the caption of g.png there"),
    )
    for line, words in zip(told, expected, strict=True):
        assert line.strip().startswith(str(tmp_path))
        for word in words:
            assert word in line


def test_a_decompression_bomb_is_not_read(tmp_path, monkeypatch):
    add(tmp_path / "a.png", plain(0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert "a.png is not a readable picture (Image size (64 pixels)" in message(tmp_path)


def test_sixteen_bits_of_grey_are_not_read(tmp_path):
    add(tmp_path / "a.png", np.full((8, 8), 9000, np.uint16))
    assert "save it with 8" in message(tmp_path)
