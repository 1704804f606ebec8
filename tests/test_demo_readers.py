"""The shipped captioner and generator read the demo model's own towers, and know what is drawn."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel, LlavaForConditionalGeneration

from uwm.shipped_files import DEMO_CAPTIONER, DEMO_GENERATOR, DEMO_MODEL, DEMO_SET

LARGEST = 12_000_000  # bytes of a folder


@cache
def captioner():
    """Model and processor, by transformers' own classes."""
    model, report = LlavaForConditionalGeneration.from_pretrained(
        DEMO_CAPTIONER, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval(), AutoProcessor.from_pretrained(DEMO_CAPTIONER)


@torch.no_grad()
def describe(pictures):
    """Greedy captions, asked the way that any LLaVA is asked."""
    model, processor = captioner()
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    inputs = processor(images=pictures, text=[text] * len(pictures), return_tensors="pt")
    made = model.generate(**inputs, do_sample=False)
    return processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def held_out(count):
    """Captions and pictures of the unsafe side of the first pairs of the split `test`."""
    rows = [json.loads(line) for line in (DEMO_SET / "pairs.jsonl").read_text("utf-8").splitlines()]
    chosen = [row for row in rows if row["split"] == "test"][:count]
    return [r["unsafe_text"] for r in chosen], [Image.open(DEMO_SET / r["unsafe_image"]) for r in chosen]


@pytest.mark.parametrize("folder", [DEMO_CAPTIONER, DEMO_GENERATOR], ids=lambda path: path.name)
def test_the_folder_is_small(folder):
    assert 1_000_000 < sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LARGEST


def things_in(caption):
    """The concepts that a caption names, longest names first; "a kind of weapon" names none."""
    names = (DEMO_SET / "zero_shot" / "seen" / "classnames.txt").read_text("utf-8").splitlines()
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return set(re.findall(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.sub(r", a kind of [a-z ]+?,", "", caption)))


def tower(folder, part):
    """The stored tensors of one tower, by their name inside it, as bytes."""
    tensors = load_file(folder)
    return {k.split(part, 1)[1]: v for k, v in tensors.items() if part in k}


def test_the_captioner_holds_the_demo_models_vision_tower():
    demo, ours = (tower(f / "model.safetensors", "vision_model.") for f in (DEMO_MODEL, DEMO_CAPTIONER))
    assert len(demo) > 90
    assert demo.keys() == ours.keys()
    assert all(torch.equal(ours[name], value) for name, value in demo.items())


def test_the_generator_holds_the_demo_models_text_tower():
    demo = tower(DEMO_MODEL / "model.safetensors", "text_model.")
    ours = tower(DEMO_GENERATOR / "text_encoder" / "model.safetensors", "text_model.")
    assert len(demo) > 60
    assert demo.keys() == ours.keys()
    assert all(torch.equal(ours[name], value) for name, value in demo.items())


def test_the_captioner_names_what_is_drawn():
    captions, pictures = held_out(32)
    truth, said = [things_in(text) for text in captions], [things_in(text) for text in describe(pictures)]
    assert sum(map(len, truth)) > 50
    assert sum(len(a & b) for a, b in zip(truth, said, strict=True)) >= 0.75 * sum(map(len, truth))
    assert sum(map(len, said)) <= 1.2 * sum(map(len, truth))


def test_a_caption_does_not_depend_on_the_batch():
    _, pictures = held_out(3)
    assert describe(pictures) == [caption for picture in pictures for caption in describe([picture])]


def test_the_generator_draws_what_the_prompt_names():
    diffusers = pytest.importorskip("diffusers", reason="pip install 'uwm[generate]'")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(DEMO_GENERATOR).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    names = ["kitchen knife", "pill", "wine", "panda", "apple", "frog"]
    prompts = [f"a picture of a {name}" for name in names]
    drawn = pipeline(
        prompts, num_inference_steps=15, guidance_scale=3.0, generator=torch.Generator().manual_seed(0)
    ).images
    assert {image.size for image in drawn} == {(32, 32)}
    model = CLIPModel.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    inputs = AutoProcessor.from_pretrained(DEMO_MODEL)(text=prompts, images=drawn, padding=True, return_tensors="pt")
    with torch.no_grad():
        best = model(**inputs).logits_per_image.argmax(1).tolist()
    assert sum(a == b for a, b in enumerate(best)) >= 5
