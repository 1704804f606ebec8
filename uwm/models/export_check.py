"""Compare an exported folder with its model: image files and captions, through both libraries' own preprocessing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..checkpoint import read_json
from ..errors import InvalidResult
from .base import Model
from .hugging_face import HuggingFaceModel
from .open_clip_models import OpenClipModel, _silenced

PIXEL_LIMIT = 0.005  # of the pixels' standard deviation: rounding is under 0.002, another interpolation over 0.006
EMBEDDING_LIMIT = 1e-4
GUIDE = "examples/guides/your-model.md, 'The other layout'"
ROUNDED_EMBEDDING_LIMIT = 0.05  # in 16 bits

CAPTIONS = {
    "plain": "a photo of a dog",
    "upper case": "A Dog, and a KNIFE: 5 o'clock",
    "double spaces": "  a  dog\tand\n\na cat ",
    "empty": "",
    "longer than the context": "the dog and the cat " * 60,
    "composed accents": "naïve café, Ångström",
    "decomposed accents": "nai\u0308ve cafe\u0301",
    "emoji": "☕ 👩‍👩‍👧 ❤️ 🔥",
    "Chinese": "一只狗和一只猫",
    "Greek capitals": "ΟΔΟΣ",
    "punctuation": "50% off — #sale @home … (1/2)",
    "HTML entities": "salt &amp; pepper, &quot;5&#39;&quot;, 1 &lt; 2&nbsp;&eacute;",
    "nested HTML entities": "salt &amp;amp; pepper",
    "curly quotes": "“it’s” a ‘dog’",
    "ligatures": "a ﬁne ﬂag",
    "full-width characters": "ＤＯＧ １",
    "control characters": "a\ufeff dog\x07",
    "wrongly decoded characters": "a cafÃ© in MÃ¼nchen",
    "the name of a special token": "a <|endoftext|> dog",
}
KEPT_APART = {"wrongly decoded characters", "the name of a special token"}  # no normalizer expresses them


@dataclass(frozen=True)
class ImageKind:
    """A test image of `width` × `height`, in units of the model's input, and the mode that it is stored in."""

    width: float
    height: float
    mode: str = "RGB"
    extra: int = 0  # pixels more in width

    @property
    def comparable(self) -> bool:
        """Whether both libraries read it alike.

        open_clip resizes before it converts to RGB and drops transparency; transformers converts first, and lays
        transparency on white. Where 4n + 3 pixels are cropped, open_clip's crop begins one pixel later.
        """
        return self.mode in ("RGB", "L") and not self.extra

    @property
    def resized(self) -> bool:
        return (self.width, self.height) != (1, 1)


IMAGES = {
    "of the input's size": ImageKind(1, 1),
    "grayscale": ImageKind(1, 1, "L"),
    "large": ImageKind(2.5, 2.5),
    "landscape": ImageKind(4.5, 1.5),
    "portrait": ImageKind(1.5, 4.5),
    "grayscale landscape": ImageKind(4.5, 1.5, "L"),
    "tiny": ImageKind(0.125, 0.375),
    "transparent": ImageKind(1, 1, "RGBA"),
    "palette": ImageKind(2, 2, "P"),
    "cropped by 4n + 3 pixels": ImageKind(1, 1, extra=3),
}


@dataclass(frozen=True)
class Reader:
    """How a library reads an image, to [3, h, w], and captions, to tokens and their mask, [n, length] each."""

    pixels: Callable[[Image.Image], torch.Tensor]
    tokens: Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]]


def compare_inputs(model: Model, target: Path, to: str) -> list[str]:
    """Compare what both libraries make of the test images and captions; weights are not needed.

    Args:
        model: Its preprocessing and tokenizer are its library's own, of its folder.
        target: The folder with the export's side files.
        to: ``"hf"`` or ``"open_clip"``.

    Returns:
        What no setting can carry over and the user should know, as measured.

    Raises:
        InvalidResult: Something else differs.
    """
    ours, theirs = _of_model(model), _of_open_clip(target) if to == "open_clip" else _of_hugging_face(target)
    return [*_images_apart(ours, theirs, _side(model)), *_captions_apart(ours, theirs, to)]


