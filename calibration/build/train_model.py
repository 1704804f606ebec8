"""Train the demo model: a small CLIP on an endless stream of emoji scenes.

    python calibration/build/train_model.py --packages FOLDER --output calibration/demo-clip

Two hours or so on two CPU cores. Killed, it goes on from its last checkpoint with the same command.
The hidden activation is trained as SiLU, which torch fuses, and written as QuickGELU: with
quick_gelu(x) = silu(1.702 x) / 1.702 the factor goes into fc1 and fc2, and the function is the same.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import world
from tokenizer import CONTEXT, build_tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

BATCH = 256
AUXILIARY = 0.2  # weight of the multi-label loss, dropped for the last tenth
SLOPE = 1.702
SCALE_LIMIT = math.log(100)
PROCESSOR = CLIPImageProcessor(
    size={"shortest_edge": world.SIZE}, crop_size={"height": world.SIZE, "width": world.SIZE}
)


def demo_config(activation: str, tokenizer: CLIPTokenizer) -> CLIPConfig:
    """The demo model's sizes; `activation` is "silu" in training and "quick_gelu" in the file."""
    shared = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "hidden_act": activation}
    return CLIPConfig(
        text_config=shared
        | {
            "num_hidden_layers": 4,
            "max_position_embeddings": CONTEXT,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=shared | {"num_hidden_layers": 6, "image_size": world.SIZE, "patch_size": 8},
        projection_dim=128,
    )


# ---------------------------------------------------------------- data


def restyled(sprites: torch.Tensor) -> torch.Tensor:
    """More styles than the three artists draw, so that the model meets an unseen one less surprised.

    Args:
        sprites: [styles, concepts, 4, s, s], premultiplied.

    Returns:
        [6 · styles, concepts, 4, s, s]: as drawn, outlined (darker, lighter), flat, grey, other hues.
    """
    flat = _recolour(sprites, lambda rgb: (rgb * 3).round() / 3)
    pale = _recolour(sprites, lambda rgb: 1 - (1 - (rgb * 3).round() / 3) * 0.6)
    grey = _recolour(sprites, lambda rgb: rgb.mean(-3, keepdim=True).expand_as(rgb))
    hues = _recolour(sprites, lambda rgb: rgb[..., [1, 2, 0], :, :])
    return torch.cat([sprites, _outlined(flat), _outlined(pale), flat, grey, hues])


def _recolour(sprites: torch.Tensor, change) -> torch.Tensor:
    alpha = sprites[..., 3:, :, :]
    straight = sprites[..., :3, :, :] / alpha.clamp_min(1e-3)
    return torch.cat([change(straight).clamp(0, 1) * alpha, alpha], dim=-3)


def _outlined(sprites: torch.Tensor) -> torch.Tensor:
    """A dark line around the shape and along its inner edges."""
    shape = sprites.shape
    flat = sprites.reshape(-1, *shape[-3:])
    small = F.interpolate(flat, scale_factor=0.94, mode="bilinear", antialias=True)
    flat = F.pad(small, [1, 2, 1, 2])[..., : shape[-2], : shape[-1]]
    alpha = flat[:, 3:]
    wide = F.max_pool2d(alpha, 3, 1, 1)
    light = flat[:, :3].mean(1, keepdim=True)
    inner = ((F.max_pool2d(light, 3, 1, 1) + F.max_pool2d(-light, 3, 1, 1)) > 0.28).float() * alpha
    line = torch.maximum(wide - alpha, inner).clamp(0, 1)
    return torch.cat([flat[:, :3] * (1 - line), torch.maximum(alpha, wide)], 1).reshape(shape)


def draw_batch(rng: np.random.Generator, sprites: torch.Tensor) -> tuple[world.Scenes, list[str], torch.Tensor]:
    """One training batch: pairs that differ in one object, and single objects, some with the bare prompt.

    Returns:
        The scenes, their captions and their pictures [BATCH, 3, SIZE, SIZE] in 0–1.
    """
    weights = np.where(np.arange(len(world.ROWS)) < world.UNSAFE_COUNT, 2.0, 1.0)
    styles = tuple(range(len(sprites)))
    third, quarter = BATCH * 3 // 8, BATCH // 4
    mixed = world.sample(rng, third, weights=weights / weights.sum())
    twins = exchange_one(rng, mixed)
    single = world.sample(rng, quarter, weights=weights / weights.sum(), counts=(1.0, 0.0, 0.0))
    scenes = world.Scenes(
        **{k: np.concatenate([getattr(part, k) for part in (mixed, twins, single)]) for k in vars(mixed)}
    )
    # Half of the objects as drawn, the others in a changed style.
    changed = rng.choice(styles, size=scenes.style.shape)
    keep = rng.random(scenes.style.shape) < 0.5
    scenes.style[:] = np.where(keep, scenes.style % 3, changed)
    texts = world.captions(scenes)
    for i in range(BATCH - quarter, BATCH - quarter // 2):
        texts[i] = world.PROMPT.format(world.NAMES[scenes.concept[i, 0]])
    pictures = world.render(scenes, sprites)
    flip = torch.from_numpy(np.tile(rng.random(third) < 0.25, 2))
    pictures[: 2 * third][flip] = pictures[: 2 * third][flip].flip(-1)
    return scenes, texts, pictures


def exchange_one(rng: np.random.Generator, scenes: world.Scenes) -> world.Scenes:
    """The same scenes with one object each replaced, half of the time by one of the same category."""
    slot = rng.integers(scenes.count())
    old = scenes.concept[np.arange(len(scenes)), slot]
    new = rng.integers(len(world.ROWS), size=len(scenes))
    for i in range(len(scenes)):
        alike = [c for c, category in enumerate(world.CATEGORIES) if category == world.CATEGORIES[old[i]]]
        if rng.random() < 0.5:
            new[i] = rng.choice(alike)
        while new[i] in scenes.concept[i]:
            new[i] = rng.integers(len(world.ROWS))
    return scenes.with_object(slot, new)


def normalised(pictures: torch.Tensor) -> torch.Tensor:
    """What the image processor makes of pictures in 0–1, [n, 3, SIZE, SIZE]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (PROCESSOR.image_mean, PROCESSOR.image_std))
    return (pictures - mean) / std


# ---------------------------------------------------------------- model


class Student(torch.nn.Module):
    """The CLIP and, on both embeddings, linear heads that name the objects and the colour."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.clip = CLIPModel(demo_config("silu", tokenizer))
        self.clip.set_attn_implementation("eager")  # on the CPU half the time of the fused kernel at 65 tokens
        labels = len(world.ROWS) + len(world.COLOURS)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(128, labels) for _ in range(2))
        for head in self.heads:
            torch.nn.init.normal_(head.weight, std=0.5)
            torch.nn.init.constant_(head.bias, math.log(2 / labels))

    def forward(self, pictures: torch.Tensor, tokens: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised embeddings of pictures and texts, float32, [n, 128] each."""
        vision, text = self.clip.vision_model(pictures), self.clip.text_model(**tokens)
        images = self.clip.visual_projection(vision.pooler_output)
        texts = self.clip.text_projection(text.pooler_output)
        return F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)


def loss_of(student: Student, images, texts, targets, auxiliary: float) -> torch.Tensor:
    """Symmetric contrastive loss, plus the multi-label loss where its weight is not zero."""
    logits = student.clip.logit_scale.float().clamp(max=SCALE_LIMIT).exp() * texts @ images.T
    here = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, here) + F.cross_entropy(logits.T, here)) / 2
    if auxiliary:
        for head, embedding in zip(student.heads, (images, texts), strict=True):
            guess = F.linear(embedding, head.weight.float(), head.bias.float())
            loss = loss + auxiliary * F.binary_cross_entropy_with_logits(guess, targets) * 20
    return loss


def labels_of(scenes: world.Scenes) -> torch.Tensor:
    """Multi-hot objects and colour, [n, concepts + colours]."""
    targets = torch.zeros(len(scenes), len(world.ROWS) + len(world.COLOURS))
    for slot in range(world.SLOTS):
        rows = np.flatnonzero(scenes.concept[:, slot] >= 0)
        targets[rows, scenes.concept[rows, slot]] = 1
    targets[np.arange(len(scenes)), len(world.ROWS) + scenes.colour] = 1
    return targets


@torch.no_grad()
def zero_shot(student: Student, tokenizer, sprites: torch.Tensor, style: int) -> tuple[float, float]:
    """Top-1 percent over the unsafe and over the safe concepts, one scene a concept."""
    rng = np.random.default_rng(5)
    scenes = world.sample(rng, len(world.ROWS), styles=(style,), counts=(1.0, 0.0, 0.0))
    scenes.concept[:, 0] = np.arange(len(world.ROWS))
    prompts = [world.PROMPT.format(name) for name in world.NAMES]
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    images, texts = student(normalised(world.render(scenes, sprites)).bfloat16(), tokens)
    right = (images @ texts.T).argmax(1) == torch.arange(len(world.ROWS))
    cut = world.UNSAFE_COUNT
    return 100 * right[:cut].float().mean().item(), 100 * right[cut:].float().mean().item()


def export(student: Student, master: dict[str, torch.Tensor], tokenizer, output: Path) -> None:
    """Write the Hugging Face folder, float16, with the activation's factor moved into the weights."""
    model = CLIPModel(demo_config("quick_gelu", tokenizer))
    state = {name[5:]: value.clone() for name, value in master.items() if name.startswith("clip.")}
    for name in state:
        if ".fc1." in name:
            state[name] /= SLOPE
        elif name.endswith(".fc2.weight"):
            state[name] *= SLOPE
    state["logit_scale"].clamp_(max=SCALE_LIMIT)
    model.load_state_dict(state, strict=False)
    model.half().save_pretrained(output)
    PROCESSOR.save_pretrained(output)
    tokenizer.save_pretrained(output)


# ---------------------------------------------------------------- training


class Training:
    """The student, its optimizer, and where both stand; bfloat16 weights do the work, AdamW moves float32 ones."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        args.output.mkdir(parents=True, exist_ok=True)
        self.args, self.tokenizer = args, build_tokenizer(args.output)
        self.drawn = world.load_sprites(args.packages)
        self.sprites = restyled(self.drawn[: len(world.SEEN_STYLES)]).half()
        self.student = Student(self.tokenizer)
        self.master = {n: p.detach().clone().requires_grad_() for n, p in self.student.named_parameters()}
        decay = [p for p in self.master.values() if p.ndim > 1]
        rest = [p for p in self.master.values() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98))
        self.student.bfloat16()
        self.saved, self.start = args.output.with_suffix(".resume.pt"), 0
        if self.saved.exists():
            self.resume()

    def resume(self) -> None:
        """Go on from the last checkpoint."""
        state = torch.load(self.saved)
        self.start = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in self.master.items():
            value.data.copy_(state["master"][name])

    def step(self, step: int) -> float:
        """One batch, one move; the loss."""
        for name, p in self.student.named_parameters():
            p.data.copy_(self.master[name].data)
        scenes, texts, pictures = draw_batch(np.random.default_rng([self.args.seed, step]), self.sprites)
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        auxiliary = AUXILIARY if step < 0.9 * self.args.steps else 0.0
        images, words = self.student(normalised(pictures).bfloat16(), tokens)
        loss = loss_of(self.student, images, words, labels_of(scenes), auxiliary)
        loss.backward()
        for name, p in self.student.named_parameters():
            self.master[name].grad = None if p.grad is None else p.grad.float()
            p.grad = None
        torch.nn.utils.clip_grad_norm_([p for p in self.master.values() if p.grad is not None], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(step, self.args.steps, self.args.rate)
        self.optimizer.step()
        return loss.item()

    def save(self, done: int) -> dict[str, list[float]]:
        """Write the checkpoint and the model's folder; zero-shot [unsafe, safe] on a seen and the unseen style."""
        state = {"step": done, "master": self.master, "optimizer": self.optimizer.state_dict()}
        torch.save(state, self.saved.with_suffix(".tmp"))
        self.saved.with_suffix(".tmp").rename(self.saved)
        figures = [zero_shot(self.student, self.tokenizer, self.drawn, style) for style in (0, 3)]
        export(self.student, self.master, self.tokenizer, self.args.output)
        return {
            name: [round(v, 1) for v in pair]
            for name, pair in zip(("zero_shot", "zero_shot_unseen_style"), figures, strict=True)
        }


def train(args: argparse.Namespace) -> None:
    """Train to the end, saving every `args.every` steps."""
    training, began, running = Training(args), time.time(), 0.0
    for step in range(training.start, args.steps):
        loss = training.step(step)
        running = loss if step == training.start else 0.98 * running + 0.02 * loss
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            row = {"step": step + 1, "loss": round(running, 3), "seconds": round(time.time() - began)}
            print(json.dumps(row | training.save(step + 1)), flush=True)


def rate_at(step: int, steps: int, peak: float) -> float:
    """Learning rate: a warm-up of 200 steps, then a cosine to zero."""
    warm = min(1.0, (step + 1) / 200)
    return peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="the folder of unpacked npm packages")
    parser.add_argument("--output", type=Path, required=True, help="the Hugging Face folder to write")
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    train(parser.parse_args())
