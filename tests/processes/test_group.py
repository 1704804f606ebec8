"""What one process sends is what another one gets."""

from __future__ import annotations

import torch

from uwm.processes.group import packed, unpacked
from uwm.weights import WeightId

KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def test_values_with_tensors_of_all_kinds_arrive_as_they_were():
    tensors = [(torch.randn(3, 5) * 9).to(kind) for kind in KINDS]
    tensors += [torch.tensor(2.5), torch.empty(0, 4), torch.randn(4, 6).T, torch.randn(4, 6, requires_grad=True)]
    value = {WeightId("text", 0, "fc2"): [(tensor, f"{n}") for n, tensor in enumerate(tensors)], "keys": [b"a", b"b"]}
    found = unpacked(*packed(value, apart=False))
    assert found.keys() == value.keys()
    assert found["keys"] == value["keys"]
    for (sent, name), (got, same) in zip(
        value[WeightId("text", 0, "fc2")], found[WeightId("text", 0, "fc2")], strict=True
    ):
        assert (got.dtype, got.shape, same) == (sent.dtype, sent.shape, name)
        assert torch.equal(got, sent)
        assert not got.requires_grad


def test_of_a_view_only_what_it_shows_is_sent():
    whole = torch.randn(100, 100)
    _, host, _ = packed(whole[:2], apart=False)
    assert len(host) == whole[:2].nbytes
