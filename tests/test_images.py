"""Pictures of every mode become the same 8-bit RGB; what cannot is refused by name."""

from __future__ import annotations

import struct
import threading
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, features

from uwm import images
from uwm.errors import BadInput
from uwm.images import load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def first_pixel(path):
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    return loaded.getpixel((0, 0))


def palette(**kwargs):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([*BLUE, *RED])
    image.info.update(kwargs)
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("RGB", (3, 2), (1, 2, 3)), "png", (1, 2, 3)),
        (Image.new("L", (3, 2), 77), "png", (77, 77, 77)),
        (Image.new("1", (3, 2), 1), "png", WHITE),
        (Image.new("1", (3, 2), 0), "png", (0, 0, 0)),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "tif", RED),
        (palette(), "png", RED),
        (palette(transparency=1), "png", WHITE),
        (palette(transparency=0), "png", RED),
        (palette(transparency=b"\xff\x00"), "png", WHITE),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 0)), "png", WHITE),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 255)), "png", RED),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 128)), "png", (255, 127, 127)),
        (Image.new("LA", (3, 2), (0, 0)), "png", WHITE),
        (Image.new("LA", (3, 2), (9, 255)), "png", (9, 9, 9)),
    ],
)
def test_f62_modes(image, suffix, expected, tmp_path):
    path = tmp_path / f"picture.{suffix}"
    image.save(path)
    with Image.open(path) as stored:
        assert stored.mode == image.mode
    assert first_pixel(path) == expected


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparent_colour_without_alpha_channel_is_laid_on_white(mode, tmp_path):
    colour = 77 if mode == "L" else (1, 2, 3)
    Image.new(mode, (3, 2), colour).save(tmp_path / "p.png", transparency=colour)
    assert first_pixel(tmp_path / "p.png") == WHITE


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_is_scaled_not_clipped(suffix, tmp_path):
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(np.array([[0, 257, 40000, 65535]], dtype=np.uint16)).save(path)
    assert np.asarray(load_image(path))[0, :, 0].tolist() == [0, 1, 156, 255]


def test_32_bit_beyond_16_bit_is_refused(tmp_path):
    Image.fromarray(np.full((2, 3), 100_000, np.int32)).save(tmp_path / "p.tif")
    with pytest.raises(BadInput, match=r"p\.tif: .*32-bit"):
        load_image(tmp_path / "p.tif")


def test_floating_point_is_refused(tmp_path):
    Image.new("F", (3, 2), 0.5).save(tmp_path / "p.tif")
    with pytest.raises(BadInput, match=r"p\.tif: a floating-point picture"):
        load_image(tmp_path / "p.tif")


UPRIGHT = {  # EXIF orientation -> what a viewer must do to the stored pixels [height, width, 3]
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_f64_exif_orientation_is_applied(orientation, tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "p.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "p.png")), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_f63_first_frame_of_many(suffix, tmp_path):
    if suffix == "webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"p.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"p.{suffix}") as stored:
        assert stored.n_frames == 2
    assert first_pixel(tmp_path / f"p.{suffix}") == RED


def test_wrong_suffix_of_a_good_picture_is_fine(tmp_path):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "p.jpg", format="PNG")
    assert first_pixel(tmp_path / "p.jpg") == RED


@pytest.mark.parametrize(
    "content", [b"", b"<!doctype html><html></html>", b"<svg/>", b"%PDF-1.7", b"GIF89a", b"\x89PNG\r\n\x1a\n"]
)
def test_no_picture(content, tmp_path):
    (tmp_path / "p.jpg").write_bytes(content)
    with pytest.raises(BadInput, match=r"p\.jpg: "):
        load_image(tmp_path / "p.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_cut_off_anywhere(suffix, tmp_path):
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 64, 31):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=rf"p\.{suffix}: "):
            load_image(path)


def test_broken_checksum(tmp_path):
    Image.new("RGB", (64, 64), RED).save(tmp_path / "p.png")
    raw = bytearray((tmp_path / "p.png").read_bytes())
    raw[raw.index(b"IDAT") + 8] ^= 0xFF
    (tmp_path / "p.png").write_bytes(raw)
    with pytest.raises(BadInput, match=r"p\.png: damaged picture"):
        load_image(tmp_path / "p.png")


def test_missing(tmp_path):
    with pytest.raises(BadInput, match=r"p\.png: no such picture"):
        load_image(tmp_path / "p.png")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(BadInput, match="irectory"):
        load_image(tmp_path)


def png_claiming(width, height):
    """A PNG of a hundred bytes whose header claims any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (10_000, 10_000), (50_000, 50_000), (2**31 - 1, 1)])
def test_over_64_megapixels_is_refused_from_the_header(width, height, tmp_path):
    (tmp_path / "p.png").write_bytes(png_claiming(width, height))
    with pytest.raises(BadInput, match=r"p\.png: .*pixels"):
        load_image(tmp_path / "p.png")


def test_64_megapixels_are_not_too_many(tmp_path):
    (tmp_path / "p.png").write_bytes(png_claiming(8000, 8000))
    with pytest.raises(BadInput, match="damaged"):
        load_image(tmp_path / "p.png")


def test_threads_leave_the_warning_filters_alone(tmp_path, monkeypatch):
    for name in ("first", "second"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    inside, both, left = threading.Event(), threading.Event(), threading.Event()

    def overlap(image, path):  # first in, second in, first out, second out
        if path.stem == "first":
            inside.set()
            both.wait(5)
        else:
            both.set()
            left.wait(5)
        return image

    monkeypatch.setattr(images, "_as_rgb", overlap)
    before = list(warnings.filters)
    first = threading.Thread(target=lambda: (load_image(tmp_path / "first.png"), left.set()))
    second = threading.Thread(target=load_image, args=(tmp_path / "second.png",))
    first.start()
    inside.wait(5)
    second.start()
    first.join()
    second.join()
    assert warnings.filters == before


# ---------------------------------------------------------------- what fuzzing found


def test_f76_a_chunk_that_promises_gigabytes_takes_no_memory(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    place = data.index(b"IDAT") - 4
    (tmp_path / "x.png").write_bytes(data[:place] + b"\xbb\0\0\x16" + data[place + 4 :])
    tracemalloc.start()
    try:
        load_image(tmp_path / "x.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


def test_a_file_larger_than_any_picture_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (5, 4)).save(tmp_path / "x.png")
    monkeypatch.setattr(images, "MAX_FILE", 50)
    with pytest.raises(BadInput, match="x.png: no regular file, or more than 0 MB"):
        load_image(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "ICO"])
def test_a_format_that_no_set_has_is_refused_whatever_its_name(tmp_path, kind):
    """Pillow hands an EPS to Ghostscript, another program."""
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png", kind)
    with pytest.raises(BadInput, match="not a picture that can be read, expected JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"):
        load_image(tmp_path / "x.png")


def test_a_portable_pixmap_is_read(tmp_path):
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "x.ppm")
    assert load_image(tmp_path / "x.ppm").getpixel((0, 0)) == (1, 2, 3)