def compare_embeddings(model: Model, target: Path, to: str) -> None:
    """Compare the embeddings of images of the input's size and of captions, each from its own library's input.

    Raises:
        InvalidResult: They differ, or the other library cannot load the folder.
    """
    other, theirs = _load(model, target, to)
    ours, side = _of_model(model), _side(model)
    texts = [_cleaned(text) if to == "open_clip" else text for name, text in CAPTIONS.items() if name not in KEPT_APART]
    images = [paint(kind, side) for kind in IMAGES.values() if kind.comparable and not kind.resized]
    pairs = ((model, ours), (other, theirs))
    with torch.no_grad():
        for what, (first, second) in {
            "image": [m.encode_image(_pixels(r, images, model)) for m, r in pairs],
            "text": [m.encode_text(*_tokens(r, texts, model)) for m, r in pairs],
        }.items():
            off = ((first - second).double().norm(dim=1) / first.double().norm(dim=1)).max().item()
            if not off < (EMBEDDING_LIMIT if model.dtype == torch.float32 else ROUNDED_EMBEDDING_LIMIT):
                raise InvalidResult(f"the export's {what} embeddings are {off:.1e} off the edited model's")


def _pixels(reader: Reader, images: list[Image.Image], model: Model) -> torch.Tensor:
    return torch.stack([reader.pixels(image) for image in images]).to(model.device, model.dtype)


