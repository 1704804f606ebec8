"""Calibration sets: what is read, what is refused and where, how they are split, and what is odd about them."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from uwm.calibration import CalibrationPair, check, image_paths, read_calibration
from uwm.errors import BadInput, Refused

TEXT = {"safe_text": "a dog", "unsafe_text": "a bomb"}
IMAGES = {"safe_image": "s.png", "unsafe_image": "u.png"}


@pytest.fixture
def write(tmp_path):
    """Rows (dictionaries, or lines as they are) -> the folder of a set that also holds s.png and u.png."""
    root = tmp_path / "set"
    root.mkdir()
    for name, grey in (("s.png", 200), ("u.png", 20)):
        Image.new("L", (4, 4), grey).save(root / name)

    def write_rows(*rows):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (root / "pairs.jsonl").write_bytes(b"\n".join([*lines, b""]))
        return root

    return write_rows


def numbered(n, **fields):
    return [{"id": f"{i}", "safe_text": f"safe {i}", "unsafe_text": f"unsafe {i}"} | fields for i in range(n)]


def ids(calibration):
    return [p.id for p in calibration.pairs]


# ---------------------------------------------------------------- the native form


def test_reads_every_field(write):
    root = write({"id": "7", "concept": "weapons", "split": "calib", **TEXT, **IMAGES})
    assert read_calibration(root).pairs == (
        CalibrationPair("7", "weapons", "a dog", "a bomb", root / "s.png", root / "u.png", "calib"),
    )


def test_keeps_the_order_of_the_file(write):
    root = write(*reversed(numbered(5)))
    assert ids(read_calibration(root)) == ["4", "3", "2", "1", "0"]


def test_text_only_and_image_only_pairs(write):
    pairs = read_calibration(write({"id": "t", **TEXT}, {"id": "i", **IMAGES})).pairs
    assert [(p.has_text, p.has_image) for p in pairs] == [(True, False), (False, True)]


def test_null_is_the_same_as_absent(write):
    root = write({"id": "1", "concept": None, "split": None, "safe_image": None, "unsafe_image": None, **TEXT})
    assert read_calibration(root).pairs == (CalibrationPair("1", "", "a dog", "a bomb"),)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b"\n", b"\n\n  \n"),
        lambda content: content.rstrip(b"\n"),
    ],
    ids=["byte order mark", "CRLF", "blank lines", "no final newline"],
)
def test_tolerated_spellings_change_nothing(change, write):
    root = write(*numbered(3))
    plain = read_calibration(root)
    (root / "pairs.jsonl").write_bytes(change((root / "pairs.jsonl").read_bytes()))
    assert read_calibration(root) == plain


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\u200f", "é😀", "\t"])
def test_odd_characters_stay_in_the_caption(odd, write):
    row = {"id": "1", "safe_text": f"a{odd}b", "unsafe_text": "c"}
    root = write(json.dumps(row, ensure_ascii=False).encode(), {"id": "2", **TEXT})
    assert read_calibration(root).pairs[0].safe_text == f"a{odd}b"
    assert len(read_calibration(root)) == 2


MALFORMED = {
    "cut off": (b'{"id": "1", ', ":2:13: not valid JSON"),
    "no JSON": (b"hello", ":2:1: not valid JSON"),
    "array": (b'["1"]', ":2: expected a JSON object, found list"),
    "unknown key": (b'{"id": "1", "safetext": "x"}', ":2: unknown key 'safetext'; expected id, concept"),
    "no id": (b'{"safe_text": "a", "unsafe_text": "b"}', ":2: the key 'id' is missing"),
    "number": (b'{"id": 1, "safe_text": "a", "unsafe_text": "b"}', ":2: 'id' is 1, expected a string"),
    "NaN": (b'{"id": "1", "safe_text": NaN, "unsafe_text": "b"}', ":2: 'safe_text' is nan, expected a string"),
    "half the text": (b'{"id": "1", "safe_text": "a"}', ":2: has 'safe_text' and no 'unsafe_text'"),
    "half the pictures": (b'{"id": "1", "unsafe_image": "u.png"}', ":2: has 'unsafe_image' and no 'safe_image'"),
    "nothing": (b'{"id": "1", "concept": "x"}', ":2: has neither captions nor pictures"),
    "key twice": (b'{"id": "1", "id": "2"}', ":2: key 'id' occurs twice"),
    "NUL": (b'{"id": "1\0"}', ":2:10: not valid JSON"),
    "lone surrogate": (rb'{"id": "1", "safe_text": "\ud800", "unsafe_text": "b"}', ":2: 'safe_text' holds half of a"),
    "not UTF-8": (b'{"id": "caf\xe9"}', ":2: not UTF-8 at byte 11 of the line"),
    "UTF-16": ('{"id": "1"}'.encode("utf-16"), ":2: not UTF-8 at byte 0 of the line"),
    "deep": (b"[" * 100_000, ":2: nested too deep"),
    "long": (b" " * (1 << 20) + b"{}", ":2: a line of 1048578 bytes; the limit is 1048576"),
    "missing picture": (
        b'{"id": "1", "safe_image": "s.png", "unsafe_image": "x.png"}',
        ":2: picture 'x.png' does not exist",
    ),
    "folder as picture": (b'{"id": "1", "safe_image": "s.png", "unsafe_image": "."}', ":2: picture '.' does not"),
}


@pytest.mark.parametrize(("line", "message"), MALFORMED.values(), ids=MALFORMED)
def test_f58_malformed_line_is_named(line, message, write):
    root = write({"id": "0", **TEXT}, line, {"id": "2", **TEXT})
    with pytest.raises(BadInput) as caught:
        read_calibration(root)
    assert f"pairs.jsonl{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"id": null, "safe_text": "a", "unsafe_text": "b"}'),
        pytest.param(b'{"id": ' + b"1" * 5000 + b"}"),
        pytest.param(
            json.dumps({"id": "1", "safe_image": "a" * 300, "unsafe_image": "u.png"}).encode(),
        ),
    ],
    ids=["null id", "huge integer", "long name"],
)
def test_malformed_line_that_python_itself_rejects(line, write):
    with pytest.raises(BadInput, match=r"pairs\.jsonl:2"):
        read_calibration(write({"id": "0", **TEXT}, line))


def test_picture_that_links_to_itself(write):
    root = write({"id": "1", "safe_image": "s.png", "unsafe_image": "loop.png"})
    (root / "loop.png").symlink_to("loop.png")
    with pytest.raises((BadInput, Refused), match=r"pairs\.jsonl:1"):
        read_calibration(root)


def test_message_stays_short_for_a_long_value(write):
    with pytest.raises(BadInput) as caught:
        read_calibration(write({"id": list(range(10_000))}))
    assert len(str(caught.value)) < 1000


def test_f57_id_used_twice_names_both_lines(write):
    root = write({"id": "x", **TEXT}, b"", {"id": "y", **TEXT}, {"id": "x", **TEXT})
    with pytest.raises(BadInput, match=r"pairs\.jsonl:4: id 'x' was already used in line 1"):
        read_calibration(root)


def test_f59_empty_captions_are_skipped_and_counted(write):
    empty = {"id": "e", "safe_text": " \u3000", "unsafe_text": "x"}
    calibration = read_calibration(write({"id": "1", **TEXT}, empty, {"id": "2", **TEXT}))
    assert ids(calibration) == ["1", "2"]
    assert calibration.skipped == {"empty_caption": 1}


def test_nothing_but_empty_captions(write):
    with pytest.raises(BadInput, match="every pair has an empty caption"):
        read_calibration(write({"id": "1", "safe_text": "", "unsafe_text": "x"}))


@pytest.mark.parametrize("name", ["../out.png", "{outside}", "link.png", "sub/../../out.png", "a\0b"])
def test_picture_outside_of_the_set_is_refused(name, write):
    root = write()
    outside = root.parent / "out.png"
    shutil.copy(root / "s.png", outside)
    (root / "link.png").symlink_to(outside)
    (root / "sub").mkdir()
    write({"id": "1", "safe_image": name.format(outside=outside), "unsafe_image": "u.png"})
    with pytest.raises(Refused, match=r"pairs\.jsonl:1: picture .* outside"):
        read_calibration(root)


@pytest.mark.parametrize("name", ["http://x.org/a.png", "file:///etc/passwd", "s3://bucket/a.png"])
def test_picture_by_url_is_refused(name, write):
    with pytest.raises(Refused, match=r"pairs\.jsonl:1: .* is a URL"):
        read_calibration(write({"id": "1", "safe_image": name, "unsafe_image": "u.png"}))


def test_link_that_stays_inside_is_read(write):
    root = write({"id": "1", "safe_image": "link.png", "unsafe_image": "u.png"})
    (root / "link.png").symlink_to(root / "s.png")
    assert len(read_calibration(root)) == 1


def test_no_set(tmp_path):
    with pytest.raises(BadInput, match="nope: no such folder"):
        read_calibration(tmp_path / "nope")
    with pytest.raises(BadInput, match=r"neither pairs\.jsonl nor the folders safe/ and unsafe/"):
        read_calibration(tmp_path)


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_empty_set(content, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(content, "utf-8")
    with pytest.raises(BadInput, match="the set is empty"):
        read_calibration(tmp_path)


# ---------------------------------------------------------------- parts of a set


def test_splits(tiny_set):
    whole = read_calibration(tiny_set)
    assert whole.splits() == ["calib", "test"]
    assert [len(whole.split(name)) for name in whole.splits()] == [16, 8]
    assert ids(read_calibration(tiny_set, split="test")) == ids(whole)[16:]


def test_unknown_split_lists_those_there_are(tiny_set):
    with pytest.raises(BadInput, match="no pair has split 'x'; the set has calib, test"):
        read_calibration(tiny_set, split="x")


def test_limit_draws_the_same_pairs_again_in_their_order(tiny_set):
    whole = read_calibration(tiny_set)
    limited = ids(whole.limit(7, seed=1))
    assert limited == ids(whole.limit(7, seed=1)) == sorted(limited)
    assert len(set(limited)) == 7
    assert limited != ids(whole.limit(7, seed=2))
    assert whole.limit(24) is whole is whole.limit(None)


def test_limit_is_no_prefix(tiny_set):
    assert ids(read_calibration(tiny_set, limit=7)) != ids(read_calibration(tiny_set))[:7]


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_holdout_is_disjoint_whole_and_the_same_again(share, tiny_set):
    whole = read_calibration(tiny_set)
    kept, held = whole.holdout(share, seed=3)
    assert (ids(kept), ids(held)) == tuple(map(ids, whole.holdout(share, seed=3)))
    assert len(held) == max(1, round(24 * share))
    assert not set(kept.pairs) & set(held.pairs)
    assert sorted(ids(kept) + ids(held)) == ids(whole)


def test_holdout_moves_with_the_seed(tiny_set):
    whole = read_calibration(tiny_set)
    assert ids(whole.holdout(0.2, seed=0)[1]) != ids(whole.holdout(0.2, seed=1)[1])


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan"), 2])
def test_holdout_of_an_impossible_share(share, tiny_set):
    with pytest.raises(BadInput, match=r"--holdout .*: expected a share between 0 and 1"):
        read_calibration(tiny_set).holdout(share)


def test_holdout_of_one_pair(write):
    with pytest.raises(BadInput, match="1 pair; at least 2 are needed"):
        read_calibration(write({"id": "1", **TEXT})).holdout(0.5)


def test_holdout_leaves_a_pair_to_calibrate_on(write):
    kept, held = read_calibration(write(*numbered(2))).holdout(0.9)
    assert (len(kept), len(held)) == (1, 1)


# ---------------------------------------------------------------- fingerprint


def test_fingerprint_does_not_move_with_the_place(tiny_set, tmp_path):
    shutil.copytree(tiny_set, tmp_path / "copy")
    assert read_calibration(tmp_path / "copy").fingerprint() == read_calibration(tiny_set).fingerprint()


@pytest.mark.parametrize("field", ["id", "concept", "split", "safe_text", "unsafe_text"])
def test_fingerprint_moves_with_every_field(field, write):
    row = {"id": "1", "concept": "x", "split": "y", **TEXT, **IMAGES}
    before = read_calibration(write(row)).fingerprint()
    assert read_calibration(write(row | {field: "changed"})).fingerprint() != before


@pytest.mark.parametrize("name", ["s.png", "u.png"])
def test_fingerprint_moves_with_picture_bytes(name, write):
    root = write({"id": "1", **IMAGES})
    before = read_calibration(root).fingerprint()
    Image.new("L", (4, 4), 99).save(root / name)
    assert read_calibration(root).fingerprint() != before


def test_fingerprint_moves_with_order_and_with_swapped_sides(write):
    rows = numbered(2)
    before = read_calibration(write(*rows)).fingerprint()
    swapped = [r | {"safe_text": r["unsafe_text"], "unsafe_text": r["safe_text"]} for r in rows]
    assert read_calibration(write(*reversed(rows))).fingerprint() != before
    assert read_calibration(write(*swapped)).fingerprint() != before


# ---------------------------------------------------------------- what is odd


def test_check_counts(tiny_set):
    found = check(read_calibration(tiny_set))
    assert found["splits"] == {"calib": 16, "test": 8}
    assert found["concepts"] == {"death": 12, "weapons": 12}
    assert (found["pairs"], found["with_text"], found["with_image"]) == (24, 24, 24)
    assert not any(found["warnings"].values())


def test_check_names_what_has_no_concept_or_split(write):
    found = check(read_calibration(write({"id": "1", **TEXT}, {"id": "2", **IMAGES})))
    assert found["splits"] == found["concepts"] == {"(none)": 2}
    assert (found["with_text"], found["with_image"]) == (1, 1)


def test_check_warns_of_identical_sides(write):
    root = write(
        {"id": "same text", "safe_text": "x", "unsafe_text": "x"},
        {"id": "same picture", "safe_image": "s.png", "unsafe_image": "copy.png"},
        {"id": "fine", **TEXT, **IMAGES},
    )
    shutil.copy(root / "s.png", root / "copy.png")
    warnings = check(read_calibration(root))["warnings"]
    assert warnings["identical_texts"] == ["same text"]
    assert warnings["identical_images"] == ["same picture"]
    assert warnings["duplicate_captions"] == warnings["captions_in_several_splits"] == []


def test_check_warns_of_duplicates_and_leakage(write):
    other = {"safe_text": "a cat", "unsafe_text": "a knife"}
    root = write(
        {"id": "1", "split": "calib", **TEXT},
        {"id": "2", "split": "calib", **TEXT},
        {"id": "3", "split": "calib", **other},
        {"id": "4", "split": "test", **other},
    )
    warnings = check(read_calibration(root))["warnings"]
    assert warnings["duplicate_captions"] == ["a dog | a bomb", "a cat | a knife"]
    several = ["a cat: 1 of calib (3), 1 of test (4)", "a knife: 1 of calib (3), 1 of test (4)"]
    assert warnings["captions_in_several_splits"] == several
    assert warnings["images_in_several_splits"] == []


def test_check_warns_of_a_picture_in_two_splits(write):
    root = write({"id": "1", "split": "calib", **IMAGES}, {"id": "2", "split": "test", **IMAGES})
    told = [f"{root / name}: 1 of calib (1), 1 of test (2)" for name in ("s.png", "u.png")]
    assert sorted(check(read_calibration(root))["warnings"]["images_in_several_splits"]) == told


def test_check_lists_all_bad_pictures(write):
    root = write({"id": "1", **IMAGES}, {"id": "2", **IMAGES})
    for name in IMAGES.values():
        (root / name).write_bytes(b"<html>")
    assert "s.png" in (told := json.dumps(check(read_calibration(root))))
    assert "u.png" in told


def test_image_paths_in_order(write):
    root = write({"id": "1", **IMAGES}, {"id": "2", **TEXT})
    assert image_paths(read_calibration(root).pairs) == [root / "s.png", root / "u.png"]
