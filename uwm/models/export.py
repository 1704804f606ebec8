"""The other library's folder of an edited CLIP: converted weights, config, preprocessing, tokenizer."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import file_sha256, open_checkpoint
from ..errors import BadInput, InvalidResult
from .base import Model
from .conversion import convert, plain_clip
from .hugging_face import HuggingFaceModel, clip_config
from .loading import load
from .open_clip_models import OpenClipModel
from .sizes import OPENAI_VOCABULARY

LAYOUTS = ("hf", "open_clip")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which Hugging Face stores


def check_export(model: Model, to: str) -> None:
    """Refuse an export that cannot work, before the long work starts. Raises BadInput."""
    if to not in LAYOUTS:
        raise BadInput(f"--also-export {to!r}: expected hf or open_clip")
    families = {tower.encoder.family for tower in model.layout.towers}
    if families not in ({"hf-clip"}, {"open_clip"}) or set(model.editable) != {"text", "vision"}:
        raise BadInput(f"--also-export is for a plain CLIP with both towers; this is {model.layout.name}")
    if (model.layout.library == "open_clip") == (to == "open_clip"):
        raise BadInput(f"--also-export {to}: the model has that layout already; choose the other one")
    if model.checkpoint is not None:
        plain_clip(model.checkpoint, to)


def export(model: Model, edited: Path, to: str) -> dict[str, str]:
    """Write the folder ``edited/<to>`` with the same model in the other layout, and compare their embeddings.

    Args:
        model: As loaded from the input; while this runs, holding the edit.
        edited: The folder with the edited weights.
        to: ``"hf"`` or ``"open_clip"``.

    Returns:
        sha256 of the weight file written, by its name in `edited`.

    Raises:
        BadInput: No plain CLIP. InvalidResult: The export computes something else.
    """
    target = edited / to
    target.mkdir()
    checkpoint = open_checkpoint(edited)
    weights = target / ("open_clip_model.safetensors" if to == "open_clip" else "model.safetensors")
    convert(checkpoint, to, weights)
    if isinstance(model, HuggingFaceModel):
        local = _copy_tokenizer(model, target)
        _write(target / "open_clip_config.json", _open_clip_config(model, local))
    else:
        assert isinstance(model, OpenClipModel)
        _write(target / "config.json", _hugging_face_config(model))
        _write(target / "preprocessor_config.json", _preprocessor(model))
        if not _copy_tokenizer(model, target):
            _openai_tokenizer(target, model.config["text_cfg"].get("context_length", 77))
    _compare(model, target)
    return {f"{to}/{weights.name}": file_sha256(weights)}


def _compare(model: Model, target: Path) -> None:
    """Both must give the same embeddings of the same random inputs."""
    other = load(target, device=str(model.device), dtype=str(model.dtype).removeprefix("torch."))
    generator = torch.Generator().manual_seed(0)
    visual: Any = model.module
    size = model.config.vision_config.image_size if isinstance(model, HuggingFaceModel) else visual.visual.image_size[0]
    pixels = torch.randn(2, 3, size, size, generator=generator).to(model.device, model.dtype)
    ids, mask = _captions(model, generator)
    with torch.no_grad():
        for name, ours, theirs in (
            ("image", model.encode_image(pixels), other.encode_image(pixels)),
            ("text", model.encode_text(ids, mask), other.encode_text(ids, mask)),
        ):
            off = ((ours - theirs).double().norm() / ours.double().norm()).item()
            if not off < (1e-4 if model.dtype == torch.float32 else 0.05):
                raise InvalidResult(
                    f"the export's {name} embeddings are {off:.1e} off the edited model's; nothing kept"
                )


def _captions(model: Any, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random captions of uneven length, each ending with the vocabulary's last token, the end token."""
    text = model.config.text_config.to_dict() if isinstance(model, HuggingFaceModel) else model.config["text_cfg"]
    vocabulary = text.get("vocab_size", OPENAI_VOCABULARY)
    ids = torch.randint(1, vocabulary - 2, (2, 8), generator=generator)
    ids[0, 5:], ids[1, 7] = vocabulary - 1, vocabulary - 1
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    return ids.to(model.device), mask.to(model.device)


