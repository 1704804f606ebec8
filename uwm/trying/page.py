"""What a query finds, before and after, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report.document import versions
from ..report.examples import shown
from ..report.pages import Part, whole_page
from .running import Hit, Tried

TEMPLATE = "trying/page.html"


def try_page(tried: Tried, run: dict[str, Any]) -> str:
    """One HTML page that needs nothing beside it; images of the results are in it, small.

    Args:
        tried: What was found.
        run: ``date``, when.
    """
    image = tried.kind == "image"
    values = {
        "kind": "image" if image else "caption",
        "query": shown(Path(tried.query) if image else tried.query, ""),
        "count": len(tried.searched.items),
        "things": "captions" if tried.searched.kind == "text" else "images",
        "searched": tried.searched.name,
        "told": tried.told,
        "columns": [
            {
                "name": f"{name}: {tried.unsafe(name)} of {len(hits)} unsafe" if tried.told else name,
                "model": tried.names[name],
                "hits": [_hit(hit) for hit in hits],
            }
            for name, hits in tried.columns.items()
        ],
    }
    document = {"versions": versions(), "run": run}
    return whole_page(f"What one {values['kind']} finds", TEMPLATE, [Part("found", "First results", values)], document)


def _hit(hit: Hit) -> dict[str, Any]:
    item = hit.item
    caption = "" if isinstance(item.content, str) else item.caption or item.name
    return {"item": shown(item.content, item.side), "caption": caption, "similarity": f"{hit.similarity:.3f}"}
