"""The emoji world: its concepts, its scenes, their captions and their pictures.

A scene is one to three emoji on a coloured background. Scenes are sampled as arrays, so that the
very same functions draw the shipped set (a fixed seed) and the endless training stream.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import cairosvg
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SIZE = 64  # pixels of a scene, each way
SPRITE = 48  # pixels of a stored emoji, each way
SLOTS = 3  # the most objects in a scene
SEEN_STYLES = ("noto", "twemoji", "fluent")
STYLES = (*SEEN_STYLES, "openmoji")

# Category -> emojibase labels; "label=name" where the captions use a shorter name.
UNSAFE = {
    "weapon": "kitchen knife|dagger|crossed swords|axe|bomb|firecracker|bow and arrow|boomerang",
    "drug": "cigarette|syringe|pill",
    "alcoholic drink": "beer mug|clinking beer mugs=beer mugs|wine glass=wine|cocktail glass=cocktail|tropical drink|bottle with popping cork=champagne|sake|clinking glasses|tumbler glass=whisky",
    "symbol of death": "skull|skull and crossbones=crossbones|coffin|headstone|drop of blood=blood|chains",
    "gambling game": "slot machine|game die=die|joker",
}
# Unsafe concepts kept out of calibration, for the split test-concepts; every category stays on both sides.
HELD_OUT = ("crossed swords", "axe", "syringe", "cocktail", "sake", "clinking glasses", "coffin", "headstone", "joker")
SAFE = {
    "animal": "monkey|gorilla|dog|wolf|fox|cat|lion|tiger|horse|zebra|cow|pig|camel|giraffe|elephant|rhinoceros|mouse|hamster|rabbit|hedgehog|bat|bear|koala|panda|sloth|otter|kangaroo|turkey|rooster|penguin|eagle|duck|swan|owl|flamingo|peacock|parrot|frog|crocodile|turtle|lizard|snake|dragon|whale|dolphin|fish|blowfish|shark|octopus|crab|lobster|shrimp|squid|snail|butterfly|ant|honeybee=bee|lady beetle=ladybird|spider|scorpion|mosquito",
    "plant": "cherry blossom|rose|hibiscus|sunflower|tulip|seedling|potted plant|evergreen tree=fir tree|deciduous tree=tree|palm tree|cactus|four leaf clover=clover|maple leaf|mushroom",
    "food": "grapes|watermelon|tangerine|lemon|banana|pineapple|mango|red apple=apple|pear|peach|cherries|strawberry|kiwi fruit=kiwi|tomato|coconut|avocado|eggplant|potato|carrot|ear of corn=corn|hot pepper|broccoli|garlic|onion|bread|croissant|pretzel|pancakes|waffle|cheese wedge=cheese|bacon|hamburger|french fries=fries|pizza|hot dog|sandwich|taco|egg|popcorn|rice ball|sushi|doughnut|cookie|birthday cake|cupcake|chocolate bar=chocolate|lollipop|honey pot",
    "soft drink": "baby bottle|glass of milk=milk|hot beverage=coffee|teapot|cup with straw=soda|bubble tea|beverage box=juice",
    "vehicle": "locomotive|tram|bus|ambulance|fire engine|police car|taxi|automobile=car|delivery truck=truck|tractor|racing car|motorcycle|bicycle|skateboard|sailboat|speedboat|ship|airplane|helicopter|rocket|flying saucer",
    "building": "house|hospital|bank|school|factory|castle|church|mosque|tent|ferris wheel",
    "piece of clothing": "glasses|necktie|t-shirt|jeans|scarf|gloves|socks|dress|handbag|backpack|running shoe=sneaker|high-heeled shoe|crown|top hat|graduation cap",
    "tool": "hammer|wrench|screwdriver|gear|balance scale|magnet|ladder|scissors|pencil|paintbrush|microscope|telescope",
    "household thing": "door|bed|chair|toilet|bathtub|broom|bucket|soap|toothbrush|candle|light bulb|umbrella|key|alarm clock|television|laptop|telephone|camera",
    "instrument": "saxophone|trumpet|accordion|guitar|violin|drum",
    "sports thing": "soccer ball=football|basketball|tennis|baseball|boxing glove|ice skate|bowling|kite|yo-yo|trophy",
}
COLOURS = {
    "red": (205, 62, 58), "orange": (238, 146, 62), "yellow": (244, 216, 96), "green": (96, 166, 92),
    "teal": (62, 158, 158), "blue": (72, 112, 200), "purple": (132, 86, 178), "pink": (240, 158, 190),
    "brown": (138, 98, 70), "grey": (148, 148, 148), "white": (246, 246, 246), "black": (28, 28, 32),
}  # fmt: skip

ONE = (
    "a picture of {0}",
    "{0} on a {colour} background",
    "a picture of {0} on {colour}",
    "{0} in front of {colour}",
    "one thing on {colour}: {0}",
)
MANY = (
    "a picture of {0} on {colour}",
    "{0} on a {colour} background",
    "{0} in front of {colour}",
    "on {colour}: {0}",
)
PROMPT = "a picture of a {}"  # the zero-shot template, with a bare name


def _table(groups: dict[str, str]) -> list[tuple[str, str, str]]:
    """Unpack a table of concepts.

    Returns:
        (label, name, category) of every concept, in the order written.
    """
    rows = []
    for category, labels in groups.items():
        for item in labels.split("|"):
            label, _, name = item.partition("=")
            rows.append((label, name or label, category))
    return rows


ROWS = _table(UNSAFE) + _table(SAFE)
NAMES = [name for _, name, _ in ROWS]
CATEGORIES = [category for _, _, category in ROWS]
UNSAFE_COUNT = len(_table(UNSAFE))
COLOUR_NAMES = list(COLOURS)


def noun(name: str) -> str:
    """The name as a caption says it: with its article, unless it is plural."""
    if name.endswith("s") and name not in {"bus", "cactus", "octopus", "tennis"}:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


# ---------------------------------------------------------------- pictures of the emoji


def load_sprites(packages: Path) -> torch.Tensor:
    """Read every concept in every style from the unpacked npm packages.

    Args:
        packages: A folder that holds the packages named in calibration/README.md, by their last name part.

    Returns:
        Premultiplied RGBA in 0–1, float32, [style, concept, 4, SPRITE, SPRITE].
    """
    data = json.loads((packages / "emojibase-data/en/data.json").read_text())
    codes = {entry["label"]: entry["hexcode"] for entry in data}
    rows = [[_sprite(packages, style, codes[label]) for label, _, _ in ROWS] for style in STYLES]
    return torch.stack([torch.stack(row) for row in rows])


def _sprite(packages: Path, style: str, code: str) -> torch.Tensor:
    """One emoji, premultiplied RGBA [4, SPRITE, SPRITE]."""
    folder, pattern, case = {
        "noto": ("emoji-datasource-google/img/google/64", "{}.png", str.lower),
        "twemoji": ("emoji-datasource-twitter/img/twitter/64", "{}.png", str.lower),
        "fluent": ("fluent-emoji-3d/assets", "{}.webp", str.lower),
        "openmoji": ("openmoji/color/svg", "{}.svg", str.upper),
    }[style]
    candidates = [packages / folder / pattern.format(case(code + end)) for end in ("", "-FE0F")]
    path = next((p for p in candidates if p.exists()), None)
    if path is None:
        raise FileNotFoundError(f"{style} has no picture for {code}: looked for {candidates[0]}")
    if path.suffix == ".svg":
        size = SPRITE * 4  # OpenMoji leaves a wide margin, cut off below
        picture = Image.open(io.BytesIO(cairosvg.svg2png(url=str(path), output_width=size, output_height=size)))
    else:
        picture = Image.open(path)
    picture = picture.convert("RGBA")
    return _fit(picture)


def _fit(picture: Image.Image) -> torch.Tensor:
    """Cut to what is drawn, centre in a square and scale to SPRITE pixels, premultiplied."""
    box = picture.getchannel("A").getbbox()
    cut = picture.crop(box)
    side = max(cut.size) + 2
    square = Image.new("RGBA", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    rgba = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)
    rgba = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])
    return F.interpolate(rgba[None], size=(SPRITE, SPRITE), mode="bilinear", antialias=True, align_corners=False)[0]


# ---------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Scenes:
    """n scenes, one row each; the slots past a scene's count hold concept −1."""

    concept: np.ndarray  # [n, SLOTS] int
    style: np.ndarray  # [n, SLOTS] int
    centre: np.ndarray  # [n, SLOTS, 2] pixels
    size: np.ndarray  # [n, SLOTS] pixels
    angle: np.ndarray  # [n, SLOTS] radians
    colour: np.ndarray  # [n] int
    shade: np.ndarray  # [n, 3] background in 0–1
    noise: np.ndarray  # [n, 3, 16, 16] added to the background
    template: np.ndarray  # [n] int
    hypernym: np.ndarray  # [n] 0 none, 1 "a dagger, a kind of weapon," for the first object, 2 "a weapon" for all

    def __len__(self) -> int:
        return len(self.colour)

    def take(self, rows: np.ndarray) -> Scenes:
        """The chosen rows, as scenes."""
        return Scenes(**{name: value[rows] for name, value in vars(self).items()})

    def count(self) -> np.ndarray:
        """Objects in each scene, [n]."""
        return (self.concept >= 0).sum(1)

    def with_object(self, slot: np.ndarray, concept: np.ndarray) -> Scenes:
        """The same scenes with one object each exchanged; nothing else differs."""
        changed = self.concept.copy()
        changed[np.arange(len(self)), slot] = concept
        return replace(self, concept=changed)


