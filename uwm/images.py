"""Pictures from files, the same for every family: one frame, upright, 8-bit RGB."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadInput

MAX_PIXELS = 64_000_000
MAX_FILE = 1 << 30  # bytes; 64 megapixels of 16 bit in four channels are half of it
MAX_RATIO = 200  # of the longer to the shorter side, at which preprocessing takes the memory of a large picture
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # not all of Pillow's: it hands EPS to Ghostscript
DAMAGED = (  # what Pillow's readers raise of a damaged file, beside OSError and SyntaxError
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError, AssertionError,
    struct.error, zlib.error,
)  # fmt: skip
_FILTERS = threading.Lock()
BACKGROUND = (255, 255, 255)  # what transparent pictures are laid on


def load_image(path: Path) -> Image.Image:
    """Read a picture.

    The first frame; EXIF rotation applied; transparency laid on white; 16 bit scaled to 8 bit.

    Raises:
        BadInput: No picture, cut off, floating-point, over 64 megapixels, or a strip: models that resize by the shorter
            side would ask for gigabytes.
    """
    try:
        with _open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadInput(f"{path}: {opened.width} × {opened.height} pixels, more than 64 megapixels")
            if max(opened.size) > MAX_RATIO * min(opened.size):
                raise BadInput(
                    f"{path}: {opened.width} × {opened.height} pixels, one side more than {MAX_RATIO} times the other; "
                    "crop it"
                )
            ImageOps.exif_transpose(opened, in_place=True)
            return _as_rgb(opened, path)
    except UnidentifiedImageError:
        raise BadInput(f"{path}: not a picture that can be read, expected {', '.join(FORMATS)}") from None
    except FileNotFoundError:
        raise BadInput(f"{path}: no such picture") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadInput(f"{path}: far more pixels than any model needs; scale it down") from None
    except (OSError, SyntaxError, *DAMAGED) as error:
        raise BadInput(f"{path}: damaged picture ({error})") from None


def bad_images(paths: Iterable[Path], workers: int = 2) -> list[str]:
    """What is wrong with those of the pictures that cannot be read, one message each."""

    def problem(path: Path) -> str | None:
        try:
            load_image(path)
        except BadInput as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return [message for message in pool.map(problem, paths) if message is not None]


def _open(path: Path) -> Image.Image:
    """Read the header, with Pillow's warning of too many pixels as an error; filters are global, hence the lock.

    The file is read whole before: Pillow would ask for as much memory as a chunk says that it has.
    """
    with path.open("rb") as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE:
            raise BadInput(f"{path}: no regular file, or more than {MAX_FILE >> 20} MB, which no picture has")
        data = stream.read()
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _as_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise BadInput(f"{path}: a floating-point picture; convert it to 8 or 16 bit first")
    if image.mode.startswith("I"):
        low, high = np.asarray(image).min(), np.asarray(image).max()
        if low < 0 or high > 65535:
            raise BadInput(
                f"{path}: a 32-bit picture with values from {low} to {high}; convert it to 8 or 16 bit first"
            )
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
