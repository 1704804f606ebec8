"""Which class folder is which class: numbers as numbers, and classes that a model cannot tell apart as one."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import refused
from tiny_published import tree, write

import uwm
from uwm.errors import BadInput
from uwm.knowledge import DataSet, check_classes, open_data_sets, zero_shot
from uwm.shipped_files import DEMO_SET

SEEN = DEMO_SET / "zero_shot" / "seen"
NUMBERED = {"0 … 19": "{}", "1 … 20": "{one}"}


def numbered(folder, pattern, count=20, skip=30):
    """Classes of the shipped set, which the demo model knows, in folders of other names."""
    classes, names = sorted(path for path in SEEN.iterdir() if path.is_dir()), (SEEN / "classnames.txt").read_text()
    for number, source in enumerate(classes[skip : skip + count]):
        shutil.copytree(source, folder / pattern.format(number, one=number + 1))
    write(folder / "classnames.txt", "\n".join(names.splitlines()[skip : skip + count]))
    shutil.copy(SEEN / "templates.txt", folder) if (SEEN / "templates.txt").exists() else None
    return folder


def accuracy(model, folder):
    return zero_shot(model, open_data_sets([str(folder)])[folder.name]).figures["top1"]


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """The demo model, and its accuracy where numbers are sorted as texts are."""
    demo = uwm.load("demo")
    return demo, accuracy(demo, numbered(tmp_path_factory.mktemp("sets") / "padded", "{:02d}"))


@pytest.mark.parametrize("pattern", NUMBERED.values(), ids=NUMBERED)
def test_numbered_class_folders_are_taken_in_the_order_of_their_numbers(pattern, padded, tmp_path):
    folder = numbered(tmp_path / "set", pattern)
    data = open_data_sets([str(folder)])["set"]
    assert data.pictures.classes == [pattern.format(n, one=n + 1) for n in range(20)]
    assert data.odd == ()
    demo, expected = padded
    assert accuracy(demo, folder) == expected > 0.7


def test_numbers_with_gaps_and_without_as_many_names(tmp_path):
    tree(tmp_path / "set", ["2", "10", "033", "7"])
    write(tmp_path / "set" / "classnames.txt", "two\nseven\nten\nthirty-three\n")
    data = open_data_sets([str(tmp_path / "set")])["set"]
    assert data.pictures.classes == ["2", "7", "10", "033"]
    write(tmp_path / "set" / "classnames.txt", "two\nseven\nten\n")
    with pytest.raises(BadInput, match="classnames.txt has 3 names for 4 class folders"):
        open_data_sets([str(tmp_path / "set")])


@pytest.mark.parametrize("names", [["c2", "c10"], ["1_cat", "2_dog", "10_cow"], ["0", "10", "2", "x"]], ids=" ".join)
def test_folders_that_a_person_would_count_otherwise_are_said(names, tmp_path):
    tree(tmp_path / "set", names)
    write(tmp_path / "set" / "classnames.txt", "\n".join(names))
    data = open_data_sets([str(tmp_path / "set")])["set"]
    before, after = {2: ("c10", "c2"), 3: ("10_cow", "1_cat"), 4: ("10", "2")}[len(names)]
    assert data.pictures.classes == sorted(names)
    assert data.odd == (
        f"set: class folders are sorted as texts, {before!r} before {after!r}, and the lines of classnames.txt are "
        "taken in that order; -v shows which folder got which name",
    )


@pytest.mark.parametrize("names", [["c02", "c10"], ["cat", "dog"], ["0_cat", "1_dog"], ["n01440764", "n15075141"]])
def test_other_folders_are_not(names, tmp_path):
    tree(tmp_path / "set", names)
    write(tmp_path / "set" / "classnames.txt", "one\ntwo\n")
    assert open_data_sets([str(tmp_path / "set")])["set"].odd == ()


@contextmanager
def as_a_process():
    """The root logger as it is when a program starts: without pytest's handlers."""
    level = logging.root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])
        yield
    logging.root.setLevel(level)


def test_v_shows_which_folder_is_which_class(tiny_hf, tiny_set, tmp_path, run_uwm):
    tree(tmp_path / "set", ["2", "10"])
    write(tmp_path / "set" / "classnames.txt", "cat\ndog\n")
    tree(tmp_path / "imagenetv2-matched-frequency-format-val", ["0", "10", "2"])
    given = ("--zero-shot", tmp_path / "set", "--zero-shot", "imagenet-v2", "--data-root", tmp_path)
    with as_a_process():
        _, _, err = run_uwm("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", "-v", *given)
    assert f"uwm.knowledge.pictures: {tmp_path}/set: class folders: 2 is 'cat', 10 is 'dog'\n" in err
    (line,) = (line for line in err.splitlines() if "format-val: class folders: " in line)
    told = line.partition("class folders: ")[2].split(", ")
    assert sorted(told) == ["0 is 'tench'", "10 is 'brambling'", "2 is 'great white shark'"]


