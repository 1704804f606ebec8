"""The other library's folder of an edited CLIP: converted weights, config, preprocessing, tokenizer."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..checkpoint import file_sha256, open_checkpoint
from ..errors import BadInput, InvalidResult
from .bare import clip_config
from .base import Model
from .cleaning import cleaning
from .conversion import convert, plain_clip
from .export_check import compare_embeddings, compare_inputs
from .hugging_face import HIGHEST_ID, HuggingFaceModel
from .open_clip_models import OpenClipModel
from .openai_tokenizer import write_openai_tokenizer
from .preprocessing import PILLOW, clip_processor

LAYOUTS = ("hf", "open_clip")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
INTERPOLATIONS = {number: name for name, number in PILLOW.items()}
ACTIVATIONS = {"quick_gelu": True, "gelu": False}  # Hugging Face's -> open_clip's quick_gelu
OPENAI_FACTOR = 1 / 255  # what open_clip always multiplies pixels by
CARRIED = {  # what of open_clip's configs has a counterpart in transformers, or no effect on a trained model
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"}
    | {"patch_dropout", "output_tokens"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "pad_id"}
    | {"hf_tokenizer_name", "tokenizer_kwargs", "pool_type", "eos_id", "output_tokens"},
}
CHANGES_TOKENS = ("strip_sep_token", "language", "reduction_mask")  # arguments of open_clip's tokenizers


def check_export(model: Model, to: str) -> None:
    """Refuse an export that cannot work, before the long work starts.

    It writes the side files to a temporary folder and compares both libraries' preprocessing of test images and
    captions. What no setting can carry over and a user should know goes to the model's notes.

    Raises:
        BadInput: No plain CLIP, or something that the other library has no setting for.
    """
    if to not in LAYOUTS:
        raise BadInput(f"--also-export {to!r}: expected hf or open_clip")
    families = {tower.encoder.family for tower in model.layout.towers}
    if families not in ({"hf-clip"}, {"open_clip"}) or set(model.editable) != {"text", "vision"}:
        raise BadInput(f"--also-export is for a plain CLIP with both towers; this is {model.layout.name}")
    if (model.layout.library == "open_clip") == (to == "open_clip"):
        raise BadInput(f"--also-export {to}: the model has that layout already; choose the other one")
    model.check_as_stored(f"--also-export {to}")
    if model.checkpoint is not None:
        plain_clip(model.checkpoint, to)
    with tempfile.TemporaryDirectory() as folder:
        _write_side_files(model, Path(folder))
        try:
            found = compare_inputs(model, Path(folder), to)
        except InvalidResult as error:
            raise BadInput(f"--also-export {to}: {error}; edit without it") from None
    model.notes += [f"--also-export {to}: {line}" for line in found]


def export(model: Model, edited: Path, to: str) -> dict[str, str]:
    """Write the folder ``edited/<to>`` with the same model in the other layout, and compare what they compute.

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
    _write_side_files(model, target)
    try:
        compare_inputs(model, target, to)
        compare_embeddings(model, target, to)
    except InvalidResult as error:
        raise InvalidResult(f"{error}; nothing kept") from None
    return {f"{to}/{weights.name}": file_sha256(weights)}


def _write_side_files(model: Model, target: Path) -> None:
    """All but the weights. Raises BadInput where the other library has no setting for it."""
    if isinstance(model, HuggingFaceModel):
        _write(target / "open_clip_config.json", _open_clip_config(model, _copy_tokenizer(model, target)))
    else:
        assert isinstance(model, OpenClipModel)
        _write(target / "config.json", _hugging_face_config(model))
        _write(target / "preprocessor_config.json", _preprocessor(model))
        _write_tokenizer(model, target)


def _refuse(to: str, reasons: Iterator[str]) -> None:
    """Raise BadInput with the first of the reasons, if there is one."""
    for reason in reasons:
        raise BadInput(f"--also-export {to}: {reason}; edit without it")


# ---------------------------------------------------------------- to open_clip


