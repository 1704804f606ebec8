"""A kernel is used only where it gives what the plain form gives, on the machine at hand."""

from __future__ import annotations

import pytest
import torch

from uwm.editing.entries import columns
from uwm.editing.entries.columns import put_factors, put_ratios
from uwm.statistics import channel_norms
from uwm.statistics.channel_norms import token_statistics
from uwm.statistics.kernels import tried


def statistics(x, mask):
    found = token_statistics(x, mask)
    return found.norm.float(), found.std.float(), found.tokens


def test_the_plain_forms_agree_with_themselves():
    assert channel_norms.agrees(statistics, "cpu")
    assert columns.agree((put_ratios, put_factors), "cpu")


@pytest.mark.parametrize("part", range(3), ids=["norm", "std", "tokens"])
def test_statistics_that_are_a_little_wrong_are_found(part):
    def wrong(x, mask):
        found = [*statistics(x, mask)]
        found[part] = found[part] + 1 if part == 2 else found[part] * 1.001
        return found

    assert not channel_norms.agrees(wrong, "cpu")


def test_a_mask_that_is_not_looked_at_is_found():
    assert not channel_norms.agrees(lambda x, mask: statistics(x, None), "cpu")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_ratios_that_are_a_little_wrong_are_found(place):
    def wrong(*given):
        put_ratios(*given)
        given[4][place] *= 1.001

    assert not columns.agree((wrong, put_factors), "cpu")


@pytest.mark.parametrize("place", range(4), ids=["where rows count", "their ratio", "where columns do not", "silent"])
def test_factors_that_are_a_little_wrong_are_found(place):
    def wrong(a, kept, silent):
        put_factors(a, kept, silent)
        (*a, kept[1], silent)[place].flatten()[-1] += 1

    assert not columns.agree((put_ratios, wrong), "cpu")


@pytest.mark.parametrize("place", [0, 1, 2], ids=["one token", "dead", "constant"])
def test_a_wrong_count_is_found(place):
    def wrong(*given):
        put_ratios(*given)
        given[5][place] += 1

    assert not columns.agree((wrong, put_factors), "cpu")


def test_a_kernel_is_used_where_it_agrees():
    assert tried(lambda: "kernel", lambda kernel, device: (kernel, device) == ("kernel", "cuda"), "cuda") == "kernel"


def test_a_kernel_that_disagrees_is_warned_of_and_not_used(caplog):
    assert tried(lambda: "kernel", lambda kernel, device: False, "cuda") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "wrong results on this machine; it is not used" in caplog.text


def test_a_kernel_that_cannot_be_loaded_is_not_used(caplog):
    def load():
        raise ImportError("No module named 'triton'\nin a second line")

    caplog.set_level("INFO")
    assert tried(load, lambda kernel, device: True, "cuda") is None
    assert caplog.messages == ["Triton cannot be used, so scoring takes longer (No module named 'triton')"]


def test_nothing_of_the_trial_changes_what_is_drawn_later():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    channel_norms.agrees(statistics, "cpu")
    columns.agree((put_ratios, put_factors), "cpu")
    assert torch.equal(torch.randn(3), expected)
