"""How recognisable the demo generator's images are: judged by the demo CLIP and by a classifier of real scenes.

    python calibration/build/judge.py --packages FOLDER --work WORK --generator calibration/demo-generator

Prints JSON. Every concept is drawn EACH times from "a picture of a {}" and EACH times from one with a colour. Real
scenes of the same kind, and the autoencoder's copies of them, are judged too. Some images go to WORK/sheet.png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import world
from diffusers import StableDiffusionPipeline
from generator import CONCEPTS, DEMO, UNSAFE_COUNT, draw, small_pictures
from learning import Learner
from PIL import Image
from torch import nn
from train_model import normalised
from transformers import CLIPModel, CLIPTokenizer

EACH, STEPS, GUIDANCE = 3, 25, 3.0


def new_classifier() -> nn.Sequential:
    """A small convolutional network from images of −1 to 1 to CONCEPTS."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128), (128, 192)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(16, after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(192 * 4, len(CONCEPTS)))


def learn_classifier(args: argparse.Namespace, sprites: torch.Tensor) -> nn.Sequential:
    """Train it on real scenes alone, all three seen styles, blurred and noisy ones among them."""
    torch.manual_seed(args.seed + 2)
    classifier = new_classifier()
    learner = Learner(classifier.parameters(), args.work / "classifier.pt")

    def loss_at(step: int) -> torch.Tensor:
        scenes = draw(args.seed + 50_000 + step, 128)
        scenes.style[::2] = np.random.default_rng([args.seed, 19, step]).integers(3, size=scenes.style[::2].shape)
        pictures = small_pictures(scenes, sprites)
        pictures[::3] = F.avg_pool2d(pictures[::3], 3, stride=1, padding=1, count_include_pad=False)
        pictures[1::3] += 0.1 * torch.randn(pictures[1::3].shape, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = classifier(pictures)
        return F.cross_entropy(scores.float(), numbers(scenes))

    learner.learn(loss_at, args.steps, 3e-3)
    return classifier.eval()


def numbers(scenes: world.Scenes) -> torch.Tensor:
    """The place of each scene's concept in CONCEPTS, [n]."""
    return torch.tensor([CONCEPTS.index(c) for c in scenes.concept[:, 0]])


class Judges:
    """The demo CLIP, among CONCEPTS and among all concepts, and the classifier."""

    def __init__(self, classifier: nn.Sequential) -> None:
        self.classifier, self.clip = classifier, CLIPModel.from_pretrained(DEMO, dtype=torch.float32).eval()
        tokens = CLIPTokenizer.from_pretrained(DEMO)(
            [world.PROMPT.format(name) for name in world.NAMES], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            texts = self.clip.text_projection(self.clip.text_model(**tokens).pooler_output)
        self.texts = F.normalize(texts, dim=-1)

    @torch.no_grad()
    def right(self, pictures: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
        """Which images of −1 to 1, [n, 3, SIDE, SIDE], each judge recognises as CONCEPTS[truth], [n] of bool."""
        large = F.interpolate((pictures + 1) / 2, size=world.SIZE, mode="bicubic", align_corners=False).clamp(0, 1)
        images = self.clip.visual_projection(self.clip.vision_model(normalised(large)).pooler_output)
        scores, ours = images @ self.texts.T, torch.tensor(CONCEPTS)
        return {
            "clip_among_all": scores.argmax(1) == ours[truth],
            "clip_among_drawn": scores[:, ours].argmax(1) == truth,
            "classifier": self.classifier(pictures).argmax(1) == truth,
        }

    def percent(self, pictures: torch.Tensor, truth: torch.Tensor) -> dict[str, list[float]]:
        """Top-1 percent over all, the unsafe and the safe concepts."""
        unsafe = truth < UNSAFE_COUNT
        return {
            name: [round(100 * right[rows].float().mean().item(), 1) for rows in (unsafe | True, unsafe, ~unsafe)]
            for name, right in self.right(pictures, truth).items()
        }


def generate(pipeline: StableDiffusionPipeline, prompts: list[str], args: argparse.Namespace) -> torch.Tensor:
    """Images of the prompts, each from a seed of its own, −1 to 1, [n, 3, SIDE, SIDE]."""
    made = []
    for start in range(0, len(prompts), 32):
        part = prompts[start : start + 32]
        generators = [torch.Generator().manual_seed(args.seed + start + i) for i in range(len(part))]
        made.append(
            pipeline(
                part, num_inference_steps=args.sampling_steps, guidance_scale=args.guidance, generator=generators,
                output_type="pt",
            ).images
        )  # fmt: skip
    return 2 * torch.cat(made) - 1


def background(pictures: torch.Tensor) -> torch.Tensor:
    """The number of the named colour nearest to the median of the four corners, [n]."""
    corners = torch.cat([pictures[..., y : y + 3, x : x + 3].flatten(2) for y in (0, -4) for x in (0, -4)], 2)
    found = (corners.median(2).values + 1) / 2
    named = torch.tensor(list(world.COLOURS.values())) / 255
    return torch.cdist(found, named).argmin(1)


def measure(pipeline: StableDiffusionPipeline, judges: Judges, sprites: torch.Tensor, args: argparse.Namespace) -> dict:
    """All figures, and the sheet."""
    scenes = draw(args.seed + 90_000, len(CONCEPTS) * args.each)
    scenes.concept[:, 0] = np.tile(CONCEPTS, args.each)
    truth, real = numbers(scenes), small_pictures(scenes, sprites)
    bare = [world.PROMPT.format(world.NAMES[c]) for c in scenes.concept[:, 0]]
    scenes.template[:] = 2  # "a picture of a dagger on teal"
    with torch.no_grad():
        copies = pipeline.vae.decode(pipeline.vae.encode(real).latent_dist.mean).sample
    began = time.process_time()
    made, coloured = generate(pipeline, bare, args), generate(pipeline, world.captions(scenes), args)
    seconds = (time.process_time() - began) / 2 / len(bare)
    sheet([made[: len(CONCEPTS)], coloured[: len(CONCEPTS)], copies[: len(CONCEPTS)]], args.work / "sheet.png")
    kinds = {"real": real, "autoencoder": copies, "generated": made, "generated_with_colour": coloured}
    figures: dict = {name: judges.percent(pictures, truth) for name, pictures in kinds.items()}
    colours = torch.from_numpy(scenes.colour)
    for name in ("real", "generated_with_colour"):
        figures[name]["colour"] = round(100 * (background(kinds[name]) == colours).float().mean().item(), 1)
    return figures | {"seconds_an_image": round(seconds, 3), "guidance": args.guidance, "steps": args.sampling_steps}


def sheet(rows: list[torch.Tensor], path: Path) -> None:
    """Images of −1 to 1 side by side, 20 in a line, group under group."""
    lines = [torch.cat(list(group[i : i + 20]), 2) for group in rows for i in range(0, len(group), 20)]
    pixels = ((torch.cat(lines, 1).clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2), Image.Resampling.NEAREST).save(path)


def main() -> None:
    """Read the command line, train the classifier where it is not yet, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="the folder of unpacked npm packages")
    parser.add_argument("--work", type=Path, required=True, help="folder of the classifier's checkpoint and the sheet")
    parser.add_argument("--generator", type=Path, required=True, help="the diffusers folder")
    parser.add_argument("--steps", type=int, default=400, help="of the classifier's training")
    parser.add_argument("--each", type=int, default=EACH, help="images of a concept and form of prompt")
    parser.add_argument("--sampling-steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sprites = world.load_sprites(args.packages)
    judges = Judges(learn_classifier(args, sprites))
    pipeline = StableDiffusionPipeline.from_pretrained(args.generator).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    print(json.dumps(measure(pipeline, judges, sprites, args)))


if __name__ == "__main__":
    main()
