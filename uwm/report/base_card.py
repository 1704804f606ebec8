"""The card of the model that was edited: its licence, its tags, and its own text, which the new card keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEPT = ("license", "license_name", "license_link", "language", "datasets")
CARD = "README.md"
LARGEST = 1 << 20  # bytes


@dataclass(frozen=True)
class BaseCard:
    """What the base model's README.md says.

    Attributes:
        metadata: Of `KEPT` what it has; its figures are of other weights and left out.
        base_model, tags: Of it too.
        text: What follows its metadata.
        warnings: What a user should know of it.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    base_model: str | None = None
    tags: tuple[str, ...] = ()
    text: str = ""
    warnings: tuple[str, ...] = ()


def read_base_card(folder: Path) -> BaseCard:
    """The README.md of a model's folder; an empty card where there is none, only its text where its YAML is bad."""
    path = folder / CARD
    if not path.is_file() or path.stat().st_size > LARGEST:
        return BaseCard()
    text = path.read_text("utf-8", "replace").removeprefix("\ufeff")
    found = _metadata(text)
    if found is None:
        return BaseCard(
            text=text.strip(), warnings=(f"{path}: metadata that the Hub cannot read; only its text is kept",)
        )
    metadata, body = found
    own = metadata.get("base_model")
    tags = metadata.get("tags")
    return BaseCard(
        {key: metadata[key] for key in KEPT if _is_plain(metadata.get(key))},
        own if isinstance(own, str) else None,
        tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        body.strip(),
    )


def _metadata(text: str) -> tuple[dict[str, Any], str] | None:
    """The YAML of a card as a dictionary, and its text; None where it is no YAML of a dictionary."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text, ignore_metadata_errors=True)
        return card.data.to_dict(), card.text
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError):
        return None


def _is_plain(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text for text in texts)
