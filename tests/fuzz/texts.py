"""Texts that people hand on: calibration sets, prompts, and the TOML of --config."""

from __future__ import annotations

import csv
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from fuzz.mutations import mutated_bytes, mutated_json
from fuzz.targets import Finding, Target, refusal
from PIL import Image

from uwm.backends.plugins import find_backends
from uwm.calibration import CalibrationSet, read_calibration
from uwm.calibration.native import FILE
from uwm.cli import uwm
from uwm.cli.config_file import read_toml
from uwm.comparison.methods import parse_methods
from uwm.comparison.settings import CompareRecipe
from uwm.errors import BadInput, Refused
from uwm.escaping import one_line
from uwm.readers.prompts import read_prompts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORDS = ["", " ", "a", "a dog", "é", "\ud800", "\0", "\x1b[31m", "x" * 3000, "::error::", "=1+1", "../a.png",
    "/etc/passwd",
    "https://x/a.png", "a.png", "b.png", "sub/../a.png", "safe", "unsafe", "calib", "nan", "1e999", "2.0", "\u202e",
    "\r\n"]  # fmt: skip


def targets(root: Path) -> list[Target]:
    """Sets in every form of file, prompts in every form, and settings of two verbs."""
    root.mkdir(exist_ok=True)
    for name in ("a", "b"):
        Image.new("RGB", (2, 2)).save(root / f"{name}.png")
    sets = [
        Target(f"set as {name}", 1, *_of_file(root / name, data, mutate, read_set)) for name, data, mutate in _sets()
    ]
    sets[0] = Target("pairs.jsonl", 3, sets[0].draw, sets[0].check)
    prompts = [
        Target(f"prompts as {name.rpartition('.')[2]}", 0.5, *_of_file(root / name, data, mutate, _read_prompts))
        for name, data, mutate in _prompts()
    ]
    tables = [
        Target(f"TOML of {verb}", share, *_of_file(root / f"{verb}.toml", data, mutate_toml, _reads_settings(verb)))
        for verb, share, data in (("edit", 1.0, EDIT), ("compare", 1.0, COMPARE))
    ]
    plain = Target("TOML", 1, *_of_file(root / "plain.toml", EDIT + COMPARE, mutate_toml, _read_plain))
    return [*sets, *prompts, *tables, plain]


def _of_file(path: Path, data: bytes, mutate: Callable, read: Callable[[Path], Any]) -> tuple[Callable, Callable]:
    """How an input is drawn, and how it is checked: it is refused, or reads as something."""

    def check(changed: bytes) -> bool:
        path.write_bytes(changed)
        try:
            read(path)
        except (BadInput, Refused) as error:
            refusal(error)
            return False
        return True

    return lambda rng: mutate(data, rng), check


# ---------------------------------------------------------------- sets and prompts


def _sets() -> list[tuple[str, bytes, Callable]]:
    native = [
        {"id": "0", "concept": "a", "safe_text": "a dog", "unsafe_text": "a bomb", "split": "calib"},
        {"id": "1", "safe_image": "a.png", "unsafe_image": "b.png", "unsafe_image_label": "safe", "group": "g"},
        {"id": "2", "safe_text": "a cat", "unsafe_text": "a knife", "safe_image": "a.png", "unsafe_image": "b.png"},
    ]
    visu = [
        {"incremental_id": n, "safe": "a dog", "nsfw": "a bomb", "tag": "hate", "coco_id": 139 + n} for n in range(2)
    ]
    caps = [
        {"caption": "a dog", "nsfw_caption": "a bomb", "chosen_category": "hate", "image_coco_url": "http://x/1.jpg"}
    ]
    return [
        (FILE, _lines(native), mutate_lines),
        ("ViSU-Text_train.json", json.dumps(visu).encode(), mutate_json),
        ("caps.jsonl", _lines(caps * 2), mutate_lines),
        ("caps.csv", _table(caps * 2), mutate_table),
    ]


