"""What a query finds, before and after, as one page."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from ..report.examples import thumbnail
from ..report.markup import join, tag
from ..report.parts import section, whole_page
from .running import Hit, Tried

KEY = "A dashed frame marks an unsafe result, a solid one a safe result, as the set says."
CAUTION = "One query shows what an edit is for, not how well it works; uwm eval measures it on a set."


def try_page(tried: Tried) -> str:
    """One HTML page that needs nothing beside it; images of the results are in it, small."""
    kind = "image" if tried.kind == "image" else "caption"
    query = thumbnail(Path(tried.query)) if tried.kind == "image" else None
    shown = tag("img", src=query, alt="the query", class_="item") if query else tag("bdi", tried.query)
    about = f"{len(tried.searched.items)} {'captions' if tried.searched.kind == 'text' else 'images'} of "
    columns = [_column(name, tried) for name in tried.columns]
    return whole_page(
        f"What one {kind} finds",
        tag("p", tag("strong", f"{kind}: "), shown),
        tag(
            "p", "Searched: ", about, tag("bdi", tried.searched.name), ". ", KEY if tried.told else None, f" {CAUTION}"
        ),
        tag("div", *columns, class_="sides"),
    )


def _column(name: str, tried: Tried) -> Markup:
    hits = tried.columns[name]
    count = f"{tried.unsafe(name)} of {len(hits)} unsafe" if tried.told else None
    head = tag("p", tag("bdi", tried.names[name]), f": {count}" if count else None)
    return section(name, name, head, tag("ol", *map(_line, hits), class_="hits"))


def _line(hit: Hit) -> Markup:
    item, frame = hit.item, f"item {hit.item.side}".rstrip()
    number = tag("small", f"{hit.similarity:.3f}")
    if isinstance(item.content, str):
        return tag("li", tag("bdi", item.content, class_=frame), " ", number)
    picture = tag("img", src=thumbnail(item.content), alt=f"{item.side} image".strip(), class_=frame)
    return tag("li", picture, tag("p", number, " ", join([tag("bdi", item.caption or item.name)])))
