"""The list of 80 faults: every row has a test that bears its number, ``test_f30_…``, wherever it stands.

What a row expected once and is not wanted any more, with the reason:

- 70, ``--in-place``: not built. The output is a folder of its own, so that the input is there to compare with; a patch
  of a few megabytes, not a mask beside an overwritten model, is what undoes an edit.
- 55, ``--drop-unpaired``: not built. Pairs that are not there are a mistake of the set; a figure measured on what was
  left over cannot be compared with another one. The error lists the first of them.
- 61, ``--skip-bad`` and ``--max-bad``: not built, for the same reason. All bad images are listed at once, so they can
  be mended in one go.
- 64, ``--no-exif``: not built. An image is read as every viewer shows it; there is one way only.
- 40, ``--allow-nonfinite``: not built. A model with NaN has no scores, selected or not.
- 3, ``--sha256``: not built. The input's hash is in the manifest of every verb, to be compared with the one published.
- 45: the verb is refused with exit 1, as the row says, and `--again` lets it go on.
- 56, a set swapped as a whole: told by its captions, where they name the concepts; a set without such names is not
  told. The model is not asked. With the demo model, a concept's name is nearer to the unsafe caption in 58 to 66 % of
  256 pairs of the shipped splits, and in 39 to 62 % with 50 untrained models, so no limit parts them.
- 70, 74 and 79 on file systems of other kinds (case-insensitive, FAT with its 4 GB, NFS, bind mounts): a test cannot
  mount them. What the code asks of them is shown with links, hard links, and calls that fail as they would.
- 75 and 77: a test has no GPU to fill. The error that torch raises then is raised in its place.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = dict(enumerate("""
    a file of no or few bytes
    a file that is cut anywhere
    a flipped bit: refused in the header, told by its hash in the data
    header lengths that lie
    header bombs
    a tensor twice
    a key of the metadata twice
    overlaps, holes, ranges that are not the shape's
    names that steer a terminal, leave a folder, or are none
    a tensor called __metadata__
    types that are never edited
    a file without tensors
    files of another kind
    formats of TensorFlow and Flax
    pickles that run code
    the same in nested entries
    pickles that break after their payload
    code and constants of TorchScript
    pickles that grow
    storages that promise too much
    zip archives with two views
    legacy files
    training checkpoints and whole modules
    an environment that asks for the unsafe way
    sparse, quantised and meta tensors
    prefixes and wrappers
    what is no CLIP
    a ResNet CLIP
    key layouts of the families
    sizes that disagree
    an activation that nobody says
    keys beyond the model's
    keys that are missing
    shards that lie elsewhere
    shards that are missing or contradict their index
    an index that is broken
    a folder with several candidates
    shards of different releases
    links, loops, pipes, devices and folders in the place of files
    NaN and infinity in weights
    half precision
    quantised weights
    types of tensors that differ
    tied weights and views
    a model that was edited already
    channels that are constant
    inputs that are all zero
    layers that are never called
    activations that overflow
    ties, batch sizes, threads
    settings out of range
    minus zero and denormals
    a set with a side that is empty
    a set that is too small
    sides that do not match
    sides that are identical
    ids and captions twice
    lines that are malformed
    captions that are empty or not text
    captions that are cut
    images that are bad
    modes of images
    images of several frames
    images that are rotated
    images that are huge or strips
    image paths that lead out
    a disk that is full
    a run that is killed
    signals
    an output that is the input
    an output that cannot be written
    two runs of one output
    an input that changes meanwhile
    file systems that lack something
    a device without memory
    a host without memory
    a device that is not there
    streams and terminals of all kinds
    permissions
    no network
""".strip().split("\n"), 1))  # fmt: skip
NAME = re.compile(r"test_((?:f\d\d_)+)")


def rows_of(name: str) -> list[int]:
    """The rows that a test's name bears: ``test_f06_f07_…`` two."""
    found = NAME.match(name)
    return [] if found is None else [int(number) for number in re.findall(r"f(\d\d)_", found[1])]


def shown() -> dict[int, list[str]]:
    """Row -> its tests."""
    found: dict[int, list[str]] = {row: [] for row in ROWS}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for row in rows_of(node.name):
                    found.setdefault(row, []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return found


def test_the_list_has_80_rows():
    assert [*ROWS] == [*range(1, 81)]
    assert len({*ROWS.values()}) == 80


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"F{row:02}")
def test_every_row_is_shown(row):
    assert shown()[row], f"F{row:02}: {ROWS[row].strip()}: no test is called test_f{row:02}_…"


def test_no_test_bears_a_number_that_is_no_row():
    assert {*shown()} == {*ROWS}


@pytest.mark.parametrize(("name", "rows"), [("test_f06_f07_x", [6, 7]), ("test_f9_x", []), ("test_of_f30_x", [])])
def test_numbers_are_read_from_names(name, rows):
    assert rows_of(name) == rows
