"""Jobs that open several models: every image is read once, and kept only for models that prepare it alike."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from families import copied
from PIL import Image

import uwm
from uwm import images
from uwm.calibration import image_paths
from uwm.errors import BadInput
from uwm.inputs import SharedImages
from uwm.models import kept

HOW = ("--holdout", 0.3, "--validation", 0.3, "-q")


@pytest.fixture
def reads(monkeypatch):
    """How often each file was decoded."""
    found, real = Counter(), images._open
    monkeypatch.setattr(images, "_open", lambda path: found.update([path]) or real(path))
    return found


@pytest.fixture
def data_set(tmp_path):
    """A zero-shot data set of two classes with two images each."""
    rng = np.random.default_rng(0)
    for name in ("dog", "cat"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(2):
            picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            picture.save(tmp_path / "classes" / name / f"{number}.png")
    return tmp_path / "classes"


def every_image(folder, data_set):
    return {*image_paths(uwm.read_calibration(folder).split("calib").pairs), *data_set.rglob("*.png")}


def test_finetune_reads_every_image_once(run_uwm, reads, tiny_hf, tiny_set, data_set, tmp_path):
    where = ("--calib", tiny_set, "--split", "calib", "--zero-shot", data_set, "-o", tmp_path / "out")
    code, _, err = run_uwm(
        "finetune", tiny_hf, "--method", "safe-clip", "--epochs", 2, "--train-batch", 8, *where, *HOW
    )
    assert code == 0, err
    assert reads == dict.fromkeys(every_image(tiny_set, data_set), 1)


def test_compare_reads_every_image_once(run_uwm, reads, tiny_hf, tiny_set, data_set, tmp_path):
    where = ("--calib", tiny_set, "--split", "calib", "--zero-shot", data_set, "-o", tmp_path / "out")
    methods = (
        "--methods",
        "uwm,safe-clip:epochs=1:train-batch=8,safe-clip:epochs=1:train-batch=8+uwm",
        "--seeds",
        "0,1",
    )
    code, _, err = run_uwm("compare", tiny_hf, *methods, *where, *HOW)
    assert code == 0, err
    assert reads == dict.fromkeys(every_image(tiny_set, data_set), 1)


def test_models_share_images_that_they_prepare_alike(tiny_hf, tiny_open_clip, tiny_set, reads):
    sets = [uwm.read_calibration(tiny_set)]
    shared = SharedImages(sets, workers=1)
    first, second = (shared.give(uwm.load(tiny_hf)) for _ in range(2))
    assert second.kept.pixels is first.kept.pixels
    assert {*second.kept.pixels} == {*image_paths(sets[0].pairs)} == {*reads}
    assert second.kept.embeddings is not first.kept.embeddings


def test_a_model_that_prepares_images_otherwise_shares_none(tiny_hf, tiny_set, tmp_path):
    other = copied(tiny_hf, tmp_path / "other")
    config = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0.5, 0.5, 0.5]}))
    shared = SharedImages([uwm.read_calibration(tiny_set)], workers=1)
    first, second = shared.give(uwm.load(tiny_hf)), shared.give(uwm.load(other))
    assert first.kept.pixels
    assert not second.kept.pixels


def test_the_first_model_that_is_given_images_refuses_bad_ones(tiny_hf, tiny_set, tmp_path):
    folder = copied(tiny_set, tmp_path / "set")
    pairs = uwm.read_calibration(folder)
    for pair in pairs.pairs[:2]:
        pair.safe_image.write_bytes(b"no image")
    with pytest.raises(BadInput, match="2 bad images: "):
        SharedImages([pairs], workers=1).give(uwm.load(tiny_hf))


def test_images_that_are_kept_leave_less_room_for_the_next_model(tiny_hf, tiny_set, monkeypatch):
    shared = SharedImages([uwm.read_calibration(tiny_set)], workers=1)
    first, second = (shared.give(uwm.load(tiny_hf)) for _ in range(2))
    assert second.kept.room == first.kept.room < kept.ROOM
