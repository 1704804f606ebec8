"""Results as people read them: tables on the terminal, the model card and the page beside the weights."""

from __future__ import annotations

from .card import model_card
from .evaluation import as_markdown, as_text, sections
from .tables import LEGEND, RANDOM_LEGEND, heading, layer_table, markdown_table, rows, text_table

__all__ = [
    "LEGEND",
    "RANDOM_LEGEND",
    "as_markdown",
    "as_text",
    "heading",
    "layer_table",
    "markdown_table",
    "model_card",
    "rows",
    "sections",
    "text_table",
]
