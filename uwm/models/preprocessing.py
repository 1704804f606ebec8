"""How images are prepared for bare weights: as open_clip's registry or --preprocess says.

A preprocessing is open_clip's `PreprocessCfg` as a dict, without the size, which the architecture decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import read_json
from ..errors import BadInput

CHOICES = {"interpolation": ("bicubic", "bilinear"), "resize_mode": ("shortest", "longest", "squash"), "mode": ("RGB",)}
PILLOW = {"bilinear": 2, "bicubic": 3}  # its numbers of interpolations, which Hugging Face stores
FIXED = ("size", "mode")  # the architecture's image size, and the one mode there is


def preprocessing_of(
    where: Path, archs: Sequence[str], quick_gelu: bool, scripted: bool, given: str | None
) -> tuple[dict[str, Any], list[str]]:
    """The preprocessing of bare weights, and what a user should know of it.

    Args:
        where: The weights.
        archs: Names of open_clip's architectures that they may have.
        quick_gelu: Their activation; only weights that the registry has with the same one are like them.
        scripted: Whether they are a TorchScript archive: those are OpenAI's.
        given: A tag of open_clip's registry, or a JSON file with open_clip's ``preprocess_cfg``.

    Raises:
        BadInput: The weights that the registry has differ, or `given` is neither, or contradicts an archive.
    """
    named = None if given is None else _named(given, archs)
    if scripted:
        if named not in (None, _whole({})):
            raise BadInput(f"{where}: an OpenAI archive is prepared for as OpenAI does it; drop --preprocess {given}")
        return _whole({}), []
    if named is not None:
        return named, []
    tags = _tags(archs, quick_gelu) or _tags(archs)
    kinds = {repr(kind): kind for kind in tags.values()}
    if len(kinds) > 1:
        listed = "; ".join(
            f"{', '.join(tag for tag, found in tags.items() if found == kind)} ({_words(kind)})"
            for kind in kinds.values()
        )
        raise BadInput(
            f"{where}: how images are prepared for {archs[0]} depends on the weights, which are not named: {listed}; "
            "pass --preprocess with one of these tags, or with a JSON file of open_clip's preprocess_cfg"
        )
    if kinds:
        return next(iter(kinds.values())), []
    note = f"open_clip's registry has no weights of {archs[0]}, so images are prepared as for OpenAI's CLIP"
    return _whole({}), [f"{note} ({_words(_whole({}))}); --preprocess says otherwise"]


def _tags(archs: Iterable[str], quick_gelu: bool | None = None) -> dict[str, dict[str, Any]]:
    """Tag -> its preprocessing, of weights with this activation."""
    import open_clip

    found: dict[str, dict[str, Any]] = {}
    for arch in archs:
        usual = (open_clip.get_model_config(arch) or {}).get("quick_gelu", False)
        for tag in open_clip.list_pretrained_tags_by_model(arch):
            source = open_clip.get_pretrained_cfg(arch, tag)
            if quick_gelu is None or bool(source.get("quick_gelu", usual)) == quick_gelu:
                found.setdefault(tag, _whole(source))
    return found


def _whole(source: Mapping[str, Any]) -> dict[str, Any]:
    """With open_clip's defaults for what is not said."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = merge_preprocess_dict(PreprocessCfg(), dict(source))
    return {key: tuple(v) if isinstance(v, list | tuple) else v for key, v in merged.items() if key not in FIXED}


def _words(kind: Mapping[str, Any]) -> str:
    mean = "/".join(f"{value:.3g}" for value in kind["mean"])
    return f"mean {mean}, {kind['interpolation']}, {kind['resize_mode']}"


def _named(given: str, archs: Sequence[str]) -> dict[str, Any]:
    from open_clip.pretrained import get_pretrained_cfg, is_pretrained_cfg

    for arch in archs:
        if is_pretrained_cfg(arch, given):  # in upper case and with hyphens too
            return _whole(get_pretrained_cfg(arch, given))
    tags = _tags(archs)
    if Path(given).is_file():
        return _read(Path(given))
    names = f"; {archs[0]} has {', '.join(tags)}" if tags else f"; {archs[0]} has no tag" if archs else ""
    raise BadInput(
        f"--preprocess {given!r}: neither a file nor a tag of the architecture in open_clip's registry{names}"
    )


def _read(file: Path) -> dict[str, Any]:
    """Of a file with ``preprocess_cfg``, as ``open_clip_config.json``, or with its keys alone."""
    whole = read_json(file)
    found = whole.get("preprocess_cfg", whole) if isinstance(whole, dict) else None
    known = [*_whole({}), *FIXED]
    if not isinstance(found, dict) or not (found or found is not whole) or not found.keys() <= set(known):
        odd = sorted(found.keys() - set(known)) if isinstance(found, dict) else []
        what = f"unknown key {odd[0]!r}" if odd else "no preprocess_cfg"
        raise BadInput(f"--preprocess {file}: {what}; expected a JSON object with some of {', '.join(known)}")
    for key, choices in CHOICES.items():
        if found.get(key, choices[0]) not in choices:
            raise BadInput(f"--preprocess {file}: {key} {found[key]!r}; expected one of {', '.join(choices)}")
    for key in ("mean", "std"):
        if key in found and not _three_numbers(found[key], above=0 if key == "std" else None):
            raise BadInput(f"--preprocess {file}: {key} {found[key]!r}; expected three numbers, for std over 0")
    if not isinstance(found.get("fill_color", 0), int):
        raise BadInput(f"--preprocess {file}: fill_color {found['fill_color']!r}; expected a whole number")
    return _whole(found)


def _three_numbers(value: Any, above: float | None) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    numbers = all(isinstance(part, int | float) and not isinstance(part, bool) for part in value)
    return numbers and all(abs(part) < float("inf") and (above is None or part > above) for part in value)


def clip_processor(preprocess: Mapping[str, Any], size: tuple[int, int]) -> Any:
    """transformers' image processor that does what open_clip's preprocessing says, to images of [height, width].

    Raises:
        BadInput: It pads images to their longer side, which CLIP's processor cannot.
    """
    from transformers import CLIPImageProcessor

    if preprocess["resize_mode"] not in ("shortest", "squash"):
        raise BadInput(f"Hugging Face's CLIP cannot prepare images by resize_mode {preprocess['resize_mode']!r}")
    shortest = preprocess["resize_mode"] == "shortest"
    square = {"height": size[0], "width": size[1]}
    return CLIPImageProcessor(
        size={"shortest_edge": min(size)} if shortest else square,
        crop_size=square,
        do_center_crop=shortest,
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
        resample=PILLOW.get(preprocess["interpolation"], 3),
    )
