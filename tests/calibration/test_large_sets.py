"""Sets of many lines: they are read line by line, and folders are looked up once."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from uwm.calibration import read_calibration
from uwm.calibration.strict import MAX_LINE
from uwm.errors import BadInput, Refused


def test_a_file_is_never_in_memory_as_a_whole(tmp_path):
    row = {"safe_text": "a dog", "unsafe_text": "a bad dog"}
    padding = " " * 9_000
    lines = [json.dumps({"id": str(number), **row}) + padding for number in range(1000)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    tracemalloc.start()
    found = read_calibration(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 1000
    assert peak < 2_000_000 < (tmp_path / "pairs.jsonl").stat().st_size


def test_a_line_that_is_far_too_long_is_counted_and_not_kept(tmp_path):
    length = 12 * MAX_LINE + 5
    (tmp_path / "pairs.jsonl").write_bytes(b"\n" + b"x" * length + b"\n{}\n")
    tracemalloc.start()
    with pytest.raises(BadInput, match=rf"pairs\.jsonl:2: a line of {length} bytes; the limit is {MAX_LINE}"):
        read_calibration(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * MAX_LINE


def images(folder: Path, count: int) -> list[dict[str, str]]:
    rows = []
    for number in range(count):
        names = [f"{side}/{number}.png" for side in ("safe", "unsafe")]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        rows.append({"id": str(number), "safe_image": names[0], "unsafe_image": names[1]})
    return rows


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_only_folders_and_links_are_resolved(tmp_path, monkeypatch):
    write(tmp_path, images(tmp_path, 30))
    (tmp_path / "safe" / "7.png").unlink()
    (tmp_path / "safe" / "7.png").symlink_to(tmp_path / "unsafe" / "7.png")
    resolved, resolve = [], Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path: resolved.append(path) or resolve(path))
    assert len(read_calibration(tmp_path)) == 30
    names = {str(path.relative_to(tmp_path)) for path in resolved}
    assert names == {".", "safe", "unsafe", "safe/7.png"}


@pytest.mark.parametrize("name", ["safe/out.png", "safe/..", "safe/../..", "link/0.png", "..", "safe/../../x/0.png"])
def test_a_known_folder_hides_no_path_that_leads_out(tmp_path, name):
    root, outside = tmp_path / "set", tmp_path / "x"
    rows = images(root, 2)
    images(outside, 1)
    (outside / "0.png").touch()
    (root / "safe" / "out.png").symlink_to(outside / "0.png")
    (root / "link").symlink_to(outside)
    write(root, [*rows, {"id": "last", "safe_image": name, "unsafe_image": "unsafe/0.png"}])
    with pytest.raises(BadInput if name == "safe/.." else Refused, match=r"pairs\.jsonl:3"):
        read_calibration(root)
