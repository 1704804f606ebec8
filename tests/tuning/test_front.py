"""tune.json is an input from strangers too: what is read, and what is refused."""

from __future__ import annotations

import copy
import json

import pytest
from made_up_front import made_up_front

from uwm.errors import BadInput, Refused
from uwm.tuning.front import is_front, patch_path, read_front

FRONT = made_up_front(12)


@pytest.fixture
def read(tmp_path):
    """Write an object, or text, as tune.json and read it."""

    def read(content):
        (tmp_path / "tune.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read_front(tmp_path)

    return read


def test_what_was_written_is_read(read, tmp_path):
    assert not is_front(tmp_path)
    assert read(FRONT) == FRONT
    assert is_front(tmp_path)


def test_one_without_a_date_is_read(read):
    assert "run" not in read(changed(("run",), ...))


def test_a_folder_without_one_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"no tune\.json in it, so it is no folder that uwm tune wrote"):
        read_front(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "holds no result of uwm tune"),
        ({**FRONT, "kind": "patch"}, "holds no result of uwm tune"),
        ({**FRONT, "format": 2}, "format 2, this uwm reads 1; update uwm"),
        ({k: v for k, v in FRONT.items() if k != "format"}, "format None"),
        ('{"kind": "tune", "format": 1, "notes": ' + "[" * 5000 + "]" * 5000 + "}", "too deep|not valid"),
        ('{"kind": "tune", "format": 1, "notes": ' + "[" * 900 + "]" * 900 + "}", "too deep|damaged"),
    ],
)
def test_no_front(read, content, words):
    with pytest.raises(BadInput, match=rf"tune\.json: .*({words})"):
        read(content)


def changed(path, value):
    """The front with another value at a path of keys; without the key where the value is `Ellipsis`."""
    content = copy.deepcopy(FRONT)
    at = content
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("run",), {"date": 7}, "run.date: expected a text"),
        (("points",), [], r"points: expected a list of at least one, found \[\]"),
        (("points", 0, "loss"), "x", r"points\[0\]\.loss: expected a number, found 'x'"),
        (("points", 0, "loss"), float("nan"), r"points\[0\]\.loss: expected a number, found nan"),
        (("points", 0, "loss"), 10**400, r"points\[0\]\.loss: expected a number"),
        (("points", 0, "loss"), True, r"points\[0\]\.loss: expected a number"),
        (("points", 1, "patch"), ..., r"points\[1\]\.patch: expected a value, found None"),
        (("points", 1, "number"), 7, r"points: expected the numbers 1, 2, 3, …"),
        (("points", 0, "held_out"), {}, r"points\[0\]\.held_out: expected the sets \['held-out'\]"),
        (("points", 0, "cross_validated", "figures", "GS"), [1, 2], r"figures\.GS: expected a list of 3"),
        (
            ("baseline", "cross_validated", "zero_shot", "seen", "top1"),
            None,
            r"zero_shot\.seen\.top1: expected a number",
        ),
        (("knee",), 99, "knee: expected a point's number, found 99"),
        (("knee",), -1, "knee: expected a whole number"),
        (("loss", "unit"), "°", "loss.unit: expected % or pt"),
        (("loss", "terms"), ["R1_ts_vs>=3"], "expected figures .*--max-loss"),
        (("objective", "text"), "GS>=3", "expected figures .*--objective"),
        (("objective", "lower_is_better"), 0, "objective.lower_is_better: expected true or false"),
        (("tried", 3, "settings"), [], r"tried\[3\]\.settings: expected an object"),
        (("notes",), [3], r"notes\[0\]: expected a text"),
        (("trials",), ..., "trials: expected a value"),
        (("model",), {}, "model.name: expected a value"),
    ],
)
def test_damage_is_told_with_its_place(read, path, value, words):
    with pytest.raises(BadInput, match=rf"tune\.json: damaged: .*{words}"):
        read(changed(path, value))


def test_control_characters_are_replaced(read):
    found = read(changed(("points", 0, "method"), "re\x1b[31mpel\u202e"))
    assert found["points"][0]["method"] == "re\ufffd[31mpel\ufffd"
    assert read(changed(("baseline", "cross_validated", "by_concept"), {"a\nb": {}}))["baseline"]["cross_validated"][
        "by_concept"
    ] == {"a\ufffdb": {}}


@pytest.mark.parametrize("patch", ["../01.safetensors", "/etc/passwd", "points/../../x", "points/out/x"])
def test_a_patch_outside_of_the_folder_is_refused(read, tmp_path, patch):
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "out").symlink_to(tmp_path.parent)
    with pytest.raises(Refused, match=r"the patch of point 2 lies outside of the folder"):
        read(changed(("points", 1, "patch"), patch))
    with pytest.raises(Refused):
        patch_path(tmp_path, {"number": 2, "patch": patch})


def test_a_patch_that_is_not_there_is_told(read, tmp_path):
    point = read(FRONT)["points"][0]
    with pytest.raises(BadInput, match=r"points/01\.safetensors: no such file; it is the patch of point 1"):
        patch_path(tmp_path, point)
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "01.safetensors").write_bytes(b"")
    assert patch_path(tmp_path, point) == tmp_path / "points" / "01.safetensors"