# ---------------------------------------------------------------- to open_clip


def _open_clip_config(model: HuggingFaceModel, local_tokenizer: bool) -> dict[str, Any]:
    text, vision = model.config.text_config, model.config.vision_config
    norm = {"norm_kwargs": {"eps": text.layer_norm_eps}} if text.layer_norm_eps != 1e-5 else {}
    text_cfg = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": text.intermediate_size / text.hidden_size,
    }
    if local_tokenizer:
        text_cfg |= {"hf_tokenizer_name": "local", "tokenizer_kwargs": {"clean": "whitespace"}}
    vision_cfg = {
        "image_size": vision.image_size,
        "layers": vision.num_hidden_layers,
        "width": vision.hidden_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
    }
    shape = {"embed_dim": model.config.projection_dim, "quick_gelu": model.quick_gelu}
    model_cfg = shape | {"vision_cfg": vision_cfg | norm, "text_cfg": text_cfg | norm}
    return {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_cfg(model)}


def _preprocess_cfg(model: HuggingFaceModel) -> dict[str, Any]:
    """open_clip's words for what the folder's preprocessor does; empty where the folder has none."""
    try:
        processor = model.processor()
    except BadInput:
        return {}
    size = dict(processor.size)
    crop = dict(processor.crop_size) if processor.do_center_crop else size
    return {
        "size": [crop["height"], crop["width"]] if "height" in crop else crop["shortest_edge"],
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": INTERPOLATIONS.get(int(processor.resample), "bicubic"),
        "resize_mode": "shortest" if "shortest_edge" in size else "squash",
    }


# ---------------------------------------------------------------- to Hugging Face


def _hugging_face_config(model: OpenClipModel) -> dict[str, Any]:
    config = clip_config(model.config | {"quick_gelu": model.quick_gelu})
    return json.loads(config.to_json_string()) | {"architectures": ["CLIPModel"]}


def _preprocessor(model: OpenClipModel) -> dict[str, Any]:
    from transformers import CLIPImageProcessor

    visual: Any = model.module.visual
    asked = visual.preprocess_cfg
    size = asked["size"]
    height, width = (size, size) if isinstance(size, int) else size
    square = {"height": height, "width": width}
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    processor = CLIPImageProcessor(
        size={"shortest_edge": min(height, width)} if asked["resize_mode"] == "shortest" else square,
        crop_size=square,
        do_center_crop=asked["resize_mode"] == "shortest",
        image_mean=list(asked["mean"]),
        image_std=list(asked["std"]),
        resample=numbers.get(asked["interpolation"], 3),
    )
    return json.loads(processor.to_json_string())


def _copy_tokenizer(model: Model, target: Path) -> bool:
    """Take the folder's own tokenizer along, where it has one that is not OpenAI's."""
    folder = None if model.checkpoint is None or not model.checkpoint.path.is_dir() else model.folder
    text = model.config.text_config.to_dict() if isinstance(model, HuggingFaceModel) else model.config["text_cfg"]  # type: ignore[attr-defined]
    openai = text.get("vocab_size", OPENAI_VOCABULARY) == OPENAI_VOCABULARY
    if folder is None or (openai and isinstance(model, HuggingFaceModel)):
        return False
    found = [name for name in TOKENIZER if (folder / name).is_file()]
    for name in found:
        shutil.copyfile(folder / name, target / name)
    return bool(found)


def _openai_tokenizer(target: Path, context_length: int) -> None:
    """OpenAI's byte-pair vocabulary, as open_clip carries it, in the files that Hugging Face reads."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    vocabulary = SimpleTokenizer().encoder
    start, end = "<|startoftext|>", "<|endoftext|>"
    renamed = {{"<start_of_text>": start, "<end_of_text>": end}.get(w, w): n for w, n in vocabulary.items()}
    with gzip.open(default_bpe()) as stream:
        merges = stream.read().decode("utf-8").split("\n")[1 : OPENAI_VOCABULARY - 2 * 256 - 1]
    _write(target / "vocab.json", renamed)
    (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    names = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    _write(
        target / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **names},
    )


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
