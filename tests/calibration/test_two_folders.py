"""Sets of two folders, paired by the stems of their files: what is read, and what is refused and where."""

from __future__ import annotations

import pytest
from PIL import Image

from uwm.calibration import CalibrationPair, read_calibration
from uwm.errors import BadInput, Refused


def ids(calibration):
    return [p.id for p in calibration.pairs]


@pytest.fixture
def folders(tmp_path):
    """Names of files -> a set with these in safe/ and unsafe/; captions name their file, pictures are tiny."""

    def make(safe, unsafe):
        for side, names in (("safe", safe), ("unsafe", unsafe)):
            (tmp_path / "set" / side).mkdir(parents=True)
            for path in (tmp_path / "set" / side / name for name in names):
                if path.suffix in (".txt", ".md"):
                    path.write_text(f"{side} {path.name}\n")
                else:
                    Image.new("L", (4, 4)).save(path)
        return tmp_path / "set"

    return make


def test_folders_are_paired_by_stem(folders):
    root = folders(["b.png", "a.txt", "b.txt", "a.jpg", "notes.md"], ["a.txt", "a.webp", "b.png", "b.txt"])
    assert read_calibration(root).pairs == (
        CalibrationPair("a", "", "safe a.txt", "unsafe a.txt", root / "safe/a.jpg", root / "unsafe/a.webp"),
        CalibrationPair("b", "", "safe b.txt", "unsafe b.txt", root / "safe/b.png", root / "unsafe/b.png"),
    )


@pytest.mark.parametrize(("name", "modalities"), [("a.txt", (True, False)), ("a.PNG", (False, True))])
def test_folders_of_one_modality(name, modalities, folders):
    (pair,) = read_calibration(folders([name], [name])).pairs
    assert (pair.has_text, pair.has_image) == modalities


def test_f55_unmatched_stems_are_named(folders):
    root = folders([f"{i}.png" for i in range(9)], ["8.png", "x.png"])
    with pytest.raises(
        BadInput, match=r"9 file stems occur on one side only, such as 0, 1, 2, 3, 4; .* paired by stem"
    ):
        read_calibration(root)


@pytest.mark.parametrize(("safe", "unsafe"), [([], ["a.png"]), (["a.png"], []), ([], [])])
def test_f53_one_empty_side_is_named_with_counts(safe, unsafe, folders):
    with pytest.raises(BadInput, match=rf"safe/ holds {len(safe)} items and unsafe/ {len(unsafe)}; both"):
        read_calibration(folders(safe, unsafe))


def test_two_pictures_of_one_stem(folders):
    with pytest.raises(BadInput, match=r"a\.jpg and a\.png|a\.png and a\.jpg"):
        read_calibration(folders(["a.png", "a.jpg"], ["a.png"]))


def test_other_kind_on_the_other_side(folders):
    with pytest.raises(BadInput, match=r"'a' has text in safe/ and image in unsafe/"):
        read_calibration(folders(["a.txt"], ["a.png"]))


def test_caption_file_that_is_not_utf8(folders):
    root = folders(["a.txt"], ["a.txt"])
    (root / "unsafe/a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadInput, match=r"a\.txt: not UTF-8 at byte 3"):
        read_calibration(root)


def test_caption_file_with_byte_order_mark(folders):
    root = folders(["a.txt"], ["a.txt"])
    (root / "safe/a.txt").write_bytes(b"\xef\xbb\xbfa dog\r\n")
    assert read_calibration(root).pairs[0].safe_text == "a dog"


def test_folder_picture_that_links_out_is_refused(folders):
    root = folders(["a.png"], ["a.png"])
    outside = root.parent / "outside.png"
    (root / "safe/a.png").rename(outside)
    (root / "safe/a.png").symlink_to(outside)
    with pytest.raises(Refused, match="outside"):
        read_calibration(root)
