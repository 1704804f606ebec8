"""Pictures: read as 8-bit RGB of at most 64 megapixels, or refused; never more memory than the promised bound."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

from fuzz.mutations import mutated_bytes
from fuzz.targets import Finding, Target, nothing_runs, refusal
from PIL import Image, ImageCms  # noqa: F401 - which Pillow imports for pictures in CIELAB

from uwm.errors import BadInput
from uwm.images import MAX_PIXELS, MAX_RATIO, load_image

Mutate = Callable[[bytes, random.Random], bytes]
SIDES = [
    0,
    1,
    2,
    3,
    200,
    255,
    400,
    1000,
    60000,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
]  # 1000 × 1000 at the most is filled


def targets(root: Path) -> list[Target]:
    """One of each format."""
    root.mkdir(exist_ok=True)
    found = []
    for name, share, seeds, mutate in (
        ("PNG", 2, _pngs(), _png),
        ("JPEG", 1, _jpegs(), _any),
        ("GIF", 1, [_frames("GIF"), _saved("GIF", "P")], _any),
        ("WebP", 1, [_saved("WEBP", "RGB"), _saved("WEBP", "RGBA", lossless=True), _frames("WEBP")], _any),
        ("BMP", 1, [_saved("BMP", mode) for mode in ("RGB", "P", "1", "L")], _any),
        ("TIFF", 1, _tiffs(), _tiff),
        (
            "other picture",
            0.5,
            [_saved(kind, "RGB") for kind in ("PPM", "TGA", "ICO", "PCX", "JPEG2000")] + [EPS],
            _any,
        ),
    ):
        path = root / f"{name[:4]}.png"
        found.append(Target(name, share, _drawn(seeds, mutate), _checked(path)))
    return found


def _drawn(seeds: list[bytes], mutate: Mutate) -> Callable[[random.Random], bytes]:
    def draw(rng: random.Random) -> bytes:
        data = rng.choice(seeds)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            data = mutate(data, rng)
        return data

    return draw


def _checked(path: Path) -> Callable[[bytes], bool]:
    def check(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            with warnings.catch_warnings(), nothing_runs():
                warnings.simplefilter("ignore", UserWarning)  # Pillow's, of metadata that it skips
                image = load_image(path)
        except BadInput as error:
            refusal(error)
            return False
        width, height = image.size
        whole = image.mode == "RGB" and 0 < width * height <= MAX_PIXELS
        if not whole or max(image.size) > MAX_RATIO * min(image.size):
            raise Finding(f"a picture of {image.size} in {image.mode}")
        return True

    return check


# ---------------------------------------------------------------- seeds

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n0 0 4 4 rectfill\nshowpage\n%%EOF\n"


def _picture(mode: str, size: tuple[int, int] = (5, 4)) -> Image.Image:
    image = Image.new("RGB", size)
    image.putdata([(n * 9 % 256, n * 5 % 256, n * 3 % 256) for n in range(size[0] * size[1])])
    return image.convert("L").convert(mode) if mode.startswith(("I", "F")) else image.convert(mode)


def _saved(kind: str, mode: str, **options: object) -> bytes:
    out = io.BytesIO()
    _picture(mode).save(out, kind, **options)
    return out.getvalue()


def _frames(kind: str) -> bytes:
    return _saved(kind, "RGB", save_all=True, append_images=[_picture("L", (5, 4)), _picture("RGB", (5, 4))], loop=0)


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a text"
    return exif.tobytes()


def _pngs() -> list[bytes]:
    made = [_saved("PNG", mode) for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")]
    return [*made, _saved("PNG", "P", transparency=3), _saved("PNG", "RGB", exif=_exif(), dpi=(72, 72)), _frames("PNG")]


def _jpegs() -> list[bytes]:
    return [_saved("JPEG", "RGB", exif=_exif()), _saved("JPEG", "L", progressive=True), _saved("JPEG", "CMYK")]


def _tiffs() -> list[bytes]:
    made = [_saved("TIFF", mode) for mode in ("RGB", "RGBA", "P", "L", "I;16", "I", "F", "1", "CMYK")]
    packed = [
        _saved("TIFF", "RGB", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    ]
    return [*made, *packed, _frames("TIFF")]


# ---------------------------------------------------------------- changes


def _any(data: bytes, rng: random.Random) -> bytes:
    """Bytes, or a number within the header that may be a size."""
    if rng.random() < 0.6 or len(data) < 40:
        return mutated_bytes(data, rng)
    place = rng.randrange(min(len(data) - 4, 120))
    form = rng.choice(["<H", ">H", "<I", ">I"])
    number = struct.pack(form, rng.choice(SIDES) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
    return data[:place] + number + data[place + len(number) :]


def _png(data: bytes, rng: random.Random) -> bytes:
    """Chunks changed, with a checksum that is right."""
    if rng.random() < 0.25:
        return _any(data, rng)
    chunks = _chunks(data)
    if not chunks:
        return mutated_bytes(data, rng)
    place, what = rng.randrange(len(chunks)), rng.randrange(6)
    kind, body = chunks[place]
    if what == 0:
        del chunks[place]
    elif what == 1:
        chunks.insert(rng.randrange(len(chunks)), chunks[place])
    elif what == 2:
        chunks[place] = (
            rng.choice([b"IDAT", b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT"]),
            body,
        )
    elif what == 3:
        bomb = zlib.compress(bytes(rng.choice([100, 3_000_000])))
        chunks.insert(
            1,
            rng.choice(
                [
                    (b"zTXt", b"a\0\0" + bomb),
                    (b"iCCP", b"a\0\0" + bomb),
                    (b"IDAT", bomb),
                    (b"iTXt", b"a\0\1\0\0\0" + bomb),
                ]
            ),
        )
    elif kind == b"IHDR" and len(body) == 13:
        sizes = struct.pack(">II", rng.choice(SIDES) & 0xFFFFFFFF, rng.choice(SIDES) & 0xFFFFFFFF)
        last = bytes([rng.choice([1, 2, 4, 8, 16, 3]), rng.choice([0, 2, 3, 4, 6, 1]), 0, 0, rng.randrange(3)])
        chunks[place] = (kind, rng.choice([sizes + body[8:], body[:8] + last]))
    else:
        chunks[place] = (kind, mutated_bytes(body, rng))
    return data[:8] + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _tiff(data: bytes, rng: random.Random) -> bytes:
    """One entry of the first directory changed: its tag, type, count or value."""
    begin = int.from_bytes(data[4:8], "little") if data[:2] == b"II" else 0
    if rng.random() < 0.4 or not 8 <= begin < len(data) - 14:
        return _any(data, rng)
    entries = int.from_bytes(data[begin : begin + 2], "little")
    place = begin + 2 + 12 * rng.randrange(max(1, min(entries, 30)))
    tag = rng.choice(
        [256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 330, 338, 339, 34665, 274]
    )
    what = rng.randrange(4)
    if what == 0:
        return data[:place] + struct.pack("<H", tag) + data[place + 2 :]
    if what == 1:
        return data[: place + 2] + struct.pack("<H", rng.randrange(20)) + data[place + 4 :]
    number = struct.pack("<I", rng.choice([*SIDES, begin, len(data)]) & 0xFFFFFFFF)
    at = place + (4 if what == 2 else 8)
    return data[:at] + number + data[at + 4 :]