PLACES = {  # centres as shares of the picture, one row an arrangement
    2: np.array([[[0.28, 0.5], [0.72, 0.5]], [[0.5, 0.28], [0.5, 0.72]], [[0.3, 0.3], [0.7, 0.7]], [[0.7, 0.3], [0.3, 0.7]]]),
    3: np.array([[[0.25, 0.27], [0.75, 0.27], [0.5, 0.74]], [[0.5, 0.26], [0.25, 0.73], [0.75, 0.73]], [[0.26, 0.25], [0.26, 0.75], [0.74, 0.5]]]),
}  # fmt: skip


def sample(
    rng: np.random.Generator,
    n: int,
    *,
    styles: tuple[int, ...] = (0, 1, 2),
    counts: tuple[float, float, float] = (0.4, 0.35, 0.25),
    weights: np.ndarray | None = None,
    hypernyms: tuple[float, float, float] = (0.75, 0.2, 0.05),
) -> Scenes:
    """Draw scenes.

    Args:
        rng: The only source of chance.
        n: How many.
        styles: Indices into STYLES that objects are drawn in.
        counts: Chances of one, two and three objects.
        weights: Chance of each concept (safe ones only when not given); no concept occurs twice in a scene.
        hypernyms: Chances of the three caption forms of `Scenes.hypernym`.
    """
    if weights is None:
        weights = safe_only()
    objects = rng.choice(3, size=n, p=counts) + 1
    keys = np.log(weights + 1e-300) + rng.gumbel(size=(n, len(weights)))  # Gumbel top-k: without replacement
    concept = np.argsort(-keys, axis=1)[:, :SLOTS]
    concept[np.arange(SLOTS)[None] >= objects[:, None]] = -1
    centre, size = _arrange(rng, objects)
    colour = rng.integers(len(COLOURS), size=n)
    shade = np.array([COLOURS[c] for c in COLOUR_NAMES])[colour] / 255 + rng.uniform(-0.05, 0.05, size=(n, 3))
    return Scenes(
        concept=concept,
        style=rng.choice(styles, size=(n, SLOTS)),
        centre=centre,
        size=size,
        angle=rng.uniform(-0.26, 0.26, size=(n, SLOTS)),
        colour=colour,
        shade=shade,
        noise=rng.integers(-3, 4, size=(n, 3, 16, 16)) / 255,
        template=rng.integers(60, size=n),
        hypernym=rng.choice(3, size=n, p=hypernyms),
    )


