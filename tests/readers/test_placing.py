"""Another checkpoint's tower in a bigger model: as if it had been loaded so, and gone without a trace."""

from __future__ import annotations

import pytest
import torch
from families import shaken
from tiny_captioners import captioner
from transformers import AutoModelForImageTextToText, CLIPModel, CLIPTextModel, CLIPVisionModel

from uwm.checkpoint import open_checkpoint
from uwm.errors import BadInput
from uwm.models.placing import placed


@pytest.mark.parametrize("source", ["tiny_hf", "tiny_open_clip"])
@pytest.mark.parametrize(("tower", "kind"), [("vision", CLIPVisionModel), ("text", CLIPTextModel)])
def test_the_module_computes_as_the_source_s_own_tower_and_then_as_before(source, tower, kind, tiny_hf, request):
    theirs = kind.from_pretrained(tiny_hf)
    module = shaken(kind(theirs.config), seed=3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with placed(module, tower, open_checkpoint(request.getfixturevalue(source))):
        expected = theirs.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_only_the_tower_is_touched(tmp_path):
    module = AutoModelForImageTextToText.from_pretrained(captioner(tmp_path / "one", "Llava", "clip"))
    source = captioner(tmp_path / "two", "Llava", "clip")
    places = {name: (value.data_ptr(), value.sum().item()) for name, value in module.named_parameters()}
    other = AutoModelForImageTextToText.from_pretrained(source)
    with torch.no_grad():
        for value in other.parameters():
            value.neg_()
    other.save_pretrained(tmp_path / "three")
    with placed(module, "vision", open_checkpoint(tmp_path / "three")):
        now = {name: (value.data_ptr(), value.sum().item()) for name, value in module.named_parameters()}
        changed = {name for name in now if now[name] != places[name]}
        assert changed == {name for name in now if "vision_tower" in name}
        assert all(now[name][0] == places[name][0] for name in now)


def test_its_own_is_back_after_an_error(tiny_hf):
    module = shaken(CLIPVisionModel(CLIPModel.from_pretrained(tiny_hf).config.vision_config), seed=3)
    before = next(module.parameters()).clone()
    with pytest.raises(RuntimeError), placed(module, "vision", open_checkpoint(tiny_hf)):
        raise RuntimeError
    assert torch.equal(next(module.parameters()), before)


def test_another_size_and_a_missing_tower_are_refused(tiny_hf, tmp_path):
    model = CLIPModel.from_pretrained(tiny_hf)
    wider = CLIPVisionModel(
        type(model.config.vision_config)(**{**model.config.vision_config.to_dict(), "hidden_size": 64})
    )
    with (
        pytest.raises(BadInput, match=r"the model that reads it expects \[64.*same architecture"),
        placed(wider, "vision", open_checkpoint(tiny_hf)),
    ):
        pytest.fail("it was placed")
    text = CLIPTextModel.from_pretrained(tiny_hf)
    text.save_pretrained(tmp_path / "text")
    with (
        pytest.raises(BadInput, match="has no vision tower to put into the model that reads it"),
        placed(CLIPVisionModel.from_pretrained(tiny_hf), "vision", open_checkpoint(tmp_path / "text")),
    ):
        pytest.fail("it was placed")
