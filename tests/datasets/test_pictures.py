import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_unioncam.datasets.pictures import open_picture
from captum_unioncam.system.errors import Failure

SIZE = (20, 12)


def saved(picture, path, **options):
    picture.save(path, **options)
    return path


def only_colour(picture):
    ((_, colour),) = picture.getcolors()
    return colour


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("RGB", (10, 200, 30), "png", (10, 200, 30)),
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ("RGBA", (0, 0, 255, 0), "png", (255, 255, 255)),
        ("RGBA", (0, 0, 255, 255), "png", (0, 0, 255)),
        ("RGBA", (0, 0, 0, 51), "png", (204, 204, 204)),
        ("LA", (0, 0), "png", (255, 255, 255)),
        ("I;16", 0x8000, "png", (128, 128, 128)),
        ("I;16", 0xFFFF, "tif", (255, 255, 255)),
        ("I", 300, "tif", (1, 1, 1)),
    ],
)
def test_every_kind_of_pixel_becomes_what_people_see(tmp_path, mode, colour, suffix, expected):
    path = saved(Image.new(mode, SIZE, colour), tmp_path / f"picture.{suffix}")
    picture = open_picture(path)
    assert picture.mode == "RGB"
    assert picture.size == SIZE
    assert np.abs(np.asarray(picture, dtype=int) - expected).max() <= 2


def test_transparent_palette_shows_white(tmp_path):
    picture = Image.new("P", SIZE, 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    opaque, transparent = tmp_path / "opaque.png", tmp_path / "transparent.png"
    picture.save(opaque)
    picture.save(transparent, transparency=1)
    assert only_colour(open_picture(opaque)) == (0, 255, 0)
    assert only_colour(open_picture(transparent)) == (255, 255, 255)


def test_sixteen_bits_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 20 * 12).astype(np.uint16).reshape(12, 20)
    path = saved(Image.fromarray(ramp), tmp_path / "ramp.png")
    pixels = np.asarray(open_picture(path))[..., 0]
    assert np.abs(pixels - ramp / 257).max() <= 0.5


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", SIZE, "white")
    picture.paste("black", (0, 0, 20, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter: what is stored as the top is the right
    path = saved(picture, tmp_path / "turned.png", exif=exif)
    pixels = np.asarray(open_picture(path))[..., 0]
    assert pixels.shape == (20, 12)
    assert (pixels[:, 8:] == 0).all()
    assert (pixels[:, :8] == 255).all()


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert only_colour(open_picture(path)) == (255, 0, 0)


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


def damaged(path):
    Image.new("RGB", SIZE).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[50] ^= 255
    path.write_bytes(content)


BROKEN = {
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "not an image in a known format"),
    "text": (lambda path: path.write_text("no image at all"), "not an image in a known format"),
    "eps": (lambda path: Image.new("RGB", SIZE).save(path, "EPS"), "not an image in a known format"),
    "truncated": (truncated, "cannot be decoded"),
    "damaged": (damaged, "cannot be decoded"),
    "float": (lambda path: Image.new("F", SIZE, 0.5).save(path, "TIFF"), "more than 16 bits"),
    "negative": (lambda path: Image.new("I", SIZE, -5).save(path, "TIFF"), "more than 16 bits"),
    "pipe": (os.mkfifo, "is a pipe or a device, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a pipe or a device, not a file"),
    "circle": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "thin": (lambda path: Image.new("L", (1, 900)).save(path, "PNG"), "crop it"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_pictures_are_refused_by_name(tmp_path, kind):
    make, reason = BROKEN[kind]
    make(tmp_path / "picture")
    with pytest.raises(Failure, match=reason) as failure:
        open_picture(tmp_path / "picture")
    assert str(failure.value).startswith(str(tmp_path / "picture"))


@pytest.mark.parametrize("limit", [4_000_000, 1_000_000])
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch, limit):
    path = saved(Image.new("1", (3000, 2000)), tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(Failure, match=f"has 6 million pixels, more than {limit // 1_000_000}; shrink it"):
        open_picture(path)


def test_names_that_are_too_long_are_refused(tmp_path):
    with pytest.raises(Failure, match="File name too long"):
        open_picture(tmp_path / ("a" * 300))


def test_a_pipe_is_read_where_it_is_asked_for(tmp_path):
    """As explain <(...) asks."""
    saved(Image.new("RGB", SIZE, "red"), tmp_path / "picture.png")
    reader, writer = os.pipe()
    os.write(writer, (tmp_path / "picture.png").read_bytes())
    os.close(writer)
    try:
        assert only_colour(open_picture(Path(f"/dev/fd/{reader}"), from_pipes=True)) == (255, 0, 0)
    finally:
        os.close(reader)
