"""What each backend takes from its paper: hyper-parameters, weights, targets, curriculum, labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reference import slow_losses
from tiny_batches import BACKENDS, FROZEN, LABELLED, SIDES, N, embeddings, with_gradient

from uwm.backends import ADAPTED, safe_clip, safer_clip, shield_clip
from uwm.embedding import Embeddings

# ---------------------------------------------------------------- hyper-parameters


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "rate", "patience"),
    [
        ("safe-clip", 50, 128, 1e-3, 5),
        ("safer-clip", 9, 48, 1e-4, 0),
        ("safer-clip-fixed", 9, 48, 1e-4, 0),
        ("shield-clip", 50, 128, 1e-4, 5),
    ],
)
def test_hyper_parameters(name, epochs, batch, rate, patience):
    settings = BACKENDS[name].settings
    assert (settings.epochs, settings.train_batch, settings.learning_rate) == (epochs, batch, rate)
    assert (settings.patience, settings.stop_on) == (patience, "loss")
    assert (settings.rank, settings.lora_alpha, settings.dropout, settings.targets) == (16, 1.0, 0.1, ADAPTED)


def test_safe_clips_factors_are_normalised_and_divided_by_eight():
    weights = safe_clip.BACKEND.settings.weights
    assert len(weights) == 8
    assert sum(weights.values()) == pytest.approx(1 / 8)
    assert weights["keep_safe_text"] == pytest.approx(0.1 / 1.75 / 8)
    assert weights["redirect_unsafe_image"] == pytest.approx(0.2 / 1.75 / 8)
    assert weights["match_unsafe_image"] == pytest.approx(0.5 / 1.75 / 8)
    assert weights["match_unsafe_text"] == weights["match_safe_text"] == weights["match_safe_image"]


def test_the_others_weights():
    assert set(safer_clip.BACKEND.settings.weights.values()) == {1.0}
    assert [*shield_clip.BACKEND.settings.weights.values()] == [0.1, 0.1, 0.1, 0.25, 0.25]


@pytest.mark.parametrize("name", ["safe-clip", "shield-clip"])
def test_without_a_curriculum_every_epoch_has_every_pair(name):
    objective = BACKENDS[name].objective(FROZEN, LABELLED)
    assert [objective.rows(epoch).tolist() for epoch in (1, 2, 50)] == [[*range(N)]] * 3


# ---------------------------------------------------------------- SafeR-CLIP


@pytest.mark.parametrize("chunk", [1, 3, 200, 1000])
def test_nearest_is_the_brute_force_one(chunk):
    queries, candidates = embeddings(200, seed=7).unsafe_text, embeddings(37, seed=8).safe_text
    assert safer_clip.nearest(queries, candidates, chunk).tolist() == slow_losses.nearest(
        queries.tolist(), candidates.tolist()
    )


def test_of_equally_near_captions_the_first_is_taken():
    candidates = F.one_hot(torch.tensor([3, 1, 0, 1, 0, 2]), 4).float()
    assert safer_clip.nearest(torch.eye(4), candidates).tolist() == [2, 1, 5, 0]


def test_targets_are_other_pairs_caption_and_the_picture_beside_it():
    nearest = slow_losses.nearest(FROZEN.unsafe_text.tolist(), FROZEN.safe_text.tolist())
    assert safer_clip.BACKEND.objective(FROZEN, LABELLED).targets.tolist() == nearest
    assert safer_clip.FIXED.objective(FROZEN, LABELLED).targets.tolist() == [*range(N)]
    assert sum(target != row for row, target in enumerate(nearest)) > N // 2

    rows = torch.arange(N)
    there = Embeddings(*(getattr(FROZEN, side)[torch.tensor(nearest)] for side in SIDES))
    arrived = Embeddings(there.safe_text, there.safe_text, there.safe_image, there.safe_image)
    terms = safer_clip.BACKEND.objective(FROZEN, LABELLED).terms(arrived, rows)
    fixed = safer_clip.FIXED.objective(FROZEN, LABELLED).terms(arrived, rows)
    for term in ("redirect_unsafe_text", "redirect_unsafe_image"):
        assert float(terms[term]) == pytest.approx(0, abs=1e-12)
        assert float(fixed[term]) > 0.1


def test_the_curriculum_adds_thirds_from_the_most_alike_captions_on():
    objective = safer_clip.BACKEND.objective(FROZEN, LABELLED)
    alike = [slow_losses.cosine(s, u) for s, u in zip(FROZEN.safe_text, FROZEN.unsafe_text, strict=True)]
    by_ease = sorted(range(N), key=lambda row: -alike[row])
    assert [sorted(objective.rows(epoch).tolist()) for epoch in (1, 2, 3, 9)] == [
        sorted(by_ease[:4]),
        sorted(by_ease[:7]),
        [*range(N)],
        [*range(N)],
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 300])
def test_the_curriculum_of_few_pairs_is_never_empty(n):
    objective = safer_clip.BACKEND.objective(embeddings(n, seed=9), [])
    assert [len(objective.rows(epoch)) for epoch in (1, 2, 3)] == [max(1, round(n / 3)), max(1, round(2 * n / 3)), n]


def test_the_cuts_are_a_setting():
    objective = replace(safer_clip.BACKEND, cuts=(0.5,)).objective(embeddings(10, seed=9), [])
    assert [len(objective.rows(epoch)) for epoch in (1, 2)] == [5, 10]


# ---------------------------------------------------------------- ShieldCLIP's labels


def test_without_labels_every_generated_item_is_redirected():
    pairs = [replace(pair, unsafe_text_label="unsafe", unsafe_image_label="unsafe") for pair in LABELLED]
    terms = shield_clip.BACKEND.objective(FROZEN, pairs).terms(embeddings(N, seed=2), torch.arange(N))
    assert float(terms["preserve_generated_safe"]) == 0
    assert all(float(terms[name]) > 0 for name in ("redirect", "mixed", "coherence"))


def test_all_labelled_safe_are_only_preserved():
    pairs = [replace(pair, unsafe_text_label="safe", unsafe_image_label="safe") for pair in LABELLED]
    student = with_gradient(embeddings(N, seed=2))
    terms = shield_clip.BACKEND.objective(FROZEN, pairs).terms(student, torch.arange(N))
    found = {name: float(term.detach()) for name, term in terms.items()}
    assert found["redirect"] == found["mixed"] == found["coherence"] == 0
    sum(terms.values()).backward()
    assert bool(torch.isfinite(student.unsafe_text.grad).all())
    unmoved = Embeddings(*(getattr(FROZEN, side) for side in SIDES))
    kept = shield_clip.BACKEND.objective(FROZEN, pairs).terms(unmoved, torch.arange(N))
    assert float(kept["preserve_generated_safe"]) == pytest.approx(0, abs=1e-12)


def test_labels_are_of_one_modality():
    """Of a pair whose picture is safe in truth, the caption is redirected and the picture is not."""
    pairs = [replace(pair, unsafe_text_label="unsafe", unsafe_image_label="safe") for pair in LABELLED]
    objective = shield_clip.BACKEND.objective(FROZEN, pairs)
    student = with_gradient(embeddings(N, seed=2))
    objective.terms(student, torch.arange(N))["redirect"].backward()
    assert bool((student.unsafe_text.grad != 0).any())
    assert bool((student.unsafe_image.grad == 0).all())


def test_a_safe_item_does_not_move_the_contrastive_terms():
    """Neither as anchor nor as negative."""
    objective = shield_clip.BACKEND.objective(FROZEN, LABELLED)
    student = with_gradient(embeddings(N, seed=2))
    terms = objective.terms(student, torch.arange(N))
    (terms["mixed"] + terms["coherence"]).backward()
    for side, label in (("unsafe_text", "unsafe_text_label"), ("unsafe_image", "unsafe_image_label")):
        moved = (getattr(student, side).grad != 0).any(1).tolist()
        assert moved == [getattr(pair, label) == "unsafe" for pair in LABELLED]
