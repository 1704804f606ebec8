"""Canonical names, the patterns that choose among them, and row blocks of fused tensors."""

from __future__ import annotations

import numpy as np
import pytest

from uwm.errors import BadInput
from uwm.weights import GATE, NORMS, SLOTS, TOWER_SLOTS, TOWERS, WeightId, WeightRef, block_count, match

TWELVE = [WeightId(tower, block, slot) for slot in SLOTS for block in range(12) for tower in TOWERS]
BIASES = [WeightId(w.tower, w.block, f"{w.slot}.bias") for w in TWELVE]
OTHERS = [WeightId(tower, 3, slot + end) for slot in NORMS for end in ("", ".bias") for tower in TOWERS]
OUTSIDE = [WeightId(tower, None, slot + end) for slot in TOWER_SLOTS for end in ("", ".bias") for tower in TOWERS]


def names(weights):
    return [str(w) for w in weights]


def test_a_name_reads_back_as_itself():
    for weight in [*TWELVE, *BIASES, *OTHERS, *OUTSIDE, WeightId("vision", 3, GATE)]:
        assert WeightId.parse(str(weight)) == weight
    assert str(WeightId("vision", 11, "fc2")) == "vision.11.fc2"
    assert str(WeightId("vision", 11, "fc2.bias")) == "vision.11.fc2.bias"
    assert str(WeightId("text_2", None, "proj")) == "text_2.proj"
    assert WeightId.parse("vision.head.fc1.bias") == WeightId("vision", None, "head.fc1.bias")


@pytest.mark.parametrize(
    "name",
    ["", "vision", "vision.1", "vision.1.fc3", "audio.1.fc2", "vision.x.fc2", "vision.-1.fc2", "vision.².fc2",
     "vision.1.fc2.weight", "vision.*.fc2", "Vision.1.fc2", " vision.1.fc2",
     "vision.fc2", "vision.1.proj", "vision.1.", "vision.1.bias", "vision.bias", "vision.head", "text.1x.fc2",
     "vision.proj.bias.bias", "vision.None.proj"],
)  # fmt: skip
def test_what_is_no_name_is_refused(name):
    with pytest.raises(BadInput, match="no weight name"):
        WeightId.parse(name)


def test_blocks_sort_as_numbers():
    assert names(sorted(WeightId("text", n, "fc1") for n in (11, 2, 0))) == ["text.0.fc1", "text.2.fc1", "text.11.fc1"]


def test_what_is_outside_the_blocks_sorts_after_them_and_text_before_vision():
    found = "vision.proj vision.head.fc1 vision.11.fc2.bias vision.2.norm1 vision.11.fc2 text_2.0.fc1 text.proj".split()
    assert names(sorted(WeightId.parse(name) for name in found)) == [
        "text.proj", "text_2.0.fc1", "vision.2.norm1", "vision.11.fc2", "vision.11.fc2.bias", "vision.head.fc1",
        "vision.proj",
    ]  # fmt: skip


def test_blocks_are_counted_by_tower():
    found = [WeightId("vision", 4, "fc2.bias"), WeightId("text", 1, "fc1"), WeightId("vision", None, "proj")]
    assert [block_count(found, tower) for tower in ("vision", "text", "text_2")] == [5, 2, 0]


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
    assert names(match(patterns, BIASES + OTHERS + OUTSIDE + TWELVE, "vision")) == expected  # matrices of blocks alone


def test_a_slot_alone_means_every_block_of_the_tower():
    assert names(match("out_proj", TWELVE, "text")) == [f"text.{n}.out_proj" for n in range(12)]


@pytest.mark.parametrize(
    "pattern",
    ["fc3", "norm1", "proj", "vision.proj", "vision.0.fc2.bias", "fc2.bias", "vision.head.fc1",
     "vision.12.fc2", "vision.[12-14].fc2", "vision.[11-9].fc2", "text.0.fc2", "vision.*", "vision.+.fc2",
     "vision.0|1.fc2", "vision.0.fc.", "*"],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_lists_what_exists(pattern):
    everything = TWELVE + BIASES + OTHERS + OUTSIDE
    if pattern == "*":  # a slot glob: every slot
        assert len(match(pattern, everything, "vision")) == 72
        return
    with pytest.raises(BadInput, match=r"--vision-layers .* blocks 0–11 with q_proj, k_proj, v_proj, out_proj, fc1"):
        match(["fc2", pattern], everything, "vision")


def test_a_tower_without_weights_says_so():
    with pytest.raises(BadInput, match="the text tower has none"):
        match("fc2", [WeightId("vision", 0, "fc2")], "text")


def test_the_parts_of_a_fused_tensor_cover_its_rows_once():
    rows = [WeightRef("in_proj_weight", part, 3).rows(12) for part in range(3)]
    assert rows == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert WeightRef("fc2.weight").rows(7) == slice(0, 7)


def test_a_reference_gives_a_view_of_its_rows_or_of_the_transposed_tensor():
    stored = np.arange(24).reshape(6, 4)
    assert np.array_equal(WeightRef("in_proj_weight", 1, 3).of(stored), stored[2:4])
    turned = WeightRef("visual.proj", transposed=True).of(stored)
    assert np.array_equal(turned, stored.T)
    turned[0, 1] = -1
    assert stored[1, 0] == -1
    assert WeightRef("logit_scale").of(np.array(1.0)).shape == ()
