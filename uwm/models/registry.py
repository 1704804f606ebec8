"""open_clip's registry: architectures by name or by their sizes, and its pretrained weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import BadInput, ResourceFault
from .hub import fetch, is_offline

PREFIX = "open_clip:"
OPEN_CLIP_WEIGHTS = "open_clip_pytorch_model.bin"


@dataclass(frozen=True)
class Registered:
    """What open_clip's registry says of ``open_clip:ARCH/TAG``."""

    arch: str
    tag: str
    quick_gelu: bool
    source: dict[str, Any]  # where the weights are


def registered(reference: str) -> Registered | None:
    """Look up ``open_clip:ARCH[/TAG]``; None for any other reference. Raises BadInput when there is no such entry."""
    if not reference.startswith(PREFIX):
        return None
    import open_clip

    arch, _, tag = reference.removeprefix(PREFIX).partition("/")
    known = open_clip.list_models()
    if arch not in known:
        close = ", ".join(get_close_matches(arch, known, 5, 0.4)) or ", ".join(known)
        raise BadInput(f"{reference}: open_clip knows no architecture {arch!r}; there is {close}")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if not tag and len(tags) == 1:
        tag = tags[0]
    source = open_clip.get_pretrained_cfg(arch, tag) if tag else {}
    if not source:
        raise BadInput(
            f"{reference}: say which weights, as in {PREFIX}{arch}/TAG; there is {', '.join(tags) or 'none'}"
        )
    quick_gelu = bool(source.get("quick_gelu", open_clip.get_model_config(arch).get("quick_gelu", False)))
    return Registered(arch, tag, quick_gelu, source)


def download(entry: Registered, cache_dir: str | None, offline: bool) -> Path:
    """The weights of a registry entry, from open_clip's or the Hub's cache, or from the network unless `offline`.

    Raises:
        BadInput: `offline`, and they are not in the cache; or the registry names a file that is not there.
        ResourceFault: The network failed.
    """
    import open_clip

    place = f"{PREFIX}{entry.arch}/{entry.tag}"
    if repository := entry.source.get("hf_hub", ""):
        return _from_hub(repository, place, cache_dir, offline)
    if "file" in entry.source:
        return Path(entry.source["file"])
    url = entry.source.get("url", "")
    cached = Path(cache_dir or "~/.cache/clip").expanduser() / os.path.basename(url)
    if is_offline(offline):
        if not cached.is_file():
            raise BadInput(f"{place}: not in the cache ({cached}), and it must not be fetched (offline)")
        return cached
    try:
        return Path(open_clip.download_pretrained(entry.source, prefer_hf_hub=False, cache_dir=cache_dir))
    except (OSError, RuntimeError) as error:
        raise ResourceFault(f"{place}: could not be fetched ({str(error).splitlines()[0]}); try again") from None


def _from_hub(repository: str, place: str, cache_dir: str | None, offline: bool) -> Path:
    """The weights' file in a repository ``ORG/NAME/[FILE]``, safetensors where there is one, as open_clip does it."""
    organisation, name, *rest = repository.split("/")
    file = "/".join(filter(None, rest)) or OPEN_CLIP_WEIGHTS
    safe = "open_clip_model.safetensors" if file == OPEN_CLIP_WEIGHTS else str(Path(file).with_suffix(".safetensors"))

    def choose(names: list[str]) -> list[str]:
        return [candidate for candidate in (safe, file) if candidate in names][:1]

    repository = f"{organisation}/{name}"
    folder = fetch(repository, choose, cache_dir=cache_dir, offline=offline, reference=place)
    found = choose([path.relative_to(folder).as_posix() for path in folder.rglob("*")])
    if not found:
        raise BadInput(f"{place}: {repository} on the Hub, which it names, has neither {safe} nor {file}")
    return folder / found[0]


def model_config(name: str) -> dict[str, Any] | None:
    """open_clip's config of an architecture, or of ``local-dir:FOLDER``; None when it knows none."""
    import open_clip

    return open_clip.get_model_config(name)


def architectures_of(sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Every plain CLIP of open_clip's registry that has these sizes (see `sizes.sizes_of`), by name."""
    import open_clip

    found = {name: open_clip.get_model_config(name) for name in sorted(open_clip.list_models())}
    return {name: config for name, config in found.items() if _has(config, sizes)}


def _has(config: dict[str, Any], sizes: dict[str, int]) -> bool:
    vision, text = config["vision_cfg"], config["text_cfg"]
    plain = isinstance(vision.get("layers"), int) and "hf_model_name" not in text and "multimodal_cfg" not in config
    wanted = {
        "embed_dim": config["embed_dim"],
        "image_size": vision.get("image_size", 224),
        "patch_size": vision.get("patch_size"),
        "vision_width": vision.get("width", 768),
        "vision_layers": vision.get("layers"),
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
        "text_width": text.get("width", 512),
        "text_layers": text.get("layers", 12),
    }
    return plain and all(sizes[key] == value for key, value in wanted.items() if key in sizes)
