"""Real training checkpoints: what lies beside the weights is read as data; nothing of it is made or run."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import random
import types
import uuid
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_files import hf_state

from uwm.checkpoint import open_checkpoint
from uwm.errors import Refused

STATE = hf_state(blocks=1)
OPTIMIZER = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
BESIDE = {
    "arguments": argparse.Namespace(lr=1e-4, output=pathlib.Path("runs/1"), layers=[1, 2], device=torch.device("cpu")),
    "numpy scalars": [np.float64(1.5), np.int64(3), np.float32(2), np.bool_(True), np.uint8(7)],
    "numpy arrays": {"losses": np.arange(5.0), "dtype": np.dtype("f4"), "state": np.random.RandomState(0).get_state()},
    "numpy generators": [np.random.default_rng(0), np.random.RandomState(0), np.random.SeedSequence(3)],
    "random states": {"python": random.Random(0).getstate(), "torch": torch.get_rng_state()},
    "paths": [pathlib.Path("/a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")],
    "collections": [
        collections.OrderedDict(a=1), collections.Counter("abc"), collections.deque([1, 2], 3),
        collections.defaultdict(list, {"a": [1]}), collections.defaultdict(int, a=1), collections.defaultdict(float),
    ],
    "plain builtins": [{1, 2}, frozenset({1}), 1j, b"a", bytearray(b"x"), slice(1, 2), range(3), 10**30, ..., None],
    "types": [int, float, bool, str, bytes, list, dict, tuple, set, object],
    "times": [
        datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc), datetime.date(2024, 1, 2), datetime.timedelta(1),
        datetime.time(3),
    ],
    "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 2), uuid.UUID(int=3)],
    "names": types.SimpleNamespace(a=1, b=[2]),
    "torch's own": [torch.float16, torch.Size([1, 2]), torch.__version__, OPTIMIZER.state_dict(), torch.ones(2)],
}  # fmt: skip


class Phase(enum.Enum):
    """A class of the training program."""

    WARM = 1


def saved(path, beside, **how):
    torch.save({"state_dict": STATE, "epoch": 3, "beside": beside}, path, **how)
    return path


def read_whole(path):
    found = open_checkpoint(path, "state_dict").state_dict()
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("how", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}], ids=str)
@pytest.mark.parametrize("name", BESIDE)
def test_f23_what_lies_beside_the_weights_does_not_hinder(tmp_path, name, how):
    assert read_whole(saved(tmp_path / "last.ckpt", BESIDE[name], **how))


def test_f23_a_class_of_the_training_program_is_refused_by_its_name(tmp_path):
    with pytest.raises(
        Refused, match=r"asks for [\w.]*test_training_checkpoints\.Phase \(byte \d+\); re-save only its"
    ):
        open_checkpoint(saved(tmp_path / "last.ckpt", Phase.WARM), "state_dict")


@pytest.mark.parametrize("call", [eval, exec, getattr, __import__, open, print])
def test_f15_a_builtin_that_is_no_type_is_refused(tmp_path, call):
    with pytest.raises(Refused, match=rf"{call.__name__} \(byte"):
        open_checkpoint(saved(tmp_path / "last.ckpt", call), "state_dict")


LEAVES = st.sampled_from([leaf for held in BESIDE.values() for leaf in (held if isinstance(held, list) else [held])])
NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(beside=NESTED, zipped=st.booleans())
def test_what_torch_loads_with_weights_only_is_read_the_same(tmp_path, beside, zipped):
    path = saved(tmp_path / "last.ckpt", beside, _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = torch.load(path, weights_only=True)["state_dict"]
        except Exception:
            theirs = STATE
    ours = open_checkpoint(path, "state_dict").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
