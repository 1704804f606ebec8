"""Models of every family behind one face. Only this room imports transformers or open_clip, and late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .base import Model
    from .hugging_face import HuggingFaceModel
    from .loading import load
    from .open_clip_models import OpenClipModel
else:
    __getattr__ = lazily(
        __name__,
        {
            "HuggingFaceModel": "hugging_face",
            "Model": "base",
            "OpenClipModel": "open_clip_models",
            "load": "loading",
        },
    )

__all__ = ["HuggingFaceModel", "Model", "OpenClipModel", "load"]
