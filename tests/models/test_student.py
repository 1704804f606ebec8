"""A plain CLIP of any layout as a student: the same embeddings, no shared memory, and the way back into its file."""

from __future__ import annotations

import pytest
import torch
from families import make_siglip, make_vision
from openai_archives import openai_state, save_archive

import uwm
from uwm.errors import BadInput, InvalidResult
from uwm.models.student import added, hugging_face_copy, places

CAPTIONS = ["a dog", "a cat on a mat with a knife", "bomb"]


@pytest.fixture(scope="module", params=["hf", "open_clip", "openai"])
def model(request, tiny_hf, tiny_open_clip, tmp_path_factory):
    if request.param == "openai":
        return uwm.load(save_archive(tmp_path_factory.mktemp("openai") / "ViT-tiny.pt", openai_state()))
    return uwm.load(tiny_hf if request.param == "hf" else tiny_open_clip)


def embeddings(side, pixels, ids, mask):
    with torch.no_grad():
        return side.encode_image(pixels), side.encode_text(ids, mask)


def test_a_student_computes_what_the_model_does(model):
    pixels, (ids, mask) = (
        torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)),
        model.tokenize(CAPTIONS),
    )
    for ours, theirs in zip(
        embeddings(hugging_face_copy(model), pixels, ids, mask), embeddings(model, pixels, ids, mask), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_student_shares_no_memory_with_the_model(model):
    def memory(side):
        return {tensor.untyped_storage().data_ptr() for tensor in side.module.state_dict().values()}

    student = hugging_face_copy(model)
    assert not memory(model) & memory(student)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_every_tensor_has_its_place(model):
    """Reading a checkpoint through the places gives the student's own tensors."""
    student = dict(hugging_face_copy(model).module.named_parameters())
    where = places(model)
    assert student.keys() <= where.keys()
    for name, parameter in student.items():
        stored = where[name].of(model.checkpoint.read(where[name].key))
        torch.testing.assert_close(stored.float(), parameter.detach(), rtol=0, atol=0)


def test_what_is_added_ends_up_in_its_rows_only(model):
    name = "text_model.encoder.layers.1.self_attn.v_proj.weight"
    place = places(model)[name]
    stored = model.checkpoint.read(place.key)
    delta = torch.full_like(place.of(stored.float()), 0.5)
    new = added(model, {name: delta})
    assert list(new) == [place.key]
    changed = new[place.key] != stored
    assert changed[place.rows(len(stored))].all()
    assert changed.sum() == delta.numel()
    assert new[place.key].dtype == stored.dtype
    torch.testing.assert_close(
        place.of(new[place.key]).float(), (place.of(stored).float() + 0.5).to(stored.dtype).float()
    )


def test_sums_that_overflow_are_refused(model):
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    place = places(model)[name]
    delta = torch.full_like(place.of(model.checkpoint.read(place.key).float()), torch.inf)
    with pytest.raises(InvalidResult, match="fine-tuned weights are not finite .* lower the learning rate"):
        added(model, {name: delta})


@pytest.mark.parametrize(
    ("make", "what"), [(make_siglip, "hf-siglip"), (make_vision("CLIPVisionModel"), r"hf-clip \(vision\)")]
)
def test_other_families_are_refused(make, what, tmp_path):
    make(tmp_path)
    with pytest.raises(BadInput, match=f"fine-tuning is for a plain CLIP with both towers; this is {what}"):
        hugging_face_copy(uwm.load(tmp_path))
