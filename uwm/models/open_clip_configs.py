"""A folder's open_clip_config.json, checked before open_clip builds it: types, sizes, and no code of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.json_files import checked_json
from ..errors import BadInput, Refused
from ..schema import (
    ANYTHING,
    FLAG,
    NONE,
    NUMBER,
    TEXT,
    Check,
    Unexpected,
    choice,
    each,
    holds,
    keyed,
    listed,
    nullable,
    whole,
    within,
)
from .described import LARGEST_SIDE, LARGEST_SIZE
from .preprocessing import CHOICES

FILE = "open_clip_config.json"
REMEDY = f"copy the original's {FILE} there"
PARTS = ("vision_cfg", "text_cfg", "multimodal_cfg")
GROWTH, SLACK = 2, 1 << 22  # how far the parameters that a config asks for may outgrow those that are stored


def check_open_clip_folder(checkpoint: Checkpoint) -> None:
    """Refuse a config that no model of these weights has.

    Raises:
        BadInput: A key of another type or size, or more parameters than the weights can have.
        Refused: It asks for a tokenizer's own code.
    """
    path = checkpoint.path / FILE
    found = checked_json(path, CONFIG, REMEDY)
    tokenizer = found["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}
    if tokenizer.get("trust_remote_code"):
        raise Refused(f"{path}: tokenizer_kwargs asks to run code of its tokenizer (trust_remote_code); remove it")
    stored = sum(math.prod(shape) for shape in checkpoint.shapes().values())
    asked = sum(_parameters(found["model_cfg"][part], part) for part in PARTS if found["model_cfg"].get(part))
    if asked > GROWTH * stored + SLACK:
        raise BadInput(f"{path}: asks for a model of some {asked:.2g} parameters, the weights have {stored}; {REMEDY}")


def _parameters(part: Mapping[str, Any], name: str) -> float:
    """About how many parameters a plain transformer of these sizes has; none where timm or transformers make it.

    Of a ResNet, whose layers are a list, less than it has.
    """
    if part.get("timm_model_name") or part.get("hf_model_name"):
        return 0
    text, layers = name != "vision_cfg", part.get("layers", 12)
    if isinstance(layers, list):
        return sum(layers) * part.get("width", 64) ** 2
    width = part.get("width", 512 if text else 768)
    blocks = layers * width * width * (4 + 2 * part.get("mlp_ratio", 4.0))
    if text:
        return blocks + width * (part.get("vocab_size", 49408) + part.get("context_length", 77))
    patch = min(_pair(part.get("patch_size") or 16))
    return blocks + width * math.prod(side / patch + 1 for side in _pair(part.get("image_size", 224)))


def _pair(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value, value]


# ---------------------------------------------------------------- what it must hold


def _sides(largest: int, words: str) -> Check:
    def holding(value: Any) -> bool:
        sides = value if isinstance(value, list) and len(value) == 2 else [value]
        return all(type(side) is int and 1 <= side <= largest for side in sides)

    return holds(words, holding)


def _vision(part: Any, place: str) -> None:
    """Sizes that divide one another as open_clip needs it."""
    if part.get("timm_model_name") or isinstance(part.get("layers"), list):
        return
    width, head = part.get("width", 768), part.get("head_width", 64)
    if width % head:
        raise Unexpected(f"{place}.head_width", f"a divisor of width {width}", head)
    side, patch = min(_pair(part.get("image_size", 224))), max(_pair(part.get("patch_size") or 16))
    if patch > side:
        raise Unexpected(f"{place}.patch_size", f"at most image_size {side}", patch)


def _text(part: Any, place: str) -> None:
    """Heads that divide the width, and tokens that are in the vocabulary."""
    if part.get("hf_model_name"):
        return
    width, heads, vocabulary = part.get("width", 512), part.get("heads", 8), part.get("vocab_size", 49408)
    if width % heads:
        raise Unexpected(f"{place}.heads", f"a divisor of width {width}", heads)
    for name in ("pad_id", "eos_id"):
        if part.get(name, 0) >= vocabulary:
            raise Unexpected(f"{place}.{name}", f"less than vocab_size {vocabulary}", part[name])


def _class_token(model: Any, place: str) -> None:
    """Of plain CLIPs open_clip reads ``embed_cls`` and then cannot compute with it."""
    if model["text_cfg"].get("embed_cls") and not (model.get("custom_text") or model.get("multimodal_cfg")):
        raise Unexpected(f"{place}.text_cfg.embed_cls", "false, for this is no custom_text model", True)


def _layers(value: Any, place: str) -> None:
    """Of a ResNet four numbers."""
    (listed(whole(1, 1 << 12), 4) if isinstance(value, list) else whole(1, 1 << 12))(value, place)


SIZE = whole(1, LARGEST_SIZE)
RATIO = within(0.01, 64)
WORDS, MAYBE = nullable(TEXT), nullable(FLAG)
IMAGE = _sides(LARGEST_SIDE, f"a whole number from 1 to {LARGEST_SIDE}, or two")
COLOURS = listed(within(-1e6, 1e6), 3)
FREE = nullable(keyed({}, rest=ANYTHING))
VISION = keyed(
    {},
    {
        "image_size": IMAGE,
        "patch_size": nullable(IMAGE),
        "layers": _layers,
        "width": SIZE,
        "head_width": SIZE,
        "mlp_ratio": RATIO,
        "output_tokens": FLAG,
        **dict.fromkeys(("timm_model_name", "timm_pool", "timm_proj", "pool_type", "pos_embed_type"), WORDS),
        **dict.fromkeys(("norm_kwargs", "act_kwargs"), FREE),
    },
    ANYTHING,
)
TOKENIZER = {
    **dict.fromkeys(("language", "reduction_mask", "padding_side"), WORDS),
    **dict.fromkeys(("strip_sep_token", "use_fast", "trust_remote_code"), FLAG),
    "clean": TEXT,
    "additional_special_tokens": nullable(listed(TEXT)),
    "model_max_length": SIZE,
}
TEXT_PART = keyed(
    {},
    {
        **dict.fromkeys(("context_length", "vocab_size", "width", "heads"), SIZE),
        "layers": whole(0, 1 << 12),
        "mlp_ratio": RATIO,
        **dict.fromkeys(("pad_id", "eos_id"), whole(0, LARGEST_SIZE)),
        **dict.fromkeys(("embed_cls", "no_causal_mask", "proj_bias", "output_tokens"), FLAG),
        **dict.fromkeys(("hf_model_name", "hf_tokenizer_name", "tokenizer_mode", "pool_type", "proj_type"), WORDS),
        "tokenizer_kwargs": nullable(keyed({}, TOKENIZER, NONE)),
        **dict.fromkeys(("norm_kwargs", "act_kwargs"), FREE),
    },
    ANYTHING,
)
_MODEL = keyed(
    {"embed_dim": SIZE, "vision_cfg": each(VISION, _vision), "text_cfg": each(TEXT_PART, _text)},
    {
        **dict.fromkeys(("quick_gelu", "custom_text"), MAYBE),
        **dict.fromkeys(("init_logit_scale", "init_logit_bias"), nullable(NUMBER)),
        "multimodal_cfg": nullable(TEXT_PART),
    },
    ANYTHING,
)
MODEL = each(_MODEL, _class_token)
PREPROCESS = keyed(
    {},
    {
        "size": nullable(IMAGE),
        "mean": nullable(COLOURS),
        "std": nullable(listed(within(1e-6, 1e6), 3)),
        "fill_color": nullable(whole(0, 255)),
        **{name: nullable(choice(*values)) for name, values in CHOICES.items()},
        "interpolation": nullable(choice(*CHOICES["interpolation"], "random")),
    },
    ANYTHING,
)
CONFIG = keyed({"model_cfg": MODEL}, {"preprocess_cfg": nullable(PREPROCESS)}, ANYTHING)