def _open_clip_config(model: HuggingFaceModel, local_tokenizer: bool) -> dict[str, Any]:
    text, vision = model.config.text_config, model.config.vision_config
    _refuse("open_clip", _beyond_open_clip(text, vision))
    text_cfg = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": _ratio(text),
    }
    if local_tokenizer:
        text_cfg |= {"hf_tokenizer_name": "local", "tokenizer_kwargs": {"clean": "whitespace"}}
    if text.eos_token_id not in (HIGHEST_ID, text.vocab_size - 1):
        text_cfg |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    vision_cfg = {
        "image_size": vision.image_size,
        "layers": vision.num_hidden_layers,
        "width": vision.hidden_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "mlp_ratio": _ratio(vision),
    }
    shape = {"embed_dim": model.config.projection_dim, "quick_gelu": ACTIVATIONS[text.hidden_act]}
    model_cfg = shape | {"vision_cfg": vision_cfg | _norm(vision), "text_cfg": text_cfg | _norm(text)}
    return {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_cfg(model)}


def _beyond_open_clip(text: Any, vision: Any) -> Iterator[str]:
    activations = {text.hidden_act, vision.hidden_act}
    if len(activations) > 1 or not activations <= set(ACTIVATIONS):
        yield (
            f"hidden_act is {' and '.join(sorted(activations))}; open_clip has one for both towers, quick_gelu or gelu"
        )
    if vision.num_channels != 3:
        yield f"the vision tower has {vision.num_channels} channels; open_clip reads 3"


def _ratio(part: Any) -> float:
    """A quotient that open_clip, which multiplies and cuts off, turns into the intermediate size again."""
    ratio = part.intermediate_size / part.hidden_size
    return ratio if int(part.hidden_size * ratio) == part.intermediate_size else math.nextafter(ratio, math.inf)


def _norm(part: Any) -> dict[str, Any]:
    return {"norm_kwargs": {"eps": part.layer_norm_eps}} if part.layer_norm_eps != 1e-5 else {}


def _preprocess_cfg(model: HuggingFaceModel) -> dict[str, Any]:
    """open_clip's words for what the folder's preprocessor does; its rescaling is folded into mean and std."""
    processor, side = model.processor(), model.config.vision_config.image_size
    _refuse("open_clip", _beyond_preprocess_cfg(processor, side))
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    return {
        "size": side,
        "mean": [value * OPENAI_FACTOR / factor for value in _by_channel(mean)],
        "std": [value * OPENAI_FACTOR / factor for value in _by_channel(std)],
        "interpolation": INTERPOLATIONS[int(processor.resample)],
        "resize_mode": "shortest" if "shortest_edge" in _set(processor.size) else "squash",
    }


def _beyond_preprocess_cfg(processor: Any, side: int) -> Iterator[str]:
    """What open_clip's preprocessing cannot do: it resizes to the input's size, then crops to it."""
    crops, size, square = bool(getattr(processor, "do_center_crop", False)), _set(processor.size), _square(side)
    if not processor.do_resize:
        yield "the image preprocessor has do_resize false; open_clip always resizes"
    if size not in ({"shortest_edge": side}, square):
        yield f"the image preprocessor resizes to {size}; open_clip resizes to the model's input ({side}) and no other"
    if crops and _set(processor.crop_size) != square:
        yield f"the image preprocessor crops to {_set(processor.crop_size)}; the model's input is {side} × {side}"
    if not crops and size != square:
        yield "the image preprocessor has do_center_crop false; open_clip always crops what it resized by an edge"
    if int(processor.resample) not in INTERPOLATIONS:
        yield f"the image preprocessor resamples by {int(processor.resample)}; open_clip has bilinear and bicubic"
    if not processor.do_convert_rgb:
        yield "the image preprocessor has do_convert_rgb false; open_clip always converts"
    if getattr(processor, "do_pad", False):
        yield "the image preprocessor has do_pad true; open_clip does not pad"


def _set(size: Any) -> dict[str, int]:
    """A size of transformers without the words that it leaves open."""
    return {key: value for key, value in dict(size).items() if value is not None}


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _by_channel(value: Any) -> list[float]:
    return [float(value)] * 3 if isinstance(value, int | float) else [float(part) for part in value]


# ---------------------------------------------------------------- to Hugging Face


def _hugging_face_config(model: OpenClipModel) -> dict[str, Any]:
    _refuse("hf", _beyond_hugging_face(model.config))
    config = clip_config(model.config | {"quick_gelu": model.quick_gelu})
    return json.loads(config.to_json_string()) | {"architectures": ["CLIPModel"]}


