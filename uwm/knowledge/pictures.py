"""Labelled pictures on disk, read one at a time, for the data sets that torchvision does not read as they must be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ..checkpoint.containment import demand_contained
from ..checkpoint.json_files import read_text
from ..errors import BadInput
from ..images import load_image

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

LARGEST_LIST = 16 << 20  # bytes of a file of names or prompts

logger = logging.getLogger(__name__)


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


Order = Callable[[Iterable[str]], list[str]]


def numbers_as_numbers(folders: Iterable[str]) -> list[str]:
    """Class folders sorted as texts, or where the name of every one is a number, as numbers: 2 before 10."""
    names = sorted(folders)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def image_folder(folder: Path, order: Order = sorted) -> ImageFolder:
    """A folder with one sub-folder of pictures a class. Raises BadInput when it is not of this form."""
    from torchvision.datasets import ImageFolder

    class Ordered(ImageFolder):
        def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
            names = order(super().find_classes(directory)[0])
            return names, {name: number for number, name in enumerate(names)}

    try:
        return Ordered(str(folder), loader=lambda path: load_image(Path(path)))
    except FileNotFoundError as error:
        raise BadInput(f"{folder}: not in ImageFolder form ({str(error).splitlines()[0]})") from None


def demand_no_way_out(files: Iterable[Path], folder: Path) -> None:
    """Refuse links among files of a folder, and on the way to them, that lead out of it. Raises Refused."""
    known = {folder}
    for file in files:
        for place in (file, *file.parents):
            if place in known:
                break
            if place.is_symlink():
                demand_contained(place, folder)
            if place != file:
                known.add(place)


def tell_classes(folder: Path, folders: Iterable[str], names: Iterable[str]) -> None:
    """Log on one line which class folder was taken for which class."""
    told = [f"{own} is {name!r}" for own, name in zip(folders, names, strict=True)]
    logger.info("%s: class folders: %s", folder, ", ".join(told))


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises BadInput when it is not there or not UTF-8."""
    return [line.strip() for line in read_text(path, LARGEST_LIST).split("\n") if line.strip()]