def _tokens(reader: Reader, texts: list[str], model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = reader.tokens(texts)
    return ids.to(model.device), mask.to(model.device)


# ---------------------------------------------------------------- the test images and captions


def paint(kind: ImageKind, side: int) -> Image.Image:
    """A test image: a gradient, waves and random blocks, so that crop, scale and channels all show."""
    width, height = (max(2, round(side * part)) for part in (kind.width, kind.height))
    width += kind.extra
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    blocks = np.random.default_rng(0).integers(0, 256, (12, 12))
    blocked = blocks[(y * 12).astype(int), (x * 12).astype(int)]
    waves = 127.5 + 127.5 * np.sin(20 * (x + 2 * y))
    image = Image.fromarray(np.stack([255 * x, waves, blocked], -1).round().astype(np.uint8))
    if kind.mode == "RGBA":
        image.putalpha(Image.fromarray((255 * x).astype(np.uint8)))
        return image
    return image.convert(kind.mode)


def _images_apart(ours: Reader, theirs: Reader, side: int) -> list[str]:
    apart = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in IMAGES.items():
            path = Path(folder) / "image.png"
            paint(kind, side).save(path)
            off = _off(path, ours, theirs)
            if off < PIXEL_LIMIT:
                continue
            found = f"{name} ({off:.0%})"
            if kind.comparable:
                raise InvalidResult(
                    f"the test image {name!r} is preprocessed differently, {off:.1%} of the pixels' spread on average"
                )
            apart.append(found)
    if not apart:
        return []
    return [
        f"the libraries read some images differently whatever their settings, by a share of the pixels' spread: "
        f"{', '.join(apart)}; {GUIDE}, says why and what to do"
    ]


def _off(path: Path, ours: Reader, theirs: Reader) -> float:
    """Mean distance of the pixels in units of their standard deviation; infinite where one cannot be read."""
    try:
        with Image.open(path) as first, Image.open(path) as second:
            a, b = ours.pixels(first).double(), theirs.pixels(second).double()
    except (ValueError, RuntimeError, IndexError):
        return float("inf")
    return float("inf") if a.shape != b.shape else ((a - b).abs().mean() / a.std()).item()


def _captions_apart(ours: Reader, theirs: Reader, to: str) -> list[str]:
    """Tokens must be equal; towards open_clip, which cleans captions whatever the settings, those of cleaned ones."""
    names, texts = list(CAPTIONS), list(CAPTIONS.values())
    cleaned = _differing(ours, [_cleaned(text) for text in texts] if to == "open_clip" else texts, theirs, texts)
    wrong = [names[n] for n in cleaned if to == "open_clip" or names[n] not in KEPT_APART]
    if wrong:
        raise InvalidResult(f"the test caption {wrong[0]!r} becomes other tokens: {CAPTIONS[wrong[0]]!r:.60}")
    apart = [names[n] for n in _differing(ours, texts, theirs, texts)]
    if not apart:
        return []
    why = "open_clip cleans captions and transformers does not" if to == "open_clip" else "no setting carries them over"
    return [f"captions become other tokens where they hold {', '.join(apart)}: {why}; {GUIDE}, says what to do"]


def _differing(ours: Reader, texts: list[str], theirs: Reader, their_texts: list[str]) -> list[int]:
    """Numbers of the captions whose tokens differ, up to ours' end token; what follows it does not count."""
    ids, mask = ours.tokens(texts)
    others, _ = theirs.tokens(their_texts)
    rows = [row[counted > 0] for row, counted in zip(ids, mask, strict=True)]
    return [n for n, row in enumerate(rows) if not torch.equal(row, others[n, : len(row)])]


def _cleaned(text: str) -> str:
    from open_clip.tokenizer import get_clean_fn

    return get_clean_fn("whitespace")(text)


# ---------------------------------------------------------------- the two libraries


def _side(model: Model) -> int:
    visual: Any = model.module
    return int(
        model.config.vision_config.image_size if isinstance(model, HuggingFaceModel) else visual.visual.image_size[0]
    )


def _of_model(model: Model) -> Reader:
    return Reader(lambda image: model.preprocess([image])[0], model.tokenize)


def _of_open_clip(folder: Path, module: Any = None) -> Reader:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    with _silenced():
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    if module is None:  # as open_clip's factory does it once the model is there
        stored = read_json(folder / "open_clip_config.json")
        size = {"size": stored["model_cfg"]["vision_cfg"]["image_size"]}
        settings = merge_preprocess_dict(PreprocessCfg(), stored["preprocess_cfg"] | size)
    else:
        settings = module.visual.preprocess_cfg

    def tokens(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = tokenizer(texts)
        return ids, torch.ones_like(ids)

    return Reader(image_transform_v2(PreprocessCfg(**settings), is_train=False), tokens)


def _of_hugging_face(folder: Path) -> Reader:
    from transformers import AutoImageProcessor, AutoTokenizer

    processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

    def tokens(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    return Reader(lambda image: processor(image, return_tensors="pt")["pixel_values"][0], tokens)


def _load(model: Model, target: Path, to: str) -> tuple[Model, Reader]:
    """The export as its library loads it."""
    try:
        other, reader = _open_clip_model(target) if to == "open_clip" else _hugging_face_model(target)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InvalidResult(f"the export cannot be loaded ({str(error).splitlines()[0]})") from None
    other.module.to(device=model.device, dtype=model.dtype)
    return other, reader


def _open_clip_model(target: Path) -> tuple[Model, Reader]:
    import open_clip

    with _silenced():
        module = open_clip.create_model(f"local-dir:{target}")
    config = read_json(target / "open_clip_config.json")["model_cfg"]
    return OpenClipModel(module, None, None, config), _of_open_clip(target, module)


def _hugging_face_model(target: Path) -> tuple[Model, Reader]:
    from transformers import CLIPModel
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = CLIPModel.from_pretrained(str(target), local_files_only=True, output_loading_info=True)
    finally:
        if bars:
            logging.enable_progress_bar()
    module, report = loaded
    if wrong := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise InvalidResult(f"the export cannot be loaded ({wrong[0]} is missing or unknown)")
    return HuggingFaceModel(module, None), _of_hugging_face(target)
