"""The shipped emoji set: the two sides of a pair differ in one object and in nothing else, and no split leaks."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from uwm.calibration import check, read_calibration

ROOT = Path(__file__).parents[1] / "calibration"
SET, ZERO_SHOT = ROOT / "emoji", ROOT / "emoji" / "zero_shot"
SPLITS = {"calib": 600, "val": 200, "test": 400, "test-style": 200, "test-concepts": 200}
TAGS = {"weapons": 8, "drugs": 3, "alcohol": 9, "death": 6, "gambling": 3}  # unsafe concepts of each category
HELD_OUT = {"crossed swords", "axe", "syringe", "cocktail", "sake", "clinking glasses", "coffin", "headstone", "joker"}
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "grey", "white", "black")
CATEGORY_TAGS = {
    "weapon": "weapons",
    "drug": "drugs",
    "alcoholic drink": "alcohol",
    "symbol of death": "death",
    "gambling game": "gambling",
}
SAFE_CATEGORIES = "animal|plant|food|soft drink|vehicle|building|piece of clothing|tool|household thing|instrument"
KINDS = "|".join((SAFE_CATEGORIES, "sports thing", *CATEGORY_TAGS))
MENTION = r"(?:(?:an?) )?\b({names})\b(?:, a kind of (" + KINDS + r"),)?"
WIDEST = {1: 64, 2: 44, 3: 39}  # pixels that one object spans in a scene of so many: 1.224 times the largest size


class Caption(NamedTuple):
    """A caption taken apart."""

    frame: str  # with an asterisk for every object
    names: tuple[str, ...]
    kinds: tuple[str, ...]  # "" where the caption names none


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    return [json.loads(line) for line in lines(SET / "pairs.jsonl")]


@pytest.fixture(scope="module")
def unsafe_names() -> set[str]:
    return set(lines(ZERO_SHOT / "unsafe_classes.txt"))


@pytest.fixture(scope="module")
def captions(records) -> list[tuple[Caption, Caption]]:
    """Safe and unsafe caption of every pair, taken apart; longer names before the names they contain."""
    names = sorted(lines(ZERO_SHOT / "seen" / "classnames.txt"), key=len, reverse=True)
    mention = re.compile(MENTION.format(names="|".join(map(re.escape, names))))

    def parsed(text: str) -> Caption:
        found = mention.findall(text)
        return Caption(mention.sub("*", text), tuple(name for name, _ in found), tuple(kind for _, kind in found))

    return [(parsed(r["safe_text"]), parsed(r["unsafe_text"])) for r in records]


@pytest.fixture(scope="module")
def pictures(records) -> tuple[np.ndarray, np.ndarray]:
    """All safe and all unsafe pictures, uint8 [pairs, 64, 64, 3] each; checks their form on the way."""
    return tuple(np.stack([pixels(SET / r[f"{side}_image"]) for r in records]) for side in ("safe", "unsafe"))


def pixels(path: Path) -> np.ndarray:
    """Pixels of a lossless WebP in RGB, uint8 [64, 64, 3]."""
    assert path.read_bytes()[8:16] == b"WEBPVP8L", f"{path.name} is not lossless"
    with Image.open(path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("WEBP", "RGB", (64, 64)), path.name
        return np.asarray(picture)


def by_split(records: list[dict[str, str]], values: list) -> dict[str, list]:
    found = defaultdict(list)
    for record, value in zip(records, values, strict=True):
        found[record["split"]].append(value)
    return dict(found)


# ---------------------------------------------------------------- records


def test_counts_and_fields(records):
    assert Counter(r["split"] for r in records) == SPLITS
    fields = ["id", "concept", "safe_text", "unsafe_text", "safe_image", "unsafe_image", "split"]
    assert all(list(r) == fields for r in records)
    assert len({r["id"] for r in records}) == len(records)
    named = {r[side] for r in records for side in ("safe_image", "unsafe_image")}
    assert named == {p.relative_to(SET).as_posix() for p in (SET / "images").rglob("*.*")}


def test_description():
    description = json.loads((SET / "set.json").read_text("utf-8"))
    assert set(description) == {"name", "licence", "source", "description"}
    assert "CC-BY-SA-4.0 for images/test-style and zero_shot/unseen" in description["licence"]


def test_the_tool_finds_nothing_odd(records):
    found = check(read_calibration(SET))
    assert (found["pairs"], found["with_text"], found["with_image"]) == (1600, 1600, 1600)
    assert found["splits"] == SPLITS
    assert not any(found["warnings"].values())


def test_no_caption_occurs_twice_in_any_split(records):
    texts = [r[side] for r in records for side in ("safe_text", "unsafe_text")]
    assert len(set(texts)) == len(texts) == 3200


# ---------------------------------------------------------------- captions


def test_captions_differ_in_one_object(captions, unsafe_names):
    for safe, unsafe in captions:
        assert safe.frame == unsafe.frame
        assert len(safe.names) == safe.frame.count("*") in (1, 2, 3)
        changed = [i for i, (a, b) in enumerate(zip(safe.names, unsafe.names, strict=True)) if a != b]
        assert len(changed) == 1
        assert unsafe.names[changed[0]] in unsafe_names
        assert not unsafe_names & set(safe.names)
        assert [bool(k) for k in safe.kinds] == [bool(k) for k in unsafe.kinds]


def test_frames_are_the_few_templates(captions):
    """Nothing but objects, a colour and a template: a name that was not recognised would show here."""
    frames = {re.sub(rf"\b({'|'.join(COLOURS)})\b", "C", safe.frame) for safe, _ in captions}
    one = {"a picture of *", "* on a C background", "a picture of * on C", "* in front of C", "one thing on C: *"}
    many = ("a picture of {} on C", "{} on a C background", "{} in front of C", "on C: {}")
    assert frames == one | {m.format(o) for m in many for o in ("* and *", "*, * and *")}


def test_every_number_of_objects_and_every_place_is_exchanged(records, captions):
    for pairs in by_split(records, captions).values():
        places = Counter(
            (len(a.names), [x != y for x, y in zip(a.names, b.names, strict=True)].index(True)) for a, b in pairs
        )
        assert set(places) == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}


def test_colours_are_the_same_on_both_sides(records):
    counts = {
        side: by_split(records, [Counter(w for w in re.findall(r"\w+", r[side]) if w in COLOURS) for r in records])
        for side in ("safe_text", "unsafe_text")
    }
    assert counts["safe_text"] == counts["unsafe_text"]
    assert all(set(sum(found, Counter())) == set(COLOURS) for found in counts["safe_text"].values())


def test_no_name_or_category_holds_a_colour_word():
    names = lines(ZERO_SHOT / "seen" / "classnames.txt")
    assert not set(" ".join([*names, KINDS.replace("|", " ")]).split()) & set(COLOURS)


# ---------------------------------------------------------------- unsafe concepts


@pytest.fixture(scope="module")
def exchanged(captions, unsafe_names) -> list[str]:
    """The unsafe concept of every pair."""
    return [next(n for n in unsafe.names if n in unsafe_names) for _, unsafe in captions]


def test_held_out_concepts_occur_in_test_concepts_only(records, exchanged, unsafe_names):
    found = {split: set(names) for split, names in by_split(records, exchanged).items()}
    assert found.pop("test-concepts") == HELD_OUT
    assert set(found) == {"calib", "val", "test", "test-style"}
    assert all(names == unsafe_names - HELD_OUT for names in found.values())


def test_every_category_is_in_every_split(records, exchanged):
    assert all(set(tags) == set(TAGS) for tags in by_split(records, [r["concept"] for r in records]).values())
    tags = {
        name: {r["concept"] for r, n in zip(records, exchanged, strict=True) if n == name} for name in set(exchanged)
    }
    assert all(len(tag) == 1 for tag in tags.values())
    assert Counter(next(iter(tag)) for tag in tags.values()) == TAGS


def test_the_tag_is_the_category_the_caption_names(records, captions, unsafe_names):
    named = 0
    for record, (_, unsafe) in zip(records, captions, strict=True):
        for name, kind in zip(unsafe.names, unsafe.kinds, strict=True):
            if kind and name in unsafe_names:
                assert CATEGORY_TAGS[kind] == record["concept"]
                named += 1
    assert named > 50


def test_unsafe_concepts_are_balanced(records, exchanged):
    for names in by_split(records, exchanged).values():
        counts = Counter(names).values()
        assert max(counts) - min(counts) <= 1


# ---------------------------------------------------------------- pictures


def test_pictures_differ_only_around_one_object(captions, pictures):
    differs = (pictures[0] != pictures[1]).any(-1)  # [pairs, 64, 64]
    for (safe, _), mask in zip(captions, differs, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert len(rows), "identical pictures"
        assert max(np.ptp(rows), np.ptp(columns)) + 1 <= WIDEST[len(safe.names)]
    several = np.array([len(safe.names) > 1 for safe, _ in captions])
    assert differs[several].mean(axis=(1, 2)).max() < 0.35
    assert differs[several].mean() < 0.2


def test_backgrounds_are_the_same(pictures):
    """An object may reach one corner; the others show the background, bit by bit the same."""
    corners = [(slice(r, r + 2), slice(c, c + 2)) for r in (0, 62) for c in (0, 62)]
    same = [(pictures[0][:, r, c] == pictures[1][:, r, c]).all(axis=(1, 2, 3)) for r, c in corners]
    assert (np.sum(same, axis=0) >= 3).all()
    border = np.ones((64, 64), dtype=bool)
    border[1:-1, 1:-1] = False
    assert (pictures[0] != pictures[1]).any(-1)[:, border].mean() < 0.02


def test_no_picture_occurs_twice(pictures):
    assert len({picture.tobytes() for side in pictures for picture in side}) == 3200


# ---------------------------------------------------------------- zero-shot


@pytest.mark.parametrize(("name", "files"), [
    ("seen", ["fluent_0.webp", "noto_0.webp", "twemoji_0.webp"]),
    ("unseen", ["openmoji_0.webp", "openmoji_1.webp"]),
])  # fmt: skip
def test_zero_shot_folders(name, files):
    folders = sorted(p for p in (ZERO_SHOT / name).iterdir() if p.is_dir())
    names = lines(ZERO_SHOT / name / "classnames.txt")
    assert len(names) == len(set(names)) == 251
    assert [p.name for p in folders] == [f"{i:03d}_{n.replace(' ', '-')}" for i, n in enumerate(names)]
    assert lines(ZERO_SHOT / name / "templates.txt") == ["a picture of a {}"]
    shown = set()
    for folder in folders:
        assert sorted(p.name for p in folder.iterdir()) == files
        shown |= {pixels(folder / file).tobytes() for file in files}
    assert len(shown) == 251 * len(files)


def test_unsafe_classes(unsafe_names, exchanged):
    assert unsafe_names == set(exchanged)
    assert len(lines(ZERO_SHOT / "unsafe_classes.txt")) == len(unsafe_names) == sum(TAGS.values())
    assert unsafe_names < set(lines(ZERO_SHOT / "seen" / "classnames.txt"))


# ---------------------------------------------------------------- what the README states


def test_readme_states_the_hashes():
    """Of pairs.jsonl, and of the manifest that `sha256sum` writes for all pictures in the order of their bytes."""
    paths = sorted(p.relative_to(SET).as_posix() for p in SET.rglob("*.webp"))
    assert len(paths) == 4455
    manifest = "".join(f"{hashlib.sha256((SET / p).read_bytes()).hexdigest()}  {p}\n" for p in paths)
    stated = re.findall(r"\b[0-9a-f]{64}\b", (ROOT / "README.md").read_text("utf-8"))
    content = (SET / "pairs.jsonl").read_bytes(), manifest.encode()
    assert stated == [hashlib.sha256(data).hexdigest() for data in content]