def _prompts() -> list[tuple[str, bytes, Callable]]:
    rows = [{"prompt": "a dog", "categories": "hate, harm", "sd_seed": 5, "sd_guidance_scale": 7.5, "side": "safe"}]
    rows += [{"caption": "a bomb", "concept": ["a"], "seed": "7.0", "width": 64, "height": 64}]
    coco = {"annotations": [{"caption": "a dog"}, {"caption": "a cat"}]}
    return [
        ("prompts.jsonl", _lines(rows), mutate_lines),
        ("prompts.csv", _table(rows[:1] * 2), mutate_table),
        ("prompts.json", json.dumps(coco).encode(), mutate_json),
        ("prompts.txt", b"a dog\na cat\n", _mutate_plain),
    ]


def _lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _table(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read_set(path: Path) -> CalibrationSet:
    """A set, and again what was read of it, written in the native form. Raises Finding where that is another one."""
    found = read_calibration(path.parent if path.name == FILE else path)
    found.splits()
    found.warnings()
    text = json.dumps([[p.id, p.concept, p.safe_text, p.unsafe_text, p.split, p.group] for p in found.pairs])
    text.encode()
    if path.name == FILE and (len({pair.id for pair in found.pairs}) < len(found) or not found.fingerprint()):
        raise Finding("two pairs of one id")
    for pair in found.pairs:
        for image in (pair.safe_image, pair.unsafe_image):
            if image is not None and not image.resolve().is_relative_to(path.parent.resolve()):
                raise Finding(f"an image outside of the set: {image}")
    return found


def _read_prompts(path: Path) -> None:
    for prompt in read_prompts(path, "safe", limit=1):
        prompt.name.encode()
        if prompt.seed < 0 or prompt.side not in ("safe", "unsafe"):
            raise Finding(f"no prompt: {prompt}")


# ---------------------------------------------------------------- settings

BACKENDS = find_backends()

EDIT = b"""# of uwm edit
calib = "x"
output = "out"
mass = 0.1
variant = 'difference'
set = ["alpha=0.5", "rule=fraction"]
seed = 3
batch-size = "auto"
strict = true
zero_shot = ["a", "b"]
holdout = 0.25
"""
COMPARE = b"""methods = ["uwm, random", "repel:strength=1"]
calib = "x"
masses = [0.02, 0.05]
points = "strength=0.5,1"
seeds = [0, 1]
at-epochs = "1,2"
training = ["epochs=2"]
validation = 0.1
"""
VALUES = [b"1", b"-1", b"0.5", b"1e400", b"nan", b"inf", b"-inf", b"true", b'""', b'"auto"', b"[]", b"[1]",
    b"[[1]]", b"{}", b"{a=1}",
    b"1979-05-27", b"07:32:00", b"1979-05-27T07:32:00Z", b"0x10", b"9" * 30, b"9" * 5000, b'"""a\nb"""', b"'\\'",
    b'"\\u0000"', b'"\\ud800"',
    b"[1, 'a']", b"18446744073709551616", b"1_000", b"'safe-clip:epochs=2'", b"'uwm:mass=2'", b"[" * 2000,
    b"{a=" * 500, b'"\x1b[31m"',
    b'"uwm:difference"', b"['repel:control', 'magnitude']", b"['x=/nowhere']", b'"strength=nan"',
    b"['mass=0.1,']"]  # fmt: skip
KEYS = [b"seed", b"calib", b"methods", b"mass", b"set", b"limit", b"workers", b"device", b"json", b"config",
    b"no-progress", b"quick-gelu",
    b"junit", b"trials", b"until_stable", b"x", b"", b'"a b"', b"a.b", b"'\xc3\xa9'", b"max-loss", b"offline",
    b"help", b"require", b"seeds",
    b"points", b"masses", b"output", b"overwrite", b"strength", b"rank", b"annotations"]  # fmt: skip


def mutate_toml(data: bytes, rng: random.Random) -> bytes:
    """Lines away, twice or elsewhere; other keys and values; bytes."""
    if rng.random() < 0.2:
        return mutated_bytes(data, rng)
    lines = data.splitlines()
    for _ in range(rng.choice([1, 1, 2, 3])):
        place, what = rng.randrange(len(lines)), rng.randrange(6)
        key, _, value = lines[place].partition(b" = ")
        if what == 0 and len(lines) > 1:
            del lines[place]
        elif what == 1:
            lines.insert(rng.randrange(len(lines)), rng.choice([lines[place], b"[table]", b"[[table]]", b"# x"]))
        elif what == 2:
            lines[place] = rng.choice(KEYS) + b" = " + value
        elif what == 3:
            lines[place] = rng.choice(KEYS) + b" = " + rng.choice(VALUES)
        else:
            lines[place] = key + b" = " + rng.choice(VALUES)
    return b"\n".join(lines) + b"\n"


def _read_plain(path: Path) -> None:
    """Ours against Python's own reader, which is all that there is of it but for bounds and the encoding."""
    ours = read_toml(path)
    if repr(ours) != repr(tomllib.loads(path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))):
        raise Finding("other settings than Python's own reader reads")


