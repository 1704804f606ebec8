"""Labelled pictures on disk, read one at a time, for the data sets that torchvision does not read as they must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ..errors import BadInput
from ..images import load_image

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder


class Pictures(Protocol):
    """What torchvision's data sets are: pictures with their class's number, read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


class Files:
    """Files with their classes' numbers; `read` makes a picture of a file."""

    def __init__(self, files: Sequence[tuple[Path, int]], read: Callable[[Path], Image.Image] = load_image) -> None:
        self._files = files
        self._read = read

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, target = self._files[index]
        return self._read(path), target


def image_folder(folder: Path) -> ImageFolder:
    """A folder with one sub-folder of pictures a class. Raises BadInput when it is not of this form."""
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(folder), loader=lambda path: load_image(Path(path)))
    except FileNotFoundError as error:
        raise BadInput(f"{folder}: not in ImageFolder form ({str(error).splitlines()[0]})") from None


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises BadInput when it is not there or not UTF-8."""
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}") from None
