"""Records that strangers may have written: whatever is changed in one, it is refused or reads the same every time.

`long_run.py` beside this does the same for minutes or hours.
"""

from __future__ import annotations

import pytest
from fuzz.kinds import check, kinds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = (
    "patch", "patch of format 1", "scores", "training state", "comparison result", "costs of a comparison", "uwm.json",
    "tune.json", "study.journal", "cached embeddings", "unfinished work",
)  # fmt: skip


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Name -> a kind, and the bytes of its valid record."""
    found = kinds(tmp_path_factory.mktemp("records"))
    return {kind.name: (kind, kind.path.read_bytes()) for kind in found}


def test_every_kind_is_tried(every):
    assert tuple(every) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_valid_record_is_read(every, name):
    kind, data = every[name]
    kind.path.write_bytes(data)
    assert kind.read(kind.path)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_a_changed_record_is_refused_or_reads_the_same(every, name, rng):
    kind, data = every[name]
    check(kind, kind.mutate(data, rng))