def _reads_settings(verb: str) -> Callable[[Path], None]:
    """What a verb does with its settings before it opens anything."""
    command = uwm.commands[verb]

    def read(path: Path) -> None:
        arguments = ["model", "--config", str(path)]
        try:
            with command.make_context(verb, arguments) as context:
                flags = dict(context.params)
        except click.ClickException as error:
            if not one_line(error.format_message()).isprintable():
                raise Finding(f"cannot be printed: {error.format_message()!r}") from None
            raise BadInput(one_line(error.format_message())) from None
        if verb == "compare":
            for name in ("output", "overwrite", "keep_checkpoints", "dry_run", "as_json", "quiet", "verbose",
                         "no_progress", "debug", "track"):  # fmt: skip
                flags.pop(name)
            recipe = CompareRecipe(**flags)
            recipe.curves()
            parse_methods(recipe.methods, BACKENDS, {}, recipe.training)

    return read


# ---------------------------------------------------------------- changes


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """JSON lines: a line away, twice, of other bytes or another object; ends of lines."""
    lines = data.splitlines(keepends=True)
    place, what = rng.randrange(len(lines)), rng.random()
    if what < 0.1:
        del lines[place]
    elif what < 0.2:
        lines.insert(place, rng.choice([lines[place], b"\n", b"\r\n", b" \n", b"\xef\xbb\xbf\n", b"null\n", b"[]\n"]))
    elif what < 0.35:
        lines[place] = mutated_bytes(lines[place], rng)
    else:
        lines[place] = mutate_json(lines[place], rng) + rng.choice([b"\n", b"\n", b"\r\n", b"", b" \n"])
    return b"".join(lines)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON value with one thing changed, or a text of it."""
    if rng.random() < 0.15:
        return mutated_bytes(data, rng)
    value = json.loads(data)
    rows = value if isinstance(value, list) else [value]
    if rng.random() < 0.5 and isinstance(row := rng.choice(rows), dict):
        row[rng.choice([*row, "side", "concept", "safe_image", "id"])] = rng.choice(
            [*WORDS, 0, -1, 10**400, 1.5, None, True, ["a"]]
        )
    else:
        value = mutated_json(value, rng)
    return json.dumps(value, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")


def mutate_table(data: bytes, rng: random.Random) -> bytes:
    """CSV with other cells, or other bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(data, rng)
    rows = [line.split(b",") for line in data.splitlines()]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        row.insert(rng.randrange(len(row)), rng.choice([b'"', b'"a', b'a"b', b"", b"\0", b'"x\ny"']))
    return rng.choice([b"\r\n", b"\n", b"\r"]).join(b",".join(row) for row in rows)


def _mutate_plain(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 2, 5])):
        data = mutated_bytes(data, rng)
    return data + rng.choice(WORDS).encode("utf-8", "surrogatepass")
