"""Models of every family behind one face. Only this room imports transformers or open_clip, and late."""

from .base import Model
from .hugging_face import HuggingFaceModel
from .loading import load
from .open_clip_models import OpenClipModel

__all__ = ["HuggingFaceModel", "Model", "OpenClipModel", "load"]
