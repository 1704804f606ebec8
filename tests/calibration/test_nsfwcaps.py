"""NSFWCaps as JSON, JSON lines and CSV, with pictures found by name and URLs never fetched; the texts are harmless."""

from __future__ import annotations

import csv
import json
import socket

import pytest
from PIL import Image

from uwm.calibration import CalibrationPair, read_calibration
from uwm.errors import BadInput, Refused

ROWS = [
    {
        "image_coco_url": f"https://example.org/nocaps/val/{name}.jpg?size=1",
        "caption": f"a vase, or a cup {name}",
        "nsfw_caption": f'a "cigarette" beside a vase {name}',
        "chosen_category": "smoking",
    }
    for name in ("aa", "bb", "cc")
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever opens a connection fails the test."""

    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)


def write(folder, suffix, rows):
    path = folder / f"NSFWCaps{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def roots(tmp_path):
    """Pictures of the first item under its own names, of the second under its number, of the third none unsafe."""
    for name in ("safe/aa.jpg", "safe/bb.jpg", "safe/cc.jpg", "unsafe/aa.png", "unsafe/1/0.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return {"safe_images": tmp_path / "safe", "unsafe_images": tmp_path / "unsafe"}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_captions_only(suffix, tmp_path):
    found = read_calibration(write(tmp_path, suffix, ROWS))
    assert found.pairs[1] == CalibrationPair("1", "smoking", ROWS[1]["caption"], ROWS[1]["nsfw_caption"])
    assert len(found) == 3
    assert found.warnings() == []


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_pictures_by_the_last_part_of_the_url_and_by_number(suffix, tmp_path, roots):
    found = read_calibration(write(tmp_path, suffix, ROWS), **roots)
    assert [p.safe_image.name for p in found.pairs] == ["aa.jpg", "bb.jpg", "cc.jpg"]
    assert [p.unsafe_image for p in found.pairs] == [
        tmp_path / "unsafe" / "aa.png",
        tmp_path / "unsafe" / "1" / "0.jpg",
        None,
    ]
    assert found.warnings() == ["1 of 3 pairs have captions only: missing unsafe image"]


def test_a_picture_of_which_only_the_url_is_known_is_missing(tmp_path, roots):
    (tmp_path / "safe" / "bb.jpg").unlink()
    found = read_calibration(write(tmp_path, ".json", ROWS), **roots)
    assert found.missing() == {"missing_safe_image": 1, "missing_unsafe_image": 1}
    assert [p.has_image for p in found.pairs] == [True, False, False]


def test_files_and_ids_that_the_file_names(tmp_path, roots):
    row = {"id": 7, "safe_caption": "a", "unsafe_caption": "b", "category": "c", "image": "aa.jpg"}
    pair = read_calibration(write(tmp_path, ".json", [row | {"unsafe_image": "1/0.jpg"}]), **roots).pairs[0]
    assert (pair.id, pair.safe_text, pair.unsafe_text, pair.concept) == ("7", "a", "b", "c")
    assert (pair.safe_image, pair.unsafe_image) == (tmp_path / "safe" / "aa.jpg", tmp_path / "unsafe" / "1" / "0.jpg")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a\0b.jpg", "https://example.org/%2e%2e"])
@pytest.mark.parametrize("key", ["image", "unsafe_image"])
def test_a_picture_outside_of_its_root_is_refused(key, name, tmp_path, roots):
    with pytest.raises(Refused, match="item 0: picture .* lies outside of"):
        read_calibration(write(tmp_path, ".json", [ROWS[0] | {"image_coco_url": None, key: name}]), **roots)


@pytest.mark.parametrize("name", ["https://example.org/", "https://example.org/..%2Fx", "https://[x/a.jpg"])
def test_an_address_never_leads_out_of_the_root(name, tmp_path, roots):
    found = read_calibration(write(tmp_path, ".json", [*ROWS, ROWS[0] | {"image_coco_url": name}]), **roots)
    assert "safe_image" in found.pairs[3].missing


def test_a_name_that_cannot_be_a_file(tmp_path, roots):
    with pytest.raises(BadInput, match=r"item 0: picture 'x+… cannot be read"):
        read_calibration(write(tmp_path, ".json", [ROWS[0] | {"image_coco_url": "x" * 5000}]), **roots)


def test_an_id_never_leads_out_of_the_root(tmp_path, roots):
    rows = [*ROWS, ROWS[2] | {"id": "../safe/aa"}]
    assert read_calibration(write(tmp_path, ".json", rows), **roots).pairs[3].unsafe_image is None


def test_not_one_picture(tmp_path, roots):
    rows = [row | {"image_coco_url": "https://example.org/zz.jpg"} for row in ROWS]
    with pytest.raises(BadInput, match=r"safe: not one of 3 safe pictures is there; .* such as zz\.jpg"):
        read_calibration(write(tmp_path, ".json", rows), **roots)


def test_an_empty_caption_is_skipped_and_counted(tmp_path):
    found = read_calibration(write(tmp_path, ".csv", [*ROWS, ROWS[0] | {"caption": " "}]))
    assert (len(found), found.skipped) == (3, {"empty_caption": 1})


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".json", "{}", "expected a JSON list of items, found dict"),
        (".json", "[[]]", "item 0: expected a JSON object, found list"),
        (".json", '[{"caption": "a"}]', "item 0: no nsfw_caption or unsafe_caption; found caption"),
        (".json", '[{"caption": ["a"], "nsfw_caption": "b"}]', r"item 0: 'caption' is \['a'\], expected a string"),
        (".jsonl", '{"caption": "a", "nsfw_caption": "b"}\n{', r"NSFWCaps\.jsonl:2:2: not valid JSON"),
        (".jsonl", '{"id": 1, "caption": "a", "nsfw_caption": "b"}\n' * 2, r"jsonl:2: id '1' was already used"),
        (".csv", "caption,nsfw_caption\na\n", r"csv:2: not as many cells as the heading's 2"),
        (".csv", "caption,nsfw_caption\na,b,c\n", r"csv:2: not as many cells as the heading's 2"),
        (".csv", 'caption,nsfw_caption\n"a,b\n', r"NSFWCaps\.csv: not valid CSV \(unexpected end of data\)"),
        (".csv", "text,label\na,b\n", "csv:2: no caption or safe_caption; found text, label"),
        (".csv", "", "the set is empty"),
    ],
)
def test_malformed(suffix, content, message, tmp_path):
    (tmp_path / f"NSFWCaps{suffix}").write_text(content)
    with pytest.raises(BadInput, match=message):
        read_calibration(tmp_path / f"NSFWCaps{suffix}")


def test_not_utf8(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"caption,nsfw_caption\ncaf\xe9,b\n")
    with pytest.raises(BadInput, match="not UTF-8 at byte 24"):
        read_calibration(tmp_path / "x.csv")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_a_folder_with_one_file_and_its_pictures_is_read(suffix, tmp_path):
    """As the guide says: the file is called NSFWCaps…, the pictures lie in safe_images/ and unsafe_images/."""
    file = write(tmp_path, suffix, ROWS)
    for name in ("safe_images/aa.jpg", "unsafe_images/aa.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert read_calibration(tmp_path).pairs == read_calibration(file).pairs
    assert read_calibration(tmp_path).pairs[0].unsafe_image == tmp_path / "unsafe_images" / "aa.png"


def test_a_folder_with_two_files_is_refused(tmp_path):
    for suffix in (".json", ".csv"):
        write(tmp_path, suffix, ROWS)
    with pytest.raises(BadInput, match=r"NSFWCaps\.csv and NSFWCaps\.json are both NSFWCaps; name one of the files"):
        read_calibration(tmp_path)