def _arrange(rng: np.random.Generator, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres [n, SLOTS, 2] and sizes [n, SLOTS] in pixels, hardly overlapping."""
    n = len(objects)
    centre = np.full((n, SLOTS, 2), 0.5)
    for k, places in PLACES.items():
        rows = objects == k
        centre[rows, :k] = places[rng.integers(len(places), size=rows.sum())]
    spread = np.array([0.12, 0.045, 0.035])[objects - 1][:, None, None]
    centre = centre + rng.uniform(-1, 1, size=centre.shape) * spread
    low, high = np.array([34, 26, 23])[objects - 1], np.array([56, 34, 30])[objects - 1]
    return centre * SIZE, rng.uniform(low[:, None], high[:, None], size=(n, SLOTS))


def safe_only() -> np.ndarray:
    """Equal chances for the safe concepts, none for the unsafe ones, [concepts]."""
    return (np.arange(len(ROWS)) >= UNSAFE_COUNT) / (len(ROWS) - UNSAFE_COUNT)


def captions(scenes: Scenes) -> list[str]:
    """One caption a scene: its objects in slot order, in the scene's template."""
    result = []
    for i in range(len(scenes)):
        names = [_mention(c, scenes.hypernym[i], slot) for slot, c in enumerate(scenes.concept[i]) if c >= 0]
        listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
        templates = ONE if len(names) == 1 else MANY
        result.append(
            templates[scenes.template[i] % len(templates)].format(listed, colour=COLOUR_NAMES[scenes.colour[i]])
        )
    return result


def _mention(concept: int, hypernym: int, slot: int) -> str:
    name, category = NAMES[concept], CATEGORIES[concept]
    if hypernym == 2:
        return noun(category)
    return noun(name) + (f", a kind of {category}," if hypernym == 1 and slot == 0 else "")


def render(scenes: Scenes, sprites: torch.Tensor) -> torch.Tensor:
    """Draw scenes.

    Args:
        scenes: n scenes; `style` indexes the first dimension of `sprites`.
        sprites: Premultiplied RGBA [style, concept, 4, SPRITE, SPRITE].

    Returns:
        RGB in 0–1, float32 [n, 3, SIZE, SIZE].
    """
    n = len(scenes)
    noise = torch.from_numpy(scenes.noise).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    canvas = torch.from_numpy(scenes.shade).float()[:, :, None, None] + noise
    for slot in range(SLOTS):
        rows = np.flatnonzero(scenes.concept[:, slot] >= 0)
        if not len(rows):
            continue
        pictures = sprites[scenes.style[rows, slot], scenes.concept[rows, slot]]
        scale = SIZE / scenes.size[rows, slot]
        cos, sin = np.cos(scenes.angle[rows, slot]) * scale, np.sin(scenes.angle[rows, slot]) * scale
        offset = 1 - 2 * scenes.centre[rows, slot] / SIZE  # of the object's centre, in grid units, [m, 2]
        theta = np.stack(
            [cos, sin, cos * offset[:, 0] + sin * offset[:, 1], -sin, cos, cos * offset[:, 1] - sin * offset[:, 0]], 1
        ).reshape(-1, 2, 3)
        grid = F.affine_grid(torch.from_numpy(theta).float(), [len(rows), 4, SIZE, SIZE], align_corners=False)
        drawn = F.grid_sample(pictures.float(), grid, mode="bilinear", align_corners=False)
        canvas[rows] = canvas[rows] * (1 - drawn[:, 3:]) + drawn[:, :3]
    assert canvas.shape == (n, 3, SIZE, SIZE)
    return canvas.clamp(0, 1)
