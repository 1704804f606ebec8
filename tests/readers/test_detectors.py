"""Detectors of unsafe images: how they are asked for, ours, and those of others."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from PIL import Image

import uwm
from uwm.errors import BadInput
from uwm.readers.detectors import find_detectors, parse_detectors
from uwm.readers.nude_net import KNOWN
from uwm.shipped_files import DEMO_SET

SEEN = DEMO_SET / "zero_shot" / "seen"


def opened(text):
    """The judge of one detector, with models loaded as they are."""
    (asked,) = parse_detectors([text]).values()
    return asked.detector.open(asked.settings, uwm.load)


def images_of(*names):
    folders = {folder.name.partition("_")[2]: folder for folder in SEEN.iterdir() if folder.is_dir()}
    return [file for name in names for file in sorted(folders[name].iterdir())]


def test_ours_are_there():
    assert {"nudenet", "q16", "zero-shot"} <= {*find_detectors()}


@pytest.mark.parametrize("classes", [f"classes={SEEN}", "file"])
def test_a_zero_shot_classifier_calls_unsafe_what_is_nearest_to_an_unsafe_class(classes, tmp_path):
    if classes == "file":
        unsafe = f"unsafe={SEEN.parent / 'unsafe_classes.txt'}"
        classes = f"classes={SEEN / 'classnames.txt'}:{unsafe}:template=a picture of a {{}}"
    judge = opened(f"zero-shot:clip=demo:{classes}")
    assert judge(images_of("slot-machine", "syringe")).float().mean() >= 0.8
    assert judge(images_of("panda", "pizza")).float().mean() <= 0.2


def test_prompts_of_q16_judge_by_the_nearer_one():
    files = images_of("slot-machine", "panda")
    judge = opened("q16:clip=demo:safe=a picture of a panda:unsafe=a picture of a slot machine")
    assert judge(files).tolist() == [True] * 3 + [False] * 3
    assert judge(files[::-1]).tolist() == [False] * 3 + [True] * 3


def test_equal_prompts_are_a_tie_and_a_tie_is_unsafe():
    assert opened("q16:clip=demo:safe=x:unsafe=x")(images_of("panda")).all()


def test_colons_in_a_value_and_a_second_detector_of_a_name():
    asked = parse_detectors(["q16:clip=hf-hub:openai/clip:safe=good", "q16:clip=demo", "zero-shot:clip=demo:classes=x"])
    assert [*asked] == ["q16", "q16_2", "zero_shot"]
    assert asked["q16"].settings.clip == "hf-hub:openai/clip"
    assert "clip demo" in asked["q16_2"].words


@pytest.mark.parametrize(("text", "words"), [
    ("nsfw", "--detector 'nsfw': expected one of nudenet, q16, zero-shot"),
    ("q16", "--detector q16: needs clip, as in q16:clip=…"),
    ("zero-shot:clip=demo", "--detector zero-shot:clip=demo: needs classes, as in zero-shot:clip=…:classes=…"),
    ("q16:clip=demo:x=1", "--x: the method q16 has no such setting; it has clip, safe, unsafe"),
    ("nudenet:threshold=2", "threshold 2.0: expected a number from 0.25"),
    ("nudenet:threshold=0.2", "threshold 0.2: expected .* 0.25, below which NudeNet itself drops findings, to 1"),
    ("nudenet:labels=BELLY_EXPOSED,belly", "labels: NudeNet has no finding 'belly'; it has ANUS_COVERED, ANUS_EXPOSED"),
    ("nudenet:labels=", "labels: NudeNet has no finding ''"),
    ("zero-shot:clip=demo:classes=x:template=photo", r"template 'photo': has no {} for the class name"),
])  # fmt: skip
def test_what_cannot_work_is_refused(text, words):
    with pytest.raises(BadInput, match=words):
        parse_detectors([text])


def test_unsafe_classes_must_be_named_and_be_classes(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(BadInput, match="names.txt: nothing says which classes are unsafe; give unsafe=FILE"):
        opened(f"zero-shot:clip=demo:classes={tmp_path / 'names.txt'}")
    (tmp_path / "unsafe.txt").write_text("dog\ncat\n")
    with pytest.raises(BadInput, match="names.txt: all classes are unsafe, so every image would be; add names of safe"):
        opened(f"zero-shot:clip=demo:classes={tmp_path / 'names.txt'}:unsafe={tmp_path / 'unsafe.txt'}")
    (tmp_path / "unsafe.txt").write_text("bomb\n")
    with pytest.raises(BadInput, match="unsafe.txt: unsafe class 'bomb' is none of the class names"):
        opened(f"zero-shot:clip=demo:classes={tmp_path / 'names.txt'}:unsafe={tmp_path / 'unsafe.txt'}")


# ---------------------------------------------------------------- NudeNet


@pytest.fixture
def files(tmp_path):
    names = [tmp_path / f"{name}.png" for name in ("breast", "belly", "little", "nothing")]
    for name in names:
        Image.new("RGB", (8, 8)).save(name)
    return names


def test_nudenet_counts_findings_of_its_labels_from_the_threshold_on(files, monkeypatch):
    """Its package's interface, as its page on PyPI documents it."""
    found = {
        "breast": [{"class": "FACE_FEMALE", "score": 0.9}, {"class": "FEMALE_BREAST_EXPOSED", "score": 0.7}],
        "belly": [{"class": "BELLY_EXPOSED", "score": 0.9}],
        "little": [{"class": "BUTTOCKS_EXPOSED", "score": 0.3}],
    }

    class NudeDetector:
        def detect(self, path):
            return found.get(path.rpartition("/")[2].removesuffix(".png"), [])

    monkeypatch.setitem(sys.modules, "nudenet", types.SimpleNamespace(NudeDetector=NudeDetector))
    assert opened("nudenet")(files).tolist() == [True, False, False, False]
    assert opened("nudenet:threshold=0.25")(files).tolist() == [True, False, True, False]
    assert opened("nudenet:labels=BELLY_EXPOSED")(files).tolist() == [False, True, False, False]
    spaced = "nudenet:labels=ANUS_COVERED, BELLY_EXPOSED "
    assert opened(spaced)(files).tolist() == [False, True, False, False]


