"""The 17 data sets of the paper's zero-shot table, as rows: where each lies, which part, which prompt, what is odd."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .pictures import Files, Pictures, image_folder, tell_classes, text_lines
from .ucf101 import read_ucf101

PHOTO = "a photo of a {}."
SCIPY = ("scipy",)
Reader = Callable[[Path], tuple[Pictures, list[str]]]  # data root -> pictures, class names


@dataclass(frozen=True)
class Published:
    """One data set.

    Attributes:
        folder: What must lie under the data root, as the set's archives unpack and torchvision expects it.
        read: Opens it, read only, nothing is ever downloaded.
        pictures, classes: How many a whole copy of `part` has.
        part: Which pictures are measured.
        template: The paper's prompt.
        names: What the class names are; the paper does not list its own.
        needs: Packages beyond the usual ones, of the extra ``data``.
    """

    folder: str
    read: Reader
    pictures: int
    classes: int
    part: str
    template: str = PHOTO
    names: str = "torchvision's, with spaces for underscores"
    needs: tuple[str, ...] = ()

    def open(self, name: str, root: Path) -> tuple[Pictures, list[str]]:
        """Pictures and class names.

        Raises:
            BadInput: Not under the root, not whole, or a package is missing.
        """
        if not (root / self.folder).exists():
            raise BadInput(
                f"--zero-shot {name}: no {self.folder} in --data-root {root}; put the set there (uwm never downloads)"
            )
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                raise BadInput(f"--zero-shot {name}: needs {package}; pip install 'uwm[data]'")
        try:
            return self.read(root)
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0].removesuffix(" You can use download=True to download it")
            raise BadInput(f"--zero-shot {name}: {root / self.folder} cannot be read ({reason})") from None


def _torchvision(kind: str, clean: Callable[[str], str] = lambda name: name.replace("_", " "), **part: Any) -> Reader:
    """A reader by one of torchvision's classes."""

    def read(root: Path) -> tuple[Pictures, list[str]]:
        from torchvision import datasets

        data = getattr(datasets, kind)(str(root), **part)
        classes = data.categories if kind == "Caltech101" else data.classes
        return data, [clean(name) for name in classes]

    return read


def _dtd(root: Path) -> tuple[Pictures, list[str]]:
    from torch.utils.data import ConcatDataset
    from torchvision.datasets import DTD

    parts = [DTD(str(root), split="test", partition=number) for number in range(1, 11)]
    if any(part.classes != parts[0].classes for part in parts):
        raise ValueError("its partitions have different classes")
    return ConcatDataset(parts), [name.replace("_", " ") for name in parts[0].classes]


def _sun397(root: Path) -> tuple[Pictures, list[str]]:
    """As torchvision does, but with the pictures in sorted order, not the disk's."""
    base = root / "SUN397"
    names = [line[3:] for line in text_lines(base / "ClassName.txt")]  # "/a/abbey"
    numbers = {name: i for i, name in enumerate(names)}
    paths = sorted(base.rglob("sun_*.jpg"))
    files = [(path, numbers["/".join(path.relative_to(base).parts[1:-1])]) for path in paths]
    return Files(files), [re.sub("[_/]", " ", name) for name in names]


def _imagenet(folder: str) -> Reader:
    """A tree of WordNet ids (or of class numbers, as ImageNet-V2's) with the names of the classes that it has.

    A ``classnames.txt`` in it, with the names of all 1000 classes in their order, goes before torchvision's names.
    """

    def read(root: Path) -> tuple[Pictures, list[str]]:
        from timm.data import ImageNetInfo
        from torchvision.models import ResNet50_Weights

        data, own = image_folder(root / folder), root / folder / "classnames.txt"
        names = text_lines(own) if own.is_file() else ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
        wnids = ImageNetInfo().label_names()
        if len(names) != len(wnids):
            raise BadInput(f"{own}: has {len(names)} names, expected all 1000 of ImageNet in the order of its classes")
        numbers = {key: i for i, wnid in enumerate(wnids) for key in (wnid, str(i))}
        foreign = [name for name in data.classes if name not in numbers]
        if foreign:
            raise BadInput(
                f"{root / folder}: {foreign[0]!r} is neither an ImageNet WordNet id, such as n01440764, nor a class "
                "number below 1000"
            )
        found = [names[numbers[name]] for name in data.classes]
        tell_classes(root / folder, data.classes, found)
        return data, found

    return read


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


IMAGENET_NAMES = "torchvision's 1000 (those of its weights), of the classes that have a folder; or classnames.txt's"
V2 = "imagenetv2-matched-frequency-format-val"

PUBLISHED = {
    "imagenet": Published("imagenet/val", _imagenet("imagenet/val"), 50000, 1000, "validation", names=IMAGENET_NAMES),
    "imagenet-v2": Published(V2, _imagenet(V2), 10000, 1000, "matched frequency", names=IMAGENET_NAMES),
    "imagenet-r": Published("imagenet-r", _imagenet("imagenet-r"), 30000, 200, "whole set", names=IMAGENET_NAMES),
    "imagenet-a": Published("imagenet-a", _imagenet("imagenet-a"), 7500, 200, "whole set", names=IMAGENET_NAMES),
    "imagenet-sketch": Published("sketch", _imagenet("sketch"), 50889, 1000, "whole set", names=IMAGENET_NAMES),
    "caltech101": Published(
        "caltech101/101_ObjectCategories", _torchvision("Caltech101"), 8677, 101,
        "whole set, without BACKGROUND_Google, which torchvision leaves out", needs=SCIPY,
    ),
    "cifar10": Published("cifar-10-batches-py", _torchvision("CIFAR10", train=False), 10000, 10, "test"),
    "cifar100": Published("cifar-100-python", _torchvision("CIFAR100", train=False), 10000, 100, "test"),
    "stanford-cars": Published(
        "stanford_cars", _torchvision("StanfordCars", split="test"), 8041, 196, "test", needs=SCIPY
    ),
    "sun397": Published(
        "SUN397", _sun397, 108754, 397, "whole set",
        names="ClassName.txt's, with spaces for underscores and slashes: apartment building outdoor",
    ),
    "pets": Published(
        "oxford-iiit-pet", _torchvision("OxfordIIITPet", split="test"), 3669, 37, "test",
        "a photo of a {}, a type of pet.",
    ),
    "food101": Published(
        "food-101", _torchvision("Food101", split="test"), 25250, 101, "test", "a photo of {}, a type of food."
    ),
    "flowers102": Published(
        "flowers-102", _torchvision("Flowers102", split="test"), 6149, 102, "test",
        "a photo of a {}, a type of flower.", needs=SCIPY,
    ),
    "aircraft": Published(
        "fgvc-aircraft-2013b", _torchvision("FGVCAircraft", split="test"), 3333, 100, "test, variants",
        "a photo of a {}, a type of aircraft.",
    ),
    "eurosat": Published(
        "eurosat/2750", _torchvision("EuroSAT", _words), 27000, 10, "whole set", "a centered satellite photo of {}.",
        names="the folders', with their words apart: Annual Crop",
    ),
    "dtd": Published(
        "dtd/dtd", _dtd, 18800, 47,
        "test parts of all 10 partitions joined; a picture in several of them counts each time, so that the interval "
        "is narrower than it should be",
        "a photo of a {} texture.",
    ),
    "ucf101": Published(
        "ucf101", read_ucf101, 11213, 101, "test lists 01–03 joined, the middle frame", "a video of {}.",
        names="classInd.txt's, with their words apart: Apply Eye Makeup",
    ),
}  # fmt: skip
