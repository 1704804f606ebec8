"""ViSU-Text files with and without pictures, as the authors hand them out; the texts here are harmless."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from uwm.calibration import CalibrationPair, read_calibration
from uwm.errors import BadInput


def item(number, **fields):
    captions = {"safe": f"a cup of tea {number}", "nsfw": f"a glass of beer {number}"}
    return {"incremental_id": number, **captions, "tag": "alcohol", "coco_id": 139 + number} | fields


def write(path, *items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items))
    return path


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


@pytest.fixture
def roots(tmp_path):
    """COCO and unsafe pictures for items 0 and 1 of the training split, in the folders that the flags name."""
    for number, split in ((139, "train2017"), (140, "val2017")):
        picture(tmp_path / "coco" / split / f"{number:012d}.jpg")
    picture(tmp_path / "unsafe" / "train" / "0" / "0.jpg")
    picture(tmp_path / "unsafe" / "train" / "1.png")
    return {"safe_images": tmp_path / "coco", "unsafe_images": tmp_path / "unsafe"}


@pytest.fixture
def train(tmp_path):
    return tmp_path / "visu" / "ViSU-Text_train.json"


def test_captions_only(train):
    write(train, item(0), item(5, tag="violence"))
    assert read_calibration(train).pairs == (
        CalibrationPair("train/0", "alcohol", "a cup of tea 0", "a glass of beer 0", split="train"),
        CalibrationPair("train/5", "violence", "a cup of tea 5", "a glass of beer 5", split="train"),
    )


def test_with_pictures(train, roots, tmp_path):
    write(train, item(0), item(1))
    first, second = read_calibration(train, **roots).pairs
    assert first.safe_image == tmp_path / "coco" / "train2017" / "000000000139.jpg"
    assert first.unsafe_image == tmp_path / "unsafe" / "train" / "0" / "0.jpg"
    assert second.safe_image == tmp_path / "coco" / "val2017" / "000000000140.jpg"
    assert second.unsafe_image == tmp_path / "unsafe" / "train" / "1.png"
    assert first.missing == second.missing == ()
    assert first.has_image


def test_the_folders_of_pictures_may_lie_beside_the_captions(train, roots):
    write(train, item(0), item(1))
    expected = read_calibration(train, **roots).fingerprint()
    for flag, folder in roots.items():
        shutil.move(folder, train.parent / flag)
    assert read_calibration(train).fingerprint() == expected
    assert read_calibration(train.parent).fingerprint() == expected


@pytest.mark.parametrize("name", ["COCO_val2014_000000000141.jpg", "000000000141.jpg"])
@pytest.mark.parametrize("folder", [".", "val2014"])
def test_cocos_names(name, folder, train, roots, tmp_path):
    write(train, item(0), item(2))
    path = picture(tmp_path / "coco" / folder / name)
    assert read_calibration(train, **roots).pairs[1].safe_image == path


def test_one_file_needs_no_split_folder(train, roots, tmp_path):
    write(train, item(0))
    shutil.move(tmp_path / "unsafe" / "train" / "0", tmp_path / "unsafe" / "0")
    shutil.rmtree(tmp_path / "unsafe" / "train")
    assert read_calibration(train, **roots).pairs[0].unsafe_image == tmp_path / "unsafe" / "0" / "0.jpg"


def test_all_splits_of_a_folder(train, roots, tmp_path):
    """The same number in two splits is two pairs, and never takes the other's picture."""
    write(train, item(0), item(1))
    write(train.with_name("ViSU-Text_test.json"), item(0, safe="a cup", coco_id=140), item(7))
    picture(tmp_path / "unsafe" / "0" / "0.jpg")  # of which split, nothing says
    whole = read_calibration(train.parent, **roots)
    assert [p.id for p in whole.pairs] == ["test/0", "test/7", "train/0", "train/1"]
    assert whole.splits() == ["test", "train"]
    assert [p.missing for p in whole.pairs] == [("unsafe_image",), ("safe_image", "unsafe_image"), (), ()]
    assert whole.split("train").missing() == {}
    assert whole.missing() == {"missing_safe_image": 1, "missing_unsafe_image": 2}


def test_missing_pictures_are_counted_and_the_captions_stay(train, roots):
    write(train, item(0), item(1, coco_id=999), item(2, coco_id=139))
    found = read_calibration(train, **roots)
    assert [(p.has_text, p.has_image) for p in found.pairs] == [(True, True), (True, False), (True, False)]
    assert found.warnings() == [
        "1 of 3 pairs have captions only: missing safe image",
        "1 of 3 pairs have captions only: missing unsafe image",
    ]


def test_no_picture_at_all_is_a_wrong_folder(train, roots, tmp_path):
    write(train, item(50), item(51))
    with pytest.raises(BadInput, match=r"coco: not one of 2 safe pictures is there; .*train2017/000000000139\.jpg"):
        read_calibration(train, **roots)
    (tmp_path / "empty").mkdir()
    write(train, item(0), item(1))
    with pytest.raises(BadInput, match=r"empty: not one of 2 unsafe pictures is there; .*train/0/0\.jpg"):
        read_calibration(train, **roots | {"unsafe_images": tmp_path / "empty"})


def test_one_root_is_not_enough(train, roots):
    write(train, item(0))
    with pytest.raises(BadInput, match="one side only; say where the others lie with --unsafe-images"):
        read_calibration(train, safe_images=roots["safe_images"])
    with pytest.raises(BadInput, match="--unsafe-images nope: no such folder"):
        read_calibration(train, **roots | {"unsafe_images": "nope"})


def test_the_misspelt_tag_is_the_right_one(train):
    write(train, item(0, tag="bodily bluids"), item(1, tag="bodily fluids"))
    assert {p.concept for p in read_calibration(train).pairs} == {"bodily fluids"}


def test_an_empty_caption_is_skipped_and_counted(train):
    write(train, item(0), item(109551, nsfw=""))
    found = read_calibration(train)
    assert [p.id for p in found.pairs] == ["train/0"]
    assert found.warnings() == ["1 pairs skipped: empty caption"]


def test_a_file_of_another_name_is_known_by_its_keys(tmp_path):
    found = read_calibration(write(tmp_path / "mine.json", item(3)))
    assert (found.pairs[0].id, found.pairs[0].split) == ("3", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', r"train\.json: expected a JSON list of items, found dict"),
        ("[1]", r"item 0: expected a JSON object, found int"),
        ("[{}]", r"item 0: the key 'incremental_id' is missing; is this ViSU-Text\?"),
        (json.dumps([item(0), item(0)]), r"item 1: incremental_id 0 was already used"),
        (json.dumps([item(0, incremental_id="x")]), r"item 0: 'incremental_id' is 'x', expected a whole number"),
        (json.dumps([item(0, incremental_id=True)]), r"item 0: 'incremental_id' is True, expected a whole number"),
        (json.dumps([item(0, coco_id=None)]), r"item 0: 'coco_id' is None, expected a whole number"),
        (json.dumps([item(0, safe=None)]), r"item 0: 'safe' is None, expected a string"),
        (json.dumps([item(0, nsfw="\ud800")]), r"item 0: 'nsfw' holds half of a surrogate pair"),
        ('[{"safe": "a",\n "safe": "b"}]', r"key 'safe' occurs twice"),
        ('[{"safe": \n]', r"train\.json:2:1: not valid JSON"),
        ("[]", "the set is empty"),
        ("", r"train\.json:1: not valid JSON"),
    ],
)
def test_malformed(content, message, train):
    train.parent.mkdir()
    train.write_text(content)
    with pytest.raises(BadInput, match=message):
        read_calibration(train)
