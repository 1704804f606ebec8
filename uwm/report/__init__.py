"""Results as people read them: tables on the terminal, the model card and the page beside the weights."""

from __future__ import annotations

from .base_card import BaseCard, read_base_card
from .budget import budget_lines
from .card import model_card
from .document import paired_differences, versions
from .evaluation import ALL_LEGEND, Section, as_markdown, legend, sections, verdict_rows
from .examples import Example, find_examples
from .page import evaluation_page, html_report
from .pages import is_page
from .tables import LEGEND, RANDOM_LEGEND, edit_words, heading, layer_table, rows
from .verdict import Line, facts_of, half_lines, verdict_facts, verdict_lines

__all__ = [
    "ALL_LEGEND",
    "LEGEND",
    "RANDOM_LEGEND",
    "BaseCard",
    "Example",
    "Line",
    "Section",
    "as_markdown",
    "budget_lines",
    "edit_words",
    "evaluation_page",
    "facts_of",
    "find_examples",
    "half_lines",
    "heading",
    "html_report",
    "is_page",
    "layer_table",
    "legend",
    "model_card",
    "paired_differences",
    "read_base_card",
    "rows",
    "sections",
    "verdict_facts",
    "verdict_lines",
    "verdict_rows",
    "versions",
]
