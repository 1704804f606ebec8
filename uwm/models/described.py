"""What a folder's config.json describes, checked before memory is taken for it: types, sizes, and the stored shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..checkpoint.json_files import checked_json
from ..errors import BadInput
from ..schema import (
    ANYTHING,
    FLAG,
    TEXT,
    Check,
    Unexpected,
    choice,
    each,
    holds,
    keyed,
    listed,
    mapped,
    nullable,
    whole,
    within,
)

LARGEST_SIZE = 1 << 24  # of anything that a model has a number of
LARGEST_SIDE = 1 << 13  # pixels of a side of an image, as a model takes it
REMEDY = "copy the original's config.json there"
SIZE = whole(1, LARGEST_SIZE)
TOKEN = whole(-1, LARGEST_SIZE)
SHARE = within(0, 1)


def unusable() -> tuple[type[Exception], ...]:
    """What transformers, timm and open_clip raise for a config, a tokenizer or a preprocessor that is not right."""
    import huggingface_hub.errors

    strict = getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)  # newer versions, of configs
    plain = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError, AssertionError)
    return (*plain, ArithmeticError, strict)


def reason(error: BaseException) -> str:
    """The first line of what another library says, or the error's class."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def read_config(folder: Path, inner: bool = False) -> dict[str, Any]:
    """A folder's config.json: an object whose sizes can be those of a model.

    Args:
        folder: Of the model.
        inner: It is of a bigger model, of which only the vision tower is run.

    Raises:
        BadInput: The text names the key, what was expected and what was found.
    """
    return checked_json(folder / "config.json", BIGGER if inner else CONFIG, REMEDY)


def check_preprocessor(path: Path) -> None:
    """Refuse an image preprocessor whose sizes no model takes, or whose numbers are none. Raises BadInput."""
    checked_json(path, PREPROCESSOR, REMEDY.replace("config.json", path.name))


def built(make: Callable[[], Any], checkpoint: Checkpoint, folder: Path, check: Callable[[nn.Module], None]) -> Any:
    """A module of random weights, once one without memory was shown to have the stored tensors' shapes.

    Args:
        make: Makes the module as its config says.
        checkpoint: Whose tensors it is for.
        folder: Of the config.
        check: Raises BadInput where the module does not fit the checkpoint.

    Raises:
        BadInput: It cannot be made, or does not fit.
    """
    try:
        with torch.device("meta"):
            draft = make()
    except unusable() as error:
        raise BadInput(f"{folder}: config.json: no model can be made of it ({reason(error)}); {REMEDY}") from None
    check(draft)
    return make()


def check_layers(config: Any, checkpoint: Checkpoint, folder: Path) -> None:
    """Refuse more layers than there are tensors; each has several. Raises BadInput."""
    for name in ("", "text_config", "vision_config"):
        part = getattr(config, name) if name and hasattr(config, name) else config
        layers = getattr(part, "num_hidden_layers", 0) or 0
        if layers > len(checkpoint.entries):
            place = f"{name}.num_hidden_layers" if name else "num_hidden_layers"
            raise BadInput(
                f"{folder}: config.json: {place}: expected at most the layers of the {len(checkpoint.entries)} tensors "
                f"that are stored, found {layers}; {REMEDY}"
            )


def check_end(config: Any, folder: Path) -> None:
    """Refuse a CLIP text tower that does not say which token it pools. Raises BadInput."""
    text = getattr(config, "text_config", config)
    if text.model_type == "clip_text_model" and type(text.eos_token_id) is not int:
        raise BadInput(
            f"{folder}: config.json: eos_token_id: expected a token's number, by which captions are pooled, found "
            f"{text.eos_token_id!r}; {REMEDY}"
        )


# ---------------------------------------------------------------- what a config must be


def _are_sizes(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(type(side) is int and 1 <= side <= LARGEST_SIZE for side in sides)


def _or_object(one: Check, each_one: Check) -> Check:
    return lambda value, place: (mapped(nullable(each_one)) if isinstance(value, dict) else one)(value, place)


def _or_two(one: Check, each_one: Check) -> Check:
    return lambda value, place: (listed(each_one, least=2, most=2) if isinstance(value, list) else one)(value, place)


def _or_list(one: Check) -> Check:
    return lambda value, place: (listed(one, least=1, most=4) if isinstance(value, list) else one)(value, place)


PART_KEYS: dict[str, Check] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "num_channels"), SIZE),
    **dict.fromkeys(("max_position_embeddings", "patch_size", "projection_dim", "num_patches"), SIZE),
    "num_hidden_layers": whole(0, LARGEST_SIZE),
    "image_size": holds(
        f"a whole number from 1 to {LARGEST_SIZE}, or two",
        _are_sizes,
    ),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), nullable(TOKEN)),
    "eos_token_id": nullable(_or_list(TOKEN)),
    "hidden_act": TEXT,
    "layer_norm_eps": within(0, 1),
    **dict.fromkeys(("attention_dropout", "dropout"), SHARE),
    **dict.fromkeys(("torch_dtype", "dtype"), nullable(choice("float32", "float16", "bfloat16", "float64"))),
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        nullable(choice("eager", "sdpa", "flash_attention_2", "flex_attention")),
    ),
}


def _divides(part: Any, place: str) -> None:
    """Every head has the same width."""
    width, heads = part.get("hidden_size"), part.get("num_attention_heads")
    if width is not None and heads is not None and width % heads:
        inner = f"{place}.num_attention_heads" if place else "num_attention_heads"
        raise Unexpected(inner, f"a divisor of hidden_size {width}", heads)


def _patches(part: Any, place: str) -> None:
    """An image has at least one patch."""
    side, patch = part.get("image_size"), part.get("patch_size")
    if side is not None and patch is not None and min(side if isinstance(side, list) else [side]) < patch:
        raise Unexpected(f"{place}.patch_size" if place else "patch_size", f"at most image_size {side}", patch)


PART = each(keyed({}, PART_KEYS, ANYTHING), _divides, _patches)
TOWERS = dict.fromkeys(("text_config", "vision_config", "text_config_dict", "vision_config_dict"), nullable(PART))
NAMES = {"model_type": nullable(TEXT), "architectures": nullable(listed(TEXT))}
CONFIG = each(PART, keyed({}, {**TOWERS, **NAMES}, ANYTHING))
BIGGER = keyed({}, {"vision_config": nullable(PART), **NAMES}, ANYTHING)

SIDE = whole(1, LARGEST_SIDE)
SIDES = nullable(_or_two(_or_object(SIDE, SIDE), SIDE))
CHANNELS = nullable(_or_list(within(-1e6, 1e6)))
PIXELS: dict[str, Check] = {
    **dict.fromkeys(("size", "crop_size", "pad_size"), SIDES),
    "image_mean": CHANNELS,
    "image_std": nullable(_or_list(within(1e-6, 1e6))),
    "rescale_factor": nullable(within(1e-9, 1e9)),
    "resample": nullable(whole(0, 5)),
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), nullable(FLAG)),
}
PREPROCESSOR = keyed({}, {**PIXELS, "image_processor": nullable(keyed({}, PIXELS, ANYTHING))}, ANYTHING)