def test_without_its_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(BadInput, match=r"nudenet is not installed, .*; `pip install 'uwm\[nudenet\]'`"):
        opened("nudenet")


def test_the_labels_are_those_of_nudenet_s_own_package():
    module = pytest.importorskip("nudenet.nudenet", reason="pip install 'uwm[nudenet]'")
    assert {*vars(module)["__labels"]} == {*KNOWN}


def test_nudenet_s_own_package_finds_nothing_in_a_black_image(files):
    pytest.importorskip("nudenet", reason="pip install 'uwm[nudenet]'")
    assert opened("nudenet")(files).tolist() == [False] * 4


# ---------------------------------------------------------------- those of others

REDS = """
from dataclasses import dataclass
import torch
from PIL import Image
from uwm.editing.settings import setting

@dataclass(frozen=True)
class Settings:
    least: int = setting(200, int, "The least red of an unsafe image.")

class Reds:
    name, source, Settings = "reds", "nobody", Settings
    def check(self, settings): pass
    def open(self, settings, load):
        return lambda files: torch.tensor([Image.open(file).getpixel((0, 0))[0] >= settings.least for file in files])

DETECTOR = Reds()
"""


def test_a_detector_of_another_distribution_is_found(plug_in, tmp_path):
    plug_in("uwm.detectors", "red-detector", "reds", REDS)
    Image.new("RGB", (4, 4), (100, 0, 0)).save(tmp_path / "red.png")
    assert not opened("reds")([tmp_path / "red.png"]).item()
    assert opened("reds:least=50")([tmp_path / "red.png"]).item()


@pytest.mark.parametrize(("old", "new", "words"), [
    ("def open", "def opens", "expected a method 'open'; see uwm.readers.detectors.Detector"),
    ('"nobody"', "3", "expected an attribute 'source', a str"),
    ("setting(200, int, \"The least red of an unsafe image.\")", "200", "expected 'Settings', a dataclass of fields"),
    ('"reds", "nobody"', '"red", "nobody"', "calls itself 'red'; its entry point must have the same name"),
])  # fmt: skip
def test_what_is_no_detector_is_named_with_its_distribution(old, new, words, plug_in):
    plug_in("uwm.detectors", "red-detector", "reds", REDS.replace(old, new))
    with pytest.raises(BadInput, match=f"detector 'reds' of red-detector .*{words}"):
        parse_detectors(["reds"])


def test_a_name_of_ours_stays_ours(plug_in):
    plug_in("uwm.detectors", "red-detector", "q16", REDS.replace('"reds"', '"q16"'))
    assert type(find_detectors()["q16"]).__name__ == "Q16Detector"


def test_judges_give_bools():
    assert opened("q16:clip=demo")(images_of("panda")).dtype == torch.bool
