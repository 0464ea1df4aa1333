import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flux_jax.errors import InputError
from recipes import npm
from recipes.emoji_flux import sprites
from recipes.emoji_flux.sprites import EmojiSet
from recipes.emoji_flux.world import ENTITIES, STYLES

SET = EmojiSet("@some/emoji@1.2.3", "noto", "MIT", "Somebody", {"red-apple": "pomme", "ship": ""})


def disc(radius: int = 60, hole: int = 0, colour: tuple[int, int, int] = (200, 40, 30)):
    picture = Image.new("RGBA", (256, 256))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((90 - radius, 120 - radius, 90 + radius, 120 + radius), (*colour, 255))
    if hole:
        draw.ellipse((90 - hole, 120 - hole, 90 + hole, 120 + hole), (0, 0, 0, 0))
    return picture


def archive(folder: Path, files: dict[str, bytes], licence: str = "MIT") -> Path:
    path = folder / npm.archive_name(SET.package)
    files = {"package.json": json.dumps({"license": licence}).encode(), **files}
    with tarfile.open(path, "w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def entity(name: str):
    return next(each for each in ENTITIES if each.name == name)


def test_every_style_has_one_set_with_a_permissive_licence_and_a_pinned_version():
    assert [each.style for each in sprites.SETS] == list(STYLES)
    for each in sprites.SETS:
        assert each.licence in sprites.PERMITTED
        assert each.package.rsplit("@", 1)[1].count(".") == 2
        assert each.package.rsplit("@", 1)[0] in sprites.attribution()
    assert npm.archive_name(SET.package) == "some-emoji-1.2.3.tgz"


def test_a_sprite_fills_its_box_and_is_premultiplied():
    sprite = sprites.fit(disc())
    assert sprite.shape == (64, 64, 4)
    assert sprite.dtype == np.uint8
    assert (sprite[..., :3] <= sprite[..., 3:]).all()
    shown = sprite[..., 3] > 0
    for edge in (shown[0], shown[-1], shown[:, 0], shown[:, -1]):
        assert edge.any()
    np.testing.assert_array_equal(sprite[32, 32], [200, 40, 30, 255])
    # Edges are smooth.
    assert ((sprite[..., 3] > 20) & (sprite[..., 3] < 235)).any()


def test_a_tall_drawing_is_centred():
    sprite = sprites.fit(disc().resize((64, 256)))
    columns = np.flatnonzero((sprite[..., 3] > 128).any(0))
    assert abs((columns[0] + columns[-1]) / 2 - 31.5) <= 0.5
    assert 12 <= len(columns) <= 20


def test_an_empty_drawing_is_refused():
    with pytest.raises(InputError, match="empty"):
        sprites.fit(Image.new("RGBA", (64, 64)))


def test_a_sticker_has_a_white_border():
    picture = np.asarray(sprites.as_sticker(disc()))
    row = picture[picture.shape[0] * 120 // 256 + 12]
    opaque = row[row[:, 3] == 255]
    assert (opaque == [255, 255, 255, 255]).all(1).any()
    assert (opaque == [200, 40, 30, 255]).all(1).any()


def test_line_art_is_lines_on_white_and_a_silhouette_is_ink():
    ink = sprites.INK_RGB
    for picture in (disc(colour=ink), disc(hole=50, colour=ink)):
        drawn = np.asarray(sprites.as_line_art(picture))
        np.testing.assert_array_equal(drawn[120, 90], [255, 255, 255, 255])
        np.testing.assert_array_equal(drawn[120, 33], [*ink, 255])
        solid = sprites.fit(sprites.as_silhouette(picture))
        np.testing.assert_array_equal(solid[32, 32], [*ink, 255])


def test_names_licences_and_gaps_of_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[str] = []

    def draw_svg(svg: str) -> Image.Image:
        drawn.append(svg)
        return Image.new("RGBA", (1, 1))

    monkeypatch.setattr(sprites, "draw_svg", draw_svg)
    icons = {
        "width": 32,
        "height": 32,
        "icons": {"pomme": {"body": "<a/>"}, "doggy": {"body": "<d/>"}, "ship": {"body": "<s/>"}},
        "aliases": {"dog": {"parent": "doggy"}},
    }
    draw = sprites.read_set(SET, archive(tmp_path, {"icons.json": json.dumps(icons).encode()}))
    assert draw(entity("apple")) is not None
    assert draw(entity("dog")) is not None
    assert "<a/>" in drawn[0]
    assert "<d/>" in drawn[1]
    assert draw(entity("cat")) is None
    assert draw(entity("ship")) is None


def test_drawings_named_by_codepoint(tmp_path: Path):
    stream = io.BytesIO()
    disc().save(stream, "WEBP", lossless=True)
    files = {
        "assets/2708-fe0f.webp": stream.getvalue(),
        "assets/1f408.webp": stream.getvalue(),
    }
    draw = sprites.read_set(SET, archive(tmp_path, files))
    assert draw(entity("airplane")) is not None
    assert draw(entity("cat")) is not None
    assert draw(entity("dog")) is None


def test_another_licence_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"'CC-BY-SA-4.0'.*'MIT'"):
        sprites.read_set(SET, archive(tmp_path, {}, licence="CC-BY-SA-4.0"))


def test_a_cached_package_is_not_fetched_and_without_npm_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"npm: not found.*@some/emoji@1\.2\.3"):
        npm.fetch(SET.package, tmp_path / "cache")
    expected = archive(tmp_path, {})
    assert npm.fetch(SET.package, tmp_path) == expected


def test_sprites_of_another_world_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="not found"):
        sprites.load(tmp_path / "none.npz")
    path = tmp_path / "sprites.npz"
    np.savez(path, pixels=np.zeros((1, 64, 64, 4), np.uint8), sprite_of=np.zeros((3, 2), np.int32))
    with pytest.raises(InputError, match="3 entities and 2 styles"):
        sprites.load(path)


def test_build_indexes_what_the_sets_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stream = io.BytesIO()
    disc().save(stream, "WEBP", lossless=True)
    archive(tmp_path, {"assets/1f408.webp": stream.getvalue()})
    monkeypatch.setattr(sprites, "SETS", (SET,))
    pixels, sprite_of = sprites.build(tmp_path, tmp_path / "out" / "sprites.npz")
    assert pixels.shape == (1, 64, 64, 4)
    cat = ENTITIES.index(entity("cat"))
    assert np.argwhere(sprite_of >= 0).tolist() == [[cat, STYLES.index("noto")]]
    loaded, index = sprites.load(tmp_path / "out" / "sprites.npz")
    np.testing.assert_array_equal(loaded, pixels)
    np.testing.assert_array_equal(index, sprite_of)
    assert "@some/emoji | 1.2.3 | MIT" in sprites.attribution()
