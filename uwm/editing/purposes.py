"""What an edit is for: the settings by which each method reaches what the reader of a tower reads. No torch.

Retrieval reads the pooled embedding. A diffusion model reads the hidden states of all tokens of a caption and of its
padding; LLaVA those of all patches, of the second-last layer (which layer: `uwm.checkpoint.reach`). On the demo models
redirection that learns from a caption's own tokens drew fewer unsafe images, at equal loss on safe prompts, than one
that learns from the padding too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BadInput

PURPOSES = ("retrieval", "diffusion", "llava")
DEFAULT_FOR = {"diffusion": "redirect", "llava": "redirect"}  # the method where nobody names one
_OTHER_TOWER = {"diffusion": {"vision_layers": "none"}, "llava": {"text_layers": "none"}}
_OF_ENTRIES = ("uwm", "log-ratio", "grad-unsafe", "grad-safe-clip", "random", "magnitude")
RANK = 192  # of redirection: more tokens differ in more ways than the pooled one
LLAVA_MASS = 0.085  # τ of UWM for LLaVA (UWM, section 5: the vision tower only)

SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {  # purpose -> method -> its settings
    "retrieval": {},
    "diffusion": {
        **dict.fromkeys(_OF_ENTRIES, _OTHER_TOWER["diffusion"]),
        "redirect": {"towers": "text", "tokens": "all", "keep": 1.0, "ridge": 0.003, "rank": RANK},
        "ablate": {"towers": "text", "tokens": "all"},
        "hidden-units": {"towers": "text"},
    },
    "llava": {
        **dict.fromkeys(_OF_ENTRIES, _OTHER_TOWER["llava"]),
        "uwm": {**_OTHER_TOWER["llava"], "mass": LLAVA_MASS},
        "redirect": {"towers": "vision", "tokens": "patches", "keep": 1.0, "rank": RANK},
        "ablate": {"towers": "vision", "tokens": "patches"},
    },
}
UNREACHED = {  # method -> what it edits, which only retrieval reads
    "repel": "the pooled embedding",
    "null-space": "the projection to the embedding",
    "hidden-units": "the last block",
}


def settings_for(purpose: str | None, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, and for a purpose those that nobody gave.

    Args:
        purpose: One of `PURPOSES`; None for the method's own settings.
        method: The editor's name; one that is not ours keeps its own settings.
        given: By name.

    Raises:
        BadInput: An unknown purpose, or a method that does not reach what is read.
    """
    if purpose is None:
        return {**given}
    if purpose not in PURPOSES:
        raise BadInput(f"--for {purpose!r}: expected one of {', '.join(PURPOSES)}")
    known = SETTINGS[purpose]
    if known and method in UNREACHED and method not in known:
        reads = "the hidden states of the text encoder" if purpose == "diffusion" else "earlier hidden states"
        raise BadInput(
            f"--for {purpose}: reads {reads}, and {method} edits {UNREACHED[method]}; choose --method redirect, ablate "
            "or uwm"
        )
    return {**known.get(method, {}), **given}


def measured_by(purpose: str | None) -> tuple[str, ...]:
    """A line on what measures an edit for a purpose; none for retrieval, which every edit is measured by."""
    how = {"diffusion": "--generate PIPELINE", "llava": "--caption LLAVA"}.get(purpose or "")
    return (f"--for {purpose}: figures here are of retrieval; measure what it is for by uwm eval {how}",) if how else ()
