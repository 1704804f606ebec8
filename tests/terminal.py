"""What tests expect of a run of the program: (exit code, stdout, stderr)."""

from __future__ import annotations

import hashlib

ALL_OF_CALIB = ("--eval-split", "test")  # so that nothing of the calibration split is held out


def done(result):
    """stdout of a run that went well and had nothing to say on stderr."""
    code, out, err = result
    assert (code, err) == (0, "")
    return out


def refused(result, code, *words):
    """The one line of a run that failed as it should."""
    assert result[0] == code
    assert result[1] == ""
    line = result[2]
    assert line.startswith("uwm: error: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    return line


def bytes_below(folder):
    """Every file in a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
