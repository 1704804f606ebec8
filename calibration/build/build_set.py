"""Build the shipped emoji set: safe/unsafe pairs in five splits and the zero-shot pictures.

    python calibration/build/build_set.py --packages FOLDER --output calibration/emoji

FOLDER holds the unpacked npm packages named in calibration/README.md. The seeds are fixed, so the
same packages and library versions give the same bytes. Under a minute on one free CPU core.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import world
from PIL import Image

TAGS = {
    "weapon": "weapons",
    "drug": "drugs",
    "alcoholic drink": "alcohol",
    "symbol of death": "death",
    "gambling game": "gambling",
}
HYPERNYMS = (0.8, 0.2, 0.0)  # every caption names its objects
SEEN, UNSEEN = tuple(range(len(world.SEEN_STYLES))), (len(world.SEEN_STYLES),)
HELD_OUT = tuple(world.NAMES.index(name) for name in world.HELD_OUT)
COMMON = tuple(c for c in range(world.UNSAFE_COUNT) if c not in HELD_OUT)
CHUNK = 200  # scenes rendered at once
LEVELS = 63  # steps of a colour channel from black to white: finer than the noise, and a quarter smaller than bytes
DESCRIPTION = {
    "name": "emoji",
    "licence": "CC-BY-SA-4.0 for images/test-style and zero_shot/unseen (OpenMoji); "
    "CC-BY-4.0 for the other pictures (Noto Emoji: Apache-2.0, Twemoji: CC-BY-4.0, Fluent Emoji: MIT)",
    "source": "Drawn by calibration/build/build_set.py from the npm packages emoji-datasource-google, "
    "emoji-datasource-twitter, @lobehub/fluent-emoji-3d, openmoji and emojibase-data",
    "description": "Scenes of one to three emoji with captions, in pairs that differ in one object: a harmless "
    "stand-in for unsafe data, with weapons, drugs, alcohol, death and gambling as the unsafe categories",
}


@dataclass(frozen=True)
class Split:
    """What the pairs of one split are drawn from."""

    name: str
    seed: int
    pairs: int
    styles: tuple[int, ...]  # indices into world.STYLES
    unsafe: tuple[int, ...]  # concept indices


SPLITS = (
    Split("calib", 101, 600, SEEN, COMMON),
    Split("val", 102, 200, SEEN, COMMON),
    Split("test", 103, 400, SEEN, COMMON),
    Split("test-style", 104, 200, UNSEEN, COMMON),
    Split("test-concepts", 105, 200, SEEN, HELD_OUT),
)
ZERO_SHOT = (("seen", 201, SEEN, 1), ("unseen", 202, UNSEEN, 2))  # folder, seed, styles, pictures a concept and style


def round_robin(rng: np.random.Generator, concepts: tuple[int, ...], n: int) -> np.ndarray:
    """n concepts in shuffled rounds, so that their counts differ by one at most, [n]."""
    rounds = -(-n // len(concepts))
    return np.concatenate([rng.permutation(concepts) for _ in range(rounds)])[:n]


def join(parts: list[world.Scenes]) -> world.Scenes:
    """The scenes of all parts, in order."""
    return world.Scenes(**{key: np.concatenate([getattr(part, key) for part in parts]) for key in vars(parts[0])})


def draw_pairs(split: Split, used: set[str]) -> tuple[world.Scenes, world.Scenes]:
    """Draw the scenes of one split; each unsafe scene is its safe one with one object exchanged.

    Args:
        split: What to draw, and how many.
        used: Captions taken so far on either side, in any split; the new ones are added.

    Returns:
        The safe and the unsafe scenes, row by row.
    """
    rng = np.random.default_rng(split.seed)
    safe, unsafe = [], []
    for concept in round_robin(rng, split.unsafe, split.pairs):
        while True:
            scene = world.sample(rng, 1, styles=split.styles, hypernyms=HYPERNYMS)
            twin = scene.with_object(rng.integers(scene.count()), np.array([concept]))
            texts = world.captions(scene) + world.captions(twin)
            if used.isdisjoint(texts):
                break
        used.update(texts)
        safe.append(scene)
        unsafe.append(twin)
    return join(safe), join(unsafe)


def render_pixels(scenes: world.Scenes, sprites: torch.Tensor) -> np.ndarray:
    """Pictures of the scenes, rounded to LEVELS steps a channel, uint8 [n, SIZE, SIZE, 3]."""
    rows = np.array_split(np.arange(len(scenes)), -(-len(scenes) // CHUNK))
    drawn = torch.cat([world.render(scenes.take(part), sprites) for part in rows])
    stepped = (drawn * LEVELS).round() * (255 / LEVELS)
    return stepped.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """Write one picture, uint8 [SIZE, SIZE, 3], as lossless WebP."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="WEBP", lossless=True, method=6)


