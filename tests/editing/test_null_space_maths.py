"""Null-space projection against dense algebra, and its theorems."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reference.slow_closed_form import orthonormal

from uwm.editing.closed_form.null_space_maths import project_out, project_out_bias, span, without
from uwm.errors import BadInput, InvalidResult

DIM, WIDTH, ROWS = 8, 6, 5


def rows(seed, count=ROWS):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIM, generator=generator) + 0.5, dim=1).double()


def edited(projection, basis, strength):
    left, right = project_out(projection, basis, strength)
    assert left.shape == (DIM, basis.shape[1])
    assert right.shape == (WIDTH, basis.shape[1])
    return projection.double() + left @ right.T


def projector(basis):
    return basis @ basis.T


def test_the_span_is_that_of_gram_schmidt():
    found = span(rows(0), ROWS)
    torch.testing.assert_close(found.T @ found, torch.eye(ROWS).double())
    expected = orthonormal(rows(0))
    torch.testing.assert_close(projector(found), expected.T @ expected)


def test_a_lower_rank_takes_the_leading_directions():
    """Eckart and Young: no basis of the same rank leaves less of the rows."""
    x, generator = rows(1), torch.Generator().manual_seed(0)
    left_over = [float((x - x @ projector(span(x, k))).norm()) for k in range(1, ROWS + 1)]
    assert left_over == sorted(left_over, reverse=True)
    for _ in range(20):
        other = torch.linalg.qr(span(x, 2) + 0.05 * torch.randn(DIM, 2, generator=generator).double()).Q
        assert float((x - x @ projector(other)).norm()) >= left_over[1]


def test_a_rank_beyond_the_rows_is_cut():
    doubled = torch.cat([rows(0, 3), rows(0, 3)])
    assert span(doubled, 6).shape == (DIM, 3)
    with pytest.raises(BadInput, match="rank 0 of 5"):
        span(rows(0), 0)
    with pytest.raises(BadInput, match="of 0 embeddings"):
        span(rows(0)[:0], 2)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_equals_the_dense_projection(strength):
    generator = torch.Generator().manual_seed(3)
    projection, bias = torch.randn(DIM, WIDTH, generator=generator), torch.randn(DIM, generator=generator)
    basis = span(rows(0), 3)
    matrix = torch.eye(DIM).double() - strength * projector(basis)
    torch.testing.assert_close(edited(projection, basis, strength), matrix @ projection.double())
    torch.testing.assert_close(project_out_bias(bias, basis, strength), matrix @ bias.double())


def test_whatever_is_embedded_becomes_orthogonal_to_unsafe_texts_in_the_span():
    projection, x = torch.randn(DIM, WIDTH).double(), torch.randn(20, WIDTH).double()
    unsafe = rows(0)
    found = x @ edited(projection, span(unsafe, ROWS), 1.0).T
    assert (found @ unsafe.T).abs().max() < 1e-12
    assert ((x @ projection.T) @ unsafe.T).abs().max() > 0.1
    once = edited(projection, span(unsafe, ROWS), 1.0)
    torch.testing.assert_close(edited(once, span(unsafe, ROWS), 1.0), once)


def test_retained_embeddings_stay_exactly():
    """The basis without the retained span is orthogonal to it, and together they span both."""
    unsafe, safe = span(rows(0, 3), 3), span(rows(1, 3), 3)
    basis = without(unsafe, safe)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3).double())
    assert (basis.T @ safe).abs().max() < 1e-12
    both = orthonormal(torch.cat([safe.T, unsafe.T]))
    torch.testing.assert_close(projector(basis) + projector(safe), both.T @ both)
    kept = torch.eye(DIM).double() - projector(basis)
    torch.testing.assert_close(rows(1, 3) @ kept, rows(1, 3))
    plain = torch.eye(DIM).double() - projector(unsafe)
    assert (rows(1, 3) @ plain - rows(1, 3)).norm() > 0.1  # without the term they are not kept


def test_shared_directions_are_left_alone():
    unsafe = span(rows(0, 3), 3)
    assert without(unsafe, unsafe[:, :1]).shape == (DIM, 2)
    with pytest.raises(InvalidResult, match="3 unsafe directions lie in the span of the 3 retained ones"):
        without(unsafe, unsafe @ torch.linalg.qr(torch.randn(3, 3).double()).Q)


def test_order_of_the_embeddings_does_not_matter():
    torch.testing.assert_close(projector(span(rows(0).flip(0), 3)), projector(span(rows(0), 3)))
