"""Canonical names, the patterns that choose among them, and row blocks of fused tensors."""

from __future__ import annotations

import pytest

from uwm.errors import BadInput
from uwm.weights import SLOTS, TOWERS, WeightId, WeightRef, match

TWELVE = [WeightId(tower, block, slot) for slot in SLOTS for block in range(12) for tower in TOWERS]


def names(weights):
    return [str(w) for w in weights]


def test_a_name_reads_back_as_itself():
    for weight in TWELVE:
        assert WeightId.parse(str(weight)) == weight
    assert str(WeightId("vision", 11, "fc2")) == "vision.11.fc2"


@pytest.mark.parametrize(
    "name",
    ["", "vision", "vision.1", "vision.1.fc3", "audio.1.fc2", "vision.x.fc2", "vision.-1.fc2", "vision.².fc2",
     "vision.1.fc2.weight", "vision.*.fc2", "Vision.1.fc2", " vision.1.fc2"],
)  # fmt: skip
def test_what_is_no_name_is_refused(name):
    with pytest.raises(BadInput, match="no weight name"):
        WeightId.parse(name)


def test_blocks_sort_as_numbers():
    assert names(sorted(WeightId("text", n, "fc1") for n in (11, 2, 0))) == ["text.0.fc1", "text.2.fc1", "text.11.fc1"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("vision.3.fc2", ["vision.3.fc2"]),
        ("vision.[9-11].fc2", ["vision.9.fc2", "vision.10.fc2", "vision.11.fc2"]),
        ("vision.1*.fc2", ["vision.1.fc2", "vision.10.fc2", "vision.11.fc2"]),
        ("vision.0.fc*", ["vision.0.fc1", "vision.0.fc2"]),
        ("vision.1.fc2, vision.0.fc1,vision.1.fc2", ["vision.0.fc1", "vision.1.fc2"]),
        (["vision.1.fc2", "vision.0.fc1"], ["vision.0.fc1", "vision.1.fc2"]),
        ("none", []),
        ("", []),
        ([], []),
    ],
)
def test_patterns_choose_sorted_and_once(patterns, expected):
    assert names(match(patterns, reversed(TWELVE), "vision")) == expected


def test_a_slot_alone_means_every_block_of_the_tower():
    assert names(match("out_proj", TWELVE, "text")) == [f"text.{n}.out_proj" for n in range(12)]


@pytest.mark.parametrize(
    "pattern",
    ["fc3", "vision.12.fc2", "vision.[12-14].fc2", "vision.[11-9].fc2", "text.0.fc2", "vision.*", "vision.+.fc2",
     "vision.0|1.fc2", "vision.0.fc.", "*"],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_lists_what_exists(pattern):
    if pattern == "*":  # a slot glob: every slot
        assert len(match(pattern, TWELVE, "vision")) == 72
        return
    with pytest.raises(BadInput, match=r"--vision-layers .* blocks 0–11 with q_proj, k_proj, v_proj, out_proj, fc1"):
        match(["fc2", pattern], TWELVE, "vision")


def test_a_tower_without_weights_says_so():
    with pytest.raises(BadInput, match="the text tower has none"):
        match("fc2", [WeightId("vision", 0, "fc2")], "text")


def test_the_parts_of_a_fused_tensor_cover_its_rows_once():
    rows = [WeightRef("in_proj_weight", part, 3).rows(12) for part in range(3)]
    assert rows == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert WeightRef("fc2.weight").rows(7) == slice(0, 7)
