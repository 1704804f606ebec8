"""Each of the 17 published data sets is read as the paper uses it: the right part, classes, names and prompt."""

from __future__ import annotations

import importlib.util
import pickle

import pytest
from tiny_published import BUILDERS, paint, shade_of, tree, write

from uwm.errors import BadInput
from uwm.knowledge import PUBLISHED, open_data_sets

PROMPTS = dict.fromkeys(PUBLISHED, "a photo of a {}.") | {
    "pets": "a photo of a {}, a type of pet.",
    "food101": "a photo of {}, a type of food.",
    "flowers102": "a photo of a {}, a type of flower.",
    "aircraft": "a photo of a {}, a type of aircraft.",
    "eurosat": "a centered satellite photo of {}.",
    "dtd": "a photo of a {} texture.",
    "ucf101": "a video of {}.",
}


def test_there_are_17():
    assert len(PUBLISHED) == 17
    assert PUBLISHED.keys() == BUILDERS.keys()


def opened(name, root):
    return open_data_sets([name], data_root=root)[name]


@pytest.mark.parametrize("name", BUILDERS)
def test_tiny_copy(name, tmp_path, monkeypatch):
    expected = BUILDERS[name](tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    data = opened(name, tmp_path)
    read = [data.read(i) for i in range(len(data))]
    assert [(data.class_names[target], shade_of(picture)) for picture, target in read] == expected
    assert data.templates == (PROMPTS[name],)
    assert f"{name}: {len(expected)} pictures, a whole copy has {PUBLISHED[name].pictures}" in data.odd
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written into the user's folder


@pytest.mark.parametrize("name", BUILDERS)
def test_missing(name, tmp_path):
    with pytest.raises(BadInput, match=f"--zero-shot {name}: no {PUBLISHED[name].folder} in .*uwm never downloads"):
        opened(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in BUILDERS if not name.startswith("imagenet")])
def test_empty_folder(name, tmp_path):
    (tmp_path / PUBLISHED[name].folder).mkdir(parents=True)
    with pytest.raises(BadInput, match=str(tmp_path)):
        opened(name, tmp_path)


@pytest.mark.parametrize("name", [name for name, row in PUBLISHED.items() if row.needs])
def test_without_scipy(name, tmp_path, monkeypatch):
    BUILDERS[name](tmp_path, monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(BadInput, match=f"{name}: needs scipy; pip install 'uwm\\[data\\]'"):
        opened(name, tmp_path)


def test_a_cifar_pickle_that_is_not_the_published_one_is_never_opened(tmp_path, monkeypatch):
    BUILDERS["cifar10"](tmp_path, monkeypatch)

    class Payload:
        def __reduce__(self):
            return (paint, (tmp_path / "ran.png", 1))

    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(BadInput, match=r"cifar-10-batches-py cannot be read \(Dataset not found or corrupted\.\)"):
        opened("cifar10", tmp_path)
    assert not (tmp_path / "ran.png").exists()


def test_partitions_of_dtd_must_have_the_same_classes(tmp_path):
    BUILDERS["dtd"](tmp_path, None)
    write(tmp_path / "dtd" / "dtd" / "labels" / "test4.txt", "banded/banded_1.jpg\n")
    with pytest.raises(BadInput, match="its partitions have different classes"):
        opened("dtd", tmp_path)


# ---------------------------------------------------------------- ImageNet's names


def test_imagenets_names_and_ids_are_in_the_same_order():
    """torchvision's name of each class is one of WordNet's for the id; two were told apart by a further word."""
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet50_Weights

    info = ImageNetInfo()
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert info.label_names() == sorted(info.label_names())
    odd = [
        name
        for name, wnid in zip(names, info.label_names(), strict=True)
        if name.lower() not in info.label_name_to_description(wnid).lower()
    ]
    assert odd == ["crane bird", "maillot tank suit"]


def test_imagenet_with_names_of_ones_own(tmp_path):
    tree(tmp_path / "imagenet-a", ["n01440764", "n15075141"])
    write(tmp_path / "imagenet-a" / "classnames.txt", "\n".join(f"class {i}" for i in range(1000)))
    assert opened("imagenet-a", tmp_path).class_names == ("class 0", "class 999")
    write(tmp_path / "imagenet-a" / "classnames.txt", "one\ntwo\n")
    with pytest.raises(BadInput, match=r"classnames\.txt: has 2 names, expected all 1000"):
        opened("imagenet-a", tmp_path)


@pytest.mark.parametrize("folder", ["tench", "1000", "n00000001"])
def test_imagenet_folder_that_is_no_class(folder, tmp_path):
    tree(tmp_path / "imagenet" / "val", ["n01440764", folder])
    with pytest.raises(BadInput, match=f"'{folder}' is neither an ImageNet WordNet id"):
        opened("imagenet", tmp_path)


def test_imagenet_of_loose_files(tmp_path):
    paint(tmp_path / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG", 1)
    with pytest.raises(BadInput, match="not in ImageFolder form"):
        opened("imagenet", tmp_path)
