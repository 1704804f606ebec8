"""Tiny copies of the 17 published data sets, each in its own on-disk format, with what must be read from them.

Every picture is one grey shade, so that it can be told which file it came from. Each builder also writes pictures of
the parts that must not be read.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import scipy.io
import torchvision.datasets
from PIL import Image

Read = list[tuple[str, int]]  # class name and shade of every picture, in order


def paint(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (8 * shade,) * 3).save(path)


def shade_of(picture: Image.Image) -> int:
    assert picture.mode == "RGB"
    return round(np.asarray(picture).mean() / 8)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def tree(folder: Path, names: list[str], pattern: str = "{}.jpg") -> None:
    """Two pictures a class folder, shades 1, 2, 3 … in the order of `names`."""
    for i, name in enumerate(names):
        for n in range(2):
            paint(folder / name / pattern.format(n), 2 * i + n + 1)


def pairs(*names: str) -> Read:
    return [(name, 2 * i + n + 1) for i, name in enumerate(names) for n in range(2)]


def imagenet(root: Path, _) -> Read:
    tree(root / "imagenet" / "val", ["n01440764", "n02012849", "n15075141"])
    paint(root / "imagenet" / "train" / "n01440764" / "x.jpg", 30)
    return pairs("tench", "crane bird", "toilet tissue")


def imagenet_v2(root: Path, _) -> Read:
    tree(root / "imagenetv2-matched-frequency-format-val", ["0", "10", "134", "2", "999"])  # as strings are sorted
    return pairs("tench", "brambling", "crane bird", "great white shark", "toilet tissue")


def imagenet_r(root: Path, _) -> Read:
    tree(root / "imagenet-r", ["n01443537", "n01494475"])
    write(root / "imagenet-r" / "README.txt", "not a class")
    return pairs("goldfish", "hammerhead")


def imagenet_a(root: Path, _) -> Read:
    tree(root / "imagenet-a", ["n01498041", "n01531178"])
    return pairs("stingray", "goldfinch")


def imagenet_sketch(root: Path, _) -> Read:
    tree(root / "sketch", ["n01440764", "n01443537"], "sketch_{}.JPEG")
    return pairs("tench", "goldfish")


def caltech101(root: Path, _) -> Read:
    folder = root / "caltech101" / "101_ObjectCategories"
    for i, name in enumerate(("Faces_easy", "dalmatian")):
        for n in range(2):
            paint(folder / name / f"image_{n + 1:04d}.jpg", 2 * i + n + 1)
    paint(folder / "BACKGROUND_Google" / "image_0001.jpg", 30)
    return pairs("Faces easy", "dalmatian")


def _cifar(folder: Path, kind: type, labels: str, names: list[str], monkeypatch, more: int = 0) -> Read:
    """Batches as the archives hold them; torchvision is told their hashes, and checks them like the real ones'."""
    folder.mkdir(parents=True)

    def dump(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(shades: list[int], targets: list[int]) -> dict:
        return {"data": np.stack([np.full(3072, 8 * s, np.uint8) for s in shades]), labels: targets}

    train = [[name, dump(name, batch([30], [0]))] for name, _ in kind.train_list]
    test = [
        [name, dump(name, batch([1, 2, 3, *range(more)], [1, 0, 1, *more * [0, 1]][: 3 + more]))]
        for name, _ in kind.test_list
    ]
    meta = {"md5": dump(kind.meta["filename"], {kind.meta["key"]: names})}
    monkeypatch.setattr(kind, "train_list", train)
    monkeypatch.setattr(kind, "test_list", test)
    monkeypatch.setattr(kind, "meta", kind.meta | meta)
    return [(names[1].replace("_", " "), 1), (names[0].replace("_", " "), 2), (names[1].replace("_", " "), 3)]


def cifar10(root: Path, monkeypatch, more: int = 0) -> Read:
    kind = torchvision.datasets.CIFAR10
    return _cifar(root / "cifar-10-batches-py", kind, "labels", ["airplane", "frog"], monkeypatch, more)


def cifar100(root: Path, monkeypatch) -> Read:
    kind = torchvision.datasets.CIFAR100
    return _cifar(root / "cifar-100-python", kind, "fine_labels", ["apple", "aquarium_fish"], monkeypatch)


def stanford_cars(root: Path, _) -> Read:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = ["AM General Hummer SUV 2000", "smart fortwo Convertible 2012"]
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    rows = [("00001.jpg", 2), ("00002.jpg", 1), ("00003.jpg", 2)]
    fields = np.array(rows, dtype=[("fname", object), ("class", object)])
    scipy.io.savemat(base / "cars_test_annos_withlabels.mat", {"annotations": fields})
    for shade, (name, _) in enumerate(rows, 1):
        paint(base / "cars_test" / name, shade)
        paint(base / "cars_train" / name, 30)
    return [(names[1], 1), (names[0], 2), (names[1], 3)]


def sun397(root: Path, _) -> Read:
    base = root / "SUN397"
    write(base / "ClassName.txt", "/a/abbey\n/a/apartment_building/outdoor\n")
    for number, shade in ((3, 2), (1, 1)):  # written out of order
        paint(base / "a" / "abbey" / f"sun_{number}.jpg", shade)
    paint(base / "a" / "apartment_building" / "outdoor" / "sun_2.jpg", 3)
    return [("abbey", 1), ("abbey", 2), ("apartment building outdoor", 3)]


def pets(root: Path, _) -> Read:
    base = root / "oxford-iiit-pet"
    for shade, name in enumerate(("Abyssinian_201", "american_bulldog_203", "Abyssinian_9"), 1):
        paint(base / "images" / f"{name}.jpg", shade)
    write(base / "annotations" / "test.txt", "Abyssinian_201 1 1 1\namerican_bulldog_203 2 2 1\n")
    write(base / "annotations" / "trainval.txt", "Abyssinian_9 1 1 1\n")
    return [("Abyssinian", 1), ("American Bulldog", 2)]


def food101(root: Path, _) -> Read:
    base = root / "food-101"
    for shade, name in enumerate(("waffles/1", "apple_pie/2", "apple_pie/3", "waffles/4"), 1):
        paint(base / "images" / f"{name}.jpg", shade)
    write(base / "meta" / "test.json", json.dumps({"waffles": ["waffles/1"], "apple_pie": ["apple_pie/2"]}))
    write(base / "meta" / "train.json", json.dumps({"waffles": ["waffles/4"], "apple_pie": ["apple_pie/3"]}))
    return [("waffles", 1), ("apple pie", 2)]


def flowers102(root: Path, monkeypatch) -> Read:
    base = root / "flowers-102"
    for shade in range(1, 5):
        paint(base / "jpg" / f"image_{shade:05d}.jpg", shade)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": [1, 77, 102, 3]})
    scipy.io.savemat(base / "setid.mat", {"trnid": [1, 4], "valid": [1, 4], "tstid": [3, 2]})
    kind = torchvision.datasets.Flowers102
    hashes = dict(kind._file_dict)
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        hashes[key] = (name, hashlib.md5((base / name).read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "_file_dict", hashes)
    return [("blackberry lily", 3), ("passion flower", 2)]


def aircraft(root: Path, _) -> Read:
    data = root / "fgvc-aircraft-2013b" / "data"
    write(data / "variants.txt", "707-320\nDH-82\n")
    write(data / "images_variant_test.txt", "0000002 DH-82\n0000001 707-320\n")
    write(data / "images_variant_trainval.txt", "0000003 707-320\n")
    for shade in range(1, 4):
        paint(data / "images" / f"{shade:07d}.jpg", shade)
    return [("DH-82", 2), ("707-320", 1)]


def eurosat(root: Path, _) -> Read:
    tree(root / "eurosat" / "2750", ["AnnualCrop", "Forest", "SeaLake"])
    return pairs("Annual Crop", "Forest", "Sea Lake")


def dtd(root: Path, _) -> Read:
    base = root / "dtd" / "dtd"
    read: Read = []
    for shade, name in ((1, "banded/banded_1"), (2, "polka-dotted/polka_1"), (3, "banded/banded_2")):
        paint(base / "images" / f"{name}.jpg", shade)
    for partition in range(1, 11):
        shade = 3 if partition == 10 else 1
        lines = f"banded/banded_{1 if shade == 1 else 2}.jpg\npolka-dotted/polka_1.jpg\n"
        write(base / "labels" / f"test{partition}.txt", lines)
        write(base / "labels" / f"train{partition}.txt", "banded/banded_3.jpg\n")
        read += [("banded", shade), ("polka-dotted", 2)]
    return read


def ucf101(root: Path, _) -> Read:
    base = root / "ucf101"
    write(base / "ucfTrainTestlist" / "classInd.txt", "1 ApplyEyeMakeup\r\n2 YoYo\r\n")
    read: Read = []
    for number in (1, 2, 3):
        names = [f"ApplyEyeMakeup/v_ApplyEyeMakeup_g0{number}_c01", f"YoYo/v_YoYo_g0{number}_c01"]
        write(base / "ucfTrainTestlist" / f"testlist0{number}.txt", "".join(f"{name}.avi\r\n" for name in names))
        for i, name in enumerate(names):
            folder = ("Apply_Eye_Makeup", "YoYo")[i]
            paint(base / "UCF-101-midframes" / folder / f"{Path(name).name}.jpg", 2 * number + i)
            read.append((("Apply Eye Makeup", "Yo Yo")[i], 2 * number + i))
    paint(base / "UCF-101-midframes" / "YoYo" / "v_YoYo_g25_c01.jpg", 30)  # of a training list
    return read


BUILDERS = {
    "imagenet": imagenet, "imagenet-v2": imagenet_v2, "imagenet-r": imagenet_r, "imagenet-a": imagenet_a,
    "imagenet-sketch": imagenet_sketch, "caltech101": caltech101, "cifar10": cifar10, "cifar100": cifar100,
    "stanford-cars": stanford_cars, "sun397": sun397, "pets": pets, "food101": food101, "flowers102": flowers102,
    "aircraft": aircraft, "eurosat": eurosat, "dtd": dtd, "ucf101": ucf101,
}  # fmt: skip
