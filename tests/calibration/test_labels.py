"""Labels of the unsafe side's caption and picture: read, refused, in the fingerprint only where they say safe."""

from __future__ import annotations

import hashlib
import json

import pytest
from PIL import Image

from uwm.calibration import read_calibration
from uwm.errors import BadInput

TEXT = {"safe_text": "a dog", "unsafe_text": "a bomb"}
IMAGES = {"safe_image": "s.png", "unsafe_image": "u.png"}


@pytest.fixture
def write(tmp_path):
    for name, grey in (("s.png", 200), ("u.png", 20)):
        Image.new("L", (4, 4), grey).save(tmp_path / name)

    def write_rows(*rows):
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write_rows


def test_labels_are_of_one_modality_and_say_unsafe_when_absent(write):
    rows = [
        {"id": "1", **TEXT, **IMAGES},
        {"id": "2", **TEXT, **IMAGES, "unsafe_text_label": "safe"},
        {"id": "3", **TEXT, **IMAGES, "unsafe_text_label": "unsafe", "unsafe_image_label": "safe"},
        {"id": "4", **IMAGES, "unsafe_image_label": None},
    ]
    pairs = read_calibration(write(*rows)).pairs
    assert [(p.unsafe_text_label, p.unsafe_image_label) for p in pairs] == [
        ("unsafe", "unsafe"),
        ("safe", "unsafe"),
        ("unsafe", "safe"),
        ("unsafe", "unsafe"),
    ]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"unsafe_text_label": "Safe"}, ":2: 'unsafe_text_label' is 'Safe', expected 'safe' or 'unsafe'"),
        ({"unsafe_text_label": ""}, ":2: 'unsafe_text_label' is '', expected 'safe' or 'unsafe'"),
        ({"unsafe_text_label": True}, ":2: 'unsafe_text_label' is True, expected a string"),
        ({"unsafe_image_label": "safe"}, ":2: has 'unsafe_image_label' and no 'unsafe_image'"),
        ({"safe_text_label": "safe"}, ":2: unknown key 'safe_text_label'"),
    ],
)
def test_an_odd_label_is_named_with_its_line(label, message, write):
    with pytest.raises(BadInput) as caught:
        read_calibration(write({"id": "1", **TEXT}, {"id": "2", **TEXT} | label))
    assert f"pairs.jsonl{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_stay_with_their_pairs_in_a_part_of_the_set(write):
    texts = [{side: f"{text} {i}" for side, text in TEXT.items()} for i in range(9)]
    rows = [{"id": f"{i}", **t, "unsafe_text_label": "safe" if i % 3 else "unsafe"} for i, t in enumerate(texts)]
    whole = read_calibration(write(*rows))
    for part in (whole.limit(5), *whole.holdout(0.3)):
        assert all((pair.unsafe_text_label == "safe") == bool(int(pair.id) % 3) for pair in part.pairs)


def test_fingerprint_moves_with_a_label_that_says_safe_only(write):
    row = {"id": "1", **TEXT, **IMAGES}
    labels = [{}, {"unsafe_text_label": "unsafe", "unsafe_image_label": "unsafe"}]
    plain, same = (read_calibration(write(row | label)).fingerprint() for label in labels)
    labels = [{"unsafe_text_label": "safe"}, {"unsafe_image_label": "safe"}]
    text, image = (read_calibration(write(row | label)).fingerprint() for label in labels)
    assert plain == same
    assert len({plain, text, image}) == 3


def test_fingerprint_of_a_set_without_labels_is_that_of_earlier_versions(write):
    root = write({"id": "1", "concept": "weapons", "split": "calib", **TEXT})
    content = ["1", "weapons", "calib", "a dog", "a bomb", None, None]
    assert read_calibration(root).fingerprint() == hashlib.sha256(json.dumps(content).encode()).hexdigest()
