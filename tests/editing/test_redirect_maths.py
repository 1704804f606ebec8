"""Redirection against least squares over the rows, its theorems, and in a real model."""

from __future__ import annotations

import pytest
import torch
from reference.slow_closed_form import objective
from reference.slow_closed_form import redirection as slow_redirection
from tiny_pooling import LastToken

import uwm
from uwm.editing.closed_form.redirect_maths import low_rank, normal_matrix, redirection
from uwm.errors import BadInput
from uwm.statistics.batches import pair_batches
from uwm.statistics.moments import Moments
from uwm.statistics.passes import SAFE, UNSAFE, run_pass
from uwm.statistics.pooled import PooledToken
from uwm.statistics.residuals import ResidualShifts
from uwm.weights import WeightId

IN, OUT, UNSAFE_ROWS, SAFE_ROWS = 6, 4, 17, 23
KEEP, RIDGE = 4.0, 0.3


def make(seed=0):
    """Rows a_u, steps, a_s, float64; scales drift."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((UNSAFE_ROWS, IN), (UNSAFE_ROWS, OUT), (SAFE_ROWS, IN))
    return [
        torch.randn(*size, generator=generator, dtype=torch.float64) * torch.linspace(0.3, 4, size[0])[:, None]
        for size in sizes
    ]


def solve(unsafe, steps, safe, keep=KEEP, ridge=RIDGE, size=5):
    moments, other = Moments(), Moments()
    for start in range(0, len(unsafe), size):
        moments.add(unsafe[start : start + size], steps[start : start + size])
    for start in range(0, len(safe), size):
        other.add(safe[start : start + size])
    normal = normal_matrix(moments.second, other.second if len(safe) else None, keep=keep, ridge=ridge)
    return redirection(normal, moments.cross), normal


@pytest.mark.parametrize("size", [1, 5, SAFE_ROWS])
@pytest.mark.parametrize(("keep", "ridge"), [(KEEP, RIDGE), (0.0, 1e-3), (50.0, 10.0)])
def test_equals_least_squares_over_the_rows(size, keep, ridge):
    rows = make()
    found, _ = solve(*rows, keep=keep, ridge=ridge, size=size)
    torch.testing.assert_close(found, slow_redirection(*rows, keep, ridge), rtol=1e-9, atol=1e-12)


def test_nothing_near_it_is_better():
    rows, generator = make(), torch.Generator().manual_seed(1)
    found, _ = solve(*rows)
    best = objective(found, *rows, KEEP, RIDGE)
    for _ in range(20):
        step = 1e-3 * torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
        assert objective(found + step, *rows, KEEP, RIDGE) > best


def test_the_original_matrix_drops_out():
    """The objective of the source, with W in it, has its minimum at W + D."""
    (unsafe, steps, safe), generator = make(), torch.Generator().manual_seed(2)
    weight = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    rows = torch.cat([unsafe, KEEP**0.5 * safe, RIDGE**0.5 * torch.eye(IN, dtype=torch.float64)])
    targets = torch.cat([unsafe @ weight.T + steps, KEEP**0.5 * safe @ weight.T, RIDGE**0.5 * weight.T])
    new = torch.linalg.lstsq(rows, targets).solution.T
    torch.testing.assert_close(weight + solve(unsafe, steps, safe)[0], new, rtol=1e-9, atol=1e-11)


def test_without_unsafe_rows_or_steps_nothing_changes():
    unsafe, steps, safe = make()
    assert not solve(unsafe, torch.zeros_like(steps), safe)[0].any()
    gram = safe.T @ safe
    normal = normal_matrix(torch.zeros(IN, IN), gram, keep=KEEP, ridge=RIDGE)
    assert not redirection(normal, torch.zeros(IN, OUT)).any()


def test_a_heavy_safe_side_or_ridge_allows_no_change():
    rows = make()
    free = solve(*rows, keep=0.0)[0].norm()
    assert solve(*rows, keep=1e9)[0].norm() < 1e-6 * free
    assert solve(*rows, ridge=1e12)[0].norm() < 1e-6 * free
    sizes = [float(solve(*rows, keep=keep)[0].norm()) for keep in (0.0, 1.0, 10.0, 100.0)]
    assert sizes == sorted(sizes, reverse=True)


def test_without_safe_rows_and_ridge_the_steps_are_met():
    """Fewer unsafe rows than inputs: each can be moved by just its step."""
    unsafe, steps, safe = make()
    found, _ = solve(unsafe[:5], steps[:5], safe[:0], ridge=1e-9)
    torch.testing.assert_close(unsafe[:5] @ found.T, steps[:5], rtol=1e-5, atol=1e-5)


def test_safe_inputs_outside_the_unsafe_span_are_free():
    """A direction that unsafe inputs never take is not written to."""
    unsafe, steps, safe = make()
    unsafe[:, -1] = safe[:, -1] = 0
    found, _ = solve(unsafe, steps, safe)
    assert found[:, -1].abs().max() < 1e-12


def test_low_rank_is_the_best_of_its_rank():
    rows = make()
    whole, normal = solve(*rows)
    left, right, kept = low_rank(whole, normal, OUT)
    torch.testing.assert_close(left @ right.T, whole)
    assert kept == pytest.approx(1)
    shares, generator = [], torch.Generator().manual_seed(3)
    least, most = (objective(x, *rows, KEEP, RIDGE) for x in (whole, torch.zeros_like(whole)))
    for rank in range(1, OUT):
        left, right, kept = low_rank(whole, normal, rank)
        assert left.shape == (OUT, rank)
        assert right.shape == (IN, rank)
        best = objective(left @ right.T, *rows, KEEP, RIDGE)
        assert kept == pytest.approx(1 - (best - least) / (most - least))
        u, s, v = torch.linalg.svd(whole)
        plain = (u[:, :rank] * s[:rank]) @ v[:rank]
        assert best <= objective(plain, *rows, KEEP, RIDGE) + 1e-9
        for _ in range(20):
            near = [x + 1e-3 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (left, right)]
            assert objective(near[0] @ near[1].T, *rows, KEEP, RIDGE) > best - 1e-12
        shares.append(kept)
    assert shares == sorted(shares)


def test_low_rank_of_nothing_and_of_less():
    normal = torch.eye(IN, dtype=torch.float64)
    left, right, kept = low_rank(torch.zeros(OUT, IN, dtype=torch.float64), normal, 2)
    assert not (left @ right.T).any()
    assert kept == 1
    one = torch.outer(torch.arange(1.0, OUT + 1), torch.ones(IN)).double()
    left, right, kept = low_rank(one, normal, 3)
    assert left.shape[1] == 1
    torch.testing.assert_close(left @ right.T, one)


@pytest.mark.parametrize(("keep", "ridge"), [(-1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))])
def test_settings_without_a_unique_solution_are_refused(keep, ridge):
    with pytest.raises(BadInput, match="a weight of the safe side ≥ 0 and a ridge > 0"):
        normal_matrix(torch.eye(2), None, keep=keep, ridge=ridge)


def test_in_a_real_model_unsafe_captions_end_where_their_partners_do(tiny_hf, tiny_set):
    """20 pairs and 64 inputs: without a safe side the pooled residual after the last block is that of the partner."""
    model, calib = uwm.load(tiny_hf), uwm.read_calibration(tiny_set)
    batches = list(pair_batches(model, calib, batch_size=10, towers=["text"]))[:2]
    fc2, pick = WeightId("text", 1, "fc2"), PooledToken(LastToken())
    shifts = ResidualShifts([fc2], pick)
    run_pass(model, batches, [shifts], ["text"])
    moments = shifts.unsafe[fc2]
    change = redirection(normal_matrix(moments.second, None, keep=0.0, ridge=1e-6), moments.cross)
    before = embeddings(model, batches)
    model.parameter(fc2).add_(change.float())
    after = embeddings(model, batches)
    assert (before[UNSAFE] - before[SAFE]).abs().max() > 0.1
    torch.testing.assert_close(after[UNSAFE], before[SAFE], rtol=0, atol=5e-3)


def embeddings(model, batches):
    sides = [[], []]
    for batch in batches:
        for found, (ids, mask) in zip(sides, batch.sides("text"), strict=True):
            with torch.no_grad():
                found.append(torch.nn.functional.normalize(model.encode_text(ids, mask), dim=1))
    return [torch.cat(side) for side in sides]