def _beyond_hugging_face(config: dict[str, Any]) -> Iterator[str]:
    """What transformers' CLIP has no setting for."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    for part, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        usual = {field.name: field.default for field in fields(kind) if field.name not in CARRIED[part]}
        for name, value in config[part].items():
            if name in usual and value != usual[name] and (value or usual[name]):
                yield f"{part} has {name} = {value!r}; transformers' CLIP has no such setting"
        odd = set(config[part].get("norm_kwargs") or {}) - {"eps"}
        if odd:
            yield f"{part} has norm_kwargs {sorted(odd)}; transformers' CLIP has eps only"
    text, side = config["text_cfg"], config["vision_cfg"].get("image_size", 224)
    pools, end = text.get("pool_type", "argmax"), text.get("eos_id", HIGHEST_ID)
    if pools not in ("argmax", "eos") or (pools == "eos" and end == HIGHEST_ID):
        yield f"text_cfg has pool_type = {pools!r} with eos_id = {end}; transformers' CLIP cannot pool so"
    if not isinstance(side, int) and len({*side}) > 1:
        yield f"vision_cfg has image_size = {side}; transformers' CLIP has square inputs only"
    if config.get("nonscalar_logit_scale"):
        yield "nonscalar_logit_scale is true; transformers' CLIP has a scalar"


def _beyond_preprocessor(asked: dict[str, Any], side: int) -> Iterator[str]:
    size = asked["size"] if isinstance(asked["size"], int) else tuple(asked["size"])
    if size not in (side, (side, side)):
        yield f"images are preprocessed to {size}, the model's input is {side}"
    if asked["resize_mode"] == "longest":
        yield "resize_mode is longest; transformers' preprocessor of CLIP cannot pad around an image"


def _preprocessor(model: OpenClipModel) -> dict[str, Any]:
    visual: Any = model.module.visual
    asked, side = visual.preprocess_cfg, visual.image_size[0]
    _refuse("hf", _beyond_preprocessor(asked, side))
    spread = {key: _by_channel(asked[key]) for key in ("mean", "std")}
    processor = clip_processor({**asked, **spread}, (side, side))
    return json.loads(processor.to_json_string())


def _write_tokenizer(model: OpenClipModel, target: Path) -> None:
    """The model's tokenizer with open_clip's cleaning of captions as its first normalizers."""
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import decoders, normalizers
    from transformers import AutoTokenizer

    text = model.config["text_cfg"]
    arguments, length = text.get("tokenizer_kwargs") or {}, text.get("context_length", 77)
    _refuse("hf", _beyond_tokenizer(text, arguments))
    asked = model._make_tokenizer()
    if isinstance(asked, SimpleTokenizer):
        write_openai_tokenizer(target, length)
        tokenizer, usual = AutoTokenizer.from_pretrained(str(target), local_files_only=True), "lower"
        ends = [decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)]
        tokenizer.backend_tokenizer.decoder = decoders.Sequence(ends)
    else:
        tokenizer, usual = asked.tokenizer, "whitespace"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadInput("--also-export hf: its tokenizer has no tokenizer.json, where open_clip's cleaning could be put")
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*cleaning(arguments.get("clean", usual)), *own])
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(str(target))
    config = json.loads((target / "tokenizer_config.json").read_text("utf-8"))
    # transformers' CLIPTokenizer would build a normalizer of its own; this class reads tokenizer.json's.
    _write(target / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _beyond_tokenizer(text: dict[str, Any], arguments: dict[str, Any]) -> Iterator[str]:
    for name in CHANGES_TOKENS:
        if arguments.get(name):
            yield f"tokenizer_kwargs has {name} = {arguments[name]!r}; transformers' tokenizers have no such setting"
    if text.get("tokenizer_mode"):
        yield f"text_cfg has tokenizer_mode = {text['tokenizer_mode']!r}; transformers' tokenizers have no such setting"


def _copy_tokenizer(model: HuggingFaceModel, target: Path) -> bool:
    """Take the folder's own tokenizer along, where there is a folder."""
    folder = None if model.checkpoint is None or not model.checkpoint.path.is_dir() else model.folder
    if folder is None:
        return False
    found = [name for name in TOKENIZER if (folder / name).is_file()]
    for name in found:
        shutil.copyfile(folder / name, target / name)
    return bool(found)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