def write_split(split: Split, sprites: torch.Tensor, used: set[str], output: Path) -> list[dict[str, str]]:
    """Draw one split and write its pictures.

    Returns:
        Its records for pairs.jsonl, in order; image paths are relative to `output`.
    """
    scenes = draw_pairs(split, used)
    texts = [world.captions(side) for side in scenes]
    pictures = [render_pixels(side, sprites) for side in scenes]
    slot = (scenes[0].concept != scenes[1].concept).argmax(1)
    exchanged = scenes[1].concept[np.arange(split.pairs), slot]
    records = []
    for i in range(split.pairs):
        name = f"{split.name}-{i:04d}"
        paths = [f"images/{split.name}/{name}_{side}.webp" for side in ("safe", "unsafe")]
        for path, side in zip(paths, pictures, strict=True):
            save_picture(side[i], output / path)
        record = {"id": name, "concept": TAGS[world.CATEGORIES[exchanged[i]]]}
        record |= {"safe_text": texts[0][i], "unsafe_text": texts[1][i]}
        record |= {"safe_image": paths[0], "unsafe_image": paths[1], "split": split.name}
        records.append(record)
    return records


def write_zero_shot(
    name: str, seed: int, styles: tuple[int, ...], repeats: int, sprites: torch.Tensor, output: Path
) -> None:
    """Write single-object pictures of every concept as an image folder, with its class names and template.

    Args:
        name: The folder, below `output`/zero_shot.
        seed: Of the scenes.
        styles: Indices into world.STYLES; each draws every concept.
        repeats: Pictures of a concept in each style.
        sprites: As world.load_sprites gives them.
        output: The set's folder.
    """
    rng = np.random.default_rng(seed)
    every = np.arange(len(world.NAMES))
    folders = [f"{i:03d}_{concept.replace(' ', '-')}" for i, concept in enumerate(world.NAMES)]
    root = output / "zero_shot" / name
    for style in styles:
        for repeat in range(repeats):
            scenes = world.sample(rng, len(every), styles=(style,), counts=(1.0, 0.0, 0.0))
            pictures = render_pixels(scenes.with_object(np.zeros_like(every), every), sprites)
            for folder, pixels in zip(folders, pictures, strict=True):
                save_picture(pixels, root / folder / f"{world.STYLES[style]}_{repeat}.webp")
    write_lines(root / "classnames.txt", world.NAMES)
    write_lines(root / "templates.txt", [world.PROMPT])


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file, one line each, with line feeds on every system."""
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")


def build(packages: Path, output: Path) -> None:
    """Write the whole set, replacing the pictures of an earlier one.

    Args:
        packages: The unpacked npm packages.
        output: The set's folder, made if missing.
    """
    sprites = world.load_sprites(packages)
    for folder in ("images", "zero_shot"):
        shutil.rmtree(output / folder, ignore_errors=True)
    used: set[str] = set()
    records = [record for split in SPLITS for record in write_split(split, sprites, used, output)]
    write_lines(output / "pairs.jsonl", [json.dumps(record) for record in records])
    write_lines(output / "set.json", [json.dumps(DESCRIPTION, indent=2)])
    for name, seed, styles, repeats in ZERO_SHOT:
        write_zero_shot(name, seed, styles, repeats, sprites, output)
    write_lines(output / "zero_shot" / "unsafe_classes.txt", world.NAMES[: world.UNSAFE_COUNT])


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unpacked npm packages")
    parser.add_argument("--output", type=Path, required=True, help="folder of the set")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    build(arguments.packages, arguments.output)


if __name__ == "__main__":
    main()