# ---------------------------------------------------------------- classes that are one


class Noise:
    """21 labelled pictures of noise, three of each of seven classes."""

    def __len__(self):
        return 21

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), index % 7


NAMES = ("dog", "cat", "knife", "tree", "dog", "cup", "bomb")


@torch.no_grad()
def by_hand(model, data):
    """Name of the class of each picture, and all names from the nearest to the farthest."""
    texts = {n: model.encode_text(*model.tokenize([data.templates[0].format(n)]))[0] for n in data.class_names}
    for index in range(len(data)):
        picture, target = data.read(index)
        image = model.encode_image(model.preprocess([picture]))[0]
        near = sorted(texts, key=lambda n: -torch.cosine_similarity(image, texts[n], dim=0).item())
        yield data.class_names[target], near


def test_two_classes_of_one_name_are_one_label(tiny_hf):
    """Else no picture of the second could be classified correctly: its prompt is that of the first."""
    model = uwm.load(tiny_hf)
    data = DataSet("noise", Noise(), NAMES, ("a picture of a {}",), frozenset({"knife", "bomb"}))
    found = [*by_hand(model, data)]
    result = zero_shot(model, data, batch_size=4)
    assert result.right.tolist() == [near[0] == name for name, near in found]
    assert result.figures["top5"] == pytest.approx(sum(name in near[:5] for name, near in found) / 21)
    each = [np.mean([near[0] == name for name, near in found if name == own]) for own in dict.fromkeys(NAMES)]
    assert result.figures["mean_per_class"] == pytest.approx(np.mean(each))
    assert result.safe.tolist() == [name not in ("knife", "bomb") for name, _ in found]
    other = zero_shot(model, replace(data, class_names=(*NAMES[:4], "car", *NAMES[5:])))
    assert other.figures != result.figures


def test_classes_of_one_name_are_said(tmp_path):
    tree(tmp_path / "set", ["0", "1", "2", "3"])
    write(tmp_path / "set" / "classnames.txt", "crane\nmaillot\ncrane\nmaillot\n")
    assert open_data_sets([str(tmp_path / "set")])["set"].odd == (
        "set: 2 classes are called 'crane'; they count as one",
        "set: 2 classes are called 'maillot'; they count as one",
    )


def test_classes_of_one_name_of_a_published_set_are_said(tmp_path):
    tree(tmp_path / "imagenet-a", ["n01440764", "n01443537"])
    write(tmp_path / "imagenet-a" / "classnames.txt", "\n".join(["fish", "fish", *(f"class {i}" for i in range(998))]))
    data = open_data_sets(["imagenet-a"], data_root=tmp_path)["imagenet-a"]
    assert "imagenet-a: 2 classes are called 'fish'; they count as one" in data.odd


@pytest.mark.parametrize("model", ["tiny_hf", "tiny_open_clip"])
def test_classes_of_equal_tokens_are_one_label_and_said(model, request):
    model = uwm.load(request.getfixturevalue(model))
    long = "dog " * 40
    names = ("Dog", "cat", "knife", "tree", "dog", f"{long}cup", f"{long}bomb")
    data = DataSet("noise", Noise(), names, ("a {}",))
    assert check_classes(model, {"noise": data}) == [
        "noise: 2 of 7 prompts are longer than the model's 32 tokens and were cut",
        f"noise: classes with equal tokens count as one: 'Dog' and 'dog'; {names[5]!r} and {names[6]!r}",
    ]
    plain = DataSet("noise", Noise(), ("dog", "cat", "knife", "tree", "dog", "x", "x"), ("a {}",))
    assert check_classes(model, {"noise": plain}) == []  # said as classes of one name
    twins = zero_shot(model, replace(data, class_names=(*names[:6], names[5])))
    assert torch.equal(zero_shot(model, data).right, twins.right)


def test_a_prompt_that_leaves_no_room_for_the_names_is_refused_before_the_pass(tiny_hf, tiny_set, tmp_path, run_uwm):
    tree(tmp_path / "set", ["0", "1", "2"])
    write(tmp_path / "set" / "classnames.txt", "cat\ndog\ncup\n")
    write(tmp_path / "set" / "templates.txt", f"{'a picture of ' * 20} a {{}}\n")
    out = tmp_path / "out"
    result = run_uwm("edit", tiny_hf, "--calib", tiny_set, "--zero-shot", tmp_path / "set", "-o", out)
    refused(result, 2, "set: 2 of 3 classes have the prompts of another class", "reads 32", "shorten the prompt")
    assert not out.exists()
