"""Every term of every backend: against loops over rows, by finite differences, and what gets a gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import slow_losses
from tiny_batches import (
    BACKENDS,
    BATCHES,
    FROZEN,
    IMAGE_LABELS,
    LABELLED,
    SIDES,
    TEXT_LABELS,
    N,
    embeddings,
    plain,
    with_gradient,
)

from uwm.backends import Backend, frozen_batch
from uwm.embedding import Embeddings


def slow_terms(backend, student, rows):
    student, frozen = plain(student), plain(FROZEN)
    if backend.name == "safe-clip":
        return slow_losses.safe_clip(student, frozen, rows)
    if backend.name == "shield-clip":
        return slow_losses.shield_clip(student, frozen, rows, TEXT_LABELS, IMAGE_LABELS)
    targets = slow_losses.nearest(frozen.U, frozen.S) if backend.nearest else [*range(N)]
    return slow_losses.safer_clip(student, frozen, rows, targets)


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", BACKENDS)
def test_terms_equal_the_slow_form(name, rows):
    backend: Backend = BACKENDS[name]
    student = embeddings(len(rows), seed=2)
    found = backend.objective(FROZEN, LABELLED).terms(student, torch.tensor(rows))
    expected = slow_terms(backend, student, rows)
    assert found.keys() == expected.keys() == backend.settings.weights.keys()
    assert {name: float(term) for name, term in found.items()} == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
def test_terms_move_when_their_rows_are_mixed_up(name):
    """The batch's rows decide which frozen rows are meant, not their place in the batch."""
    objective = BACKENDS[name].objective(FROZEN, LABELLED)
    student = embeddings(4, seed=3)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Embeddings(*(getattr(student, side)[order] for side in SIDES))
    rows = torch.tensor([8, 1, 6, 3])
    first, same = objective.terms(student, rows), objective.terms(shuffled, rows[order])
    other = objective.terms(shuffled, rows)
    for term, value in first.items():
        assert float(same[term]) == pytest.approx(float(value), rel=1e-10), term
    assert any(abs(float(other[term]) - float(value)) > 1e-3 for term, value in first.items())


@pytest.mark.parametrize("name", ["safe-clip", "safer-clip", "safer-clip-fixed"])
def test_gradients_are_those_of_finite_differences(name):
    objective = BACKENDS[name].objective(FROZEN, LABELLED)
    rows = torch.tensor([3, 9, 0])

    def terms(*sides):
        return tuple(objective.terms(Embeddings(*sides), rows).values())

    student = with_gradient(embeddings(3, seed=4))
    assert torch.autograd.gradcheck(terms, [getattr(student, side) for side in SIDES])


def test_shield_clips_gradients_are_those_of_finite_differences():
    """The stop-gradient's side is held fixed, as a constant is what the differences must see."""
    objective = BACKENDS["shield-clip"].objective(FROZEN, LABELLED)
    rows = torch.tensor([3, 9, 0, 4, 2])
    student = with_gradient(embeddings(5, seed=4))

    def unsafe_terms(unsafe_text, unsafe_image):
        sides = replace(student, unsafe_text=unsafe_text, unsafe_image=unsafe_image)
        return tuple(objective.terms(sides, rows).values())

    def preserve_real(safe_text, safe_image):
        return objective.terms(replace(student, safe_text=safe_text, safe_image=safe_image), rows)["preserve_real"]

    assert torch.autograd.gradcheck(unsafe_terms, [student.unsafe_text, student.unsafe_image])
    assert torch.autograd.gradcheck(preserve_real, [student.safe_text, student.safe_image])


GETS_GRADIENT = {
    "keep_safe_text": {"safe_text"},
    "keep_safe_image": {"safe_image"},
    "match_safe_text": {"safe_text"},
    "match_safe_image": {"safe_image"},
    "redirect_unsafe_text": {"unsafe_text"},
    "redirect_unsafe_image": {"unsafe_image"},
    "match_unsafe_text": {"unsafe_text"},
    "match_unsafe_image": {"unsafe_image"},
    "relative_unsafe_text": {"unsafe_text"},
    "relative_unsafe_image": {"unsafe_image"},
    "preserve_real": {"safe_text", "safe_image"},
    "preserve_generated_safe": {"unsafe_text", "unsafe_image"},
    "redirect": {"unsafe_text", "unsafe_image"},
    "mixed": {"unsafe_text", "unsafe_image"},  # its safe branch stands behind a stop-gradient
    "coherence": {"unsafe_text", "unsafe_image"},
}


@pytest.mark.parametrize("name", BACKENDS)
def test_which_side_each_term_moves(name):
    """Exactly these; no frozen embedding gets a gradient even where it could."""
    frozen = with_gradient(FROZEN)
    objective = BACKENDS[name].objective(frozen, LABELLED)
    rows = torch.tensor([3, 9, 0, 4, 2, 5])
    for term in BACKENDS[name].settings.weights:
        student = with_gradient(embeddings(6, seed=5))
        objective.terms(student, rows)[term].backward()
        grads = {side: getattr(student, side).grad for side in SIDES}
        moved = {side for side, grad in grads.items() if grad is not None and bool((grad != 0).any())}
        assert moved == GETS_GRADIENT[term], term
    assert all(getattr(frozen, side).grad is None for side in SIDES)


@pytest.mark.parametrize("name", BACKENDS)
def test_float32_students_get_float32_terms(name):
    student = with_gradient(embeddings(5, seed=2, dtype=torch.float32))
    found = BACKENDS[name].objective(FROZEN, LABELLED).terms(student, torch.tensor(BATCHES["five"]))
    expected = slow_terms(BACKENDS[name], student, BATCHES["five"])
    assert {term.dtype for term in found.values()} == {torch.float32}
    assert {term: float(value.detach()) for term, value in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_batch_of_frozen_rows_shares_no_memory_and_follows_the_student():
    rows = torch.tensor([2, 5])
    found = frozen_batch(FROZEN, rows, embeddings(2, seed=6, dtype=torch.float32))
    assert torch.equal(found.safe_image, FROZEN.safe_image[rows].float())
    found.safe_image.zero_()
    assert bool((FROZEN.safe_image[rows] != 0).all())
