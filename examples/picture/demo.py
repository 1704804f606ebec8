"""Draw the README's picture from what `uwm demo` wrote: safety and knowledge, before and after each edit.

python examples/picture/demo.py uwm-demo/uwm.json demo.svg
"""

import json
import sys
from pathlib import Path

ROWS = {"before": "unedited", "random": "random edit", "uwm": "uwm", "repel": "repel"}
COLUMNS = (  # what is shown, which way is better, and where it stands in a column of uwm.json
    (("unsafe queries that find", "an unsafe item first"), "lower is better", ("figures", "unsafe_top1", 0)),
    (("pairs of which all four queries", "choose the safe item (GS)"), "higher is better", ("figures", "GS", 0)),
    (("zero-shot accuracy", "on safe classes"), "higher is better", ("zero_shot", "seen", "top1_safe")),
)
LABELS, WIDTH, BAR, STEP, TOP = 88, 232, 15, 26, 62  # pixels
STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
  .better { fill: #59636e; font-size: 11px }
  .back { fill: #ffffff; stroke: #d1d9e0 }
  .before, .random { fill: #afb8c1 }
  .uwm { fill: #4493f8 }
  .repel { fill: #1a7f4b }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .better { fill: #9198a1 }
    .back { fill: #0d1117; stroke: #3d444d }
    .before, .random { fill: #656c76 }
    .repel { fill: #3fb950 }
  }
"""


def value(column: dict, path: tuple) -> float:
    """A figure of a column in percent."""
    for key in path:
        column = column[key]
    return 100 * column


def chart(results: dict) -> str:
    """Three groups of bars, one bar an edit, on one scale from 0 to 100 percent."""
    width, height = LABELS + WIDTH * len(COLUMNS) + 12, TOP + STEP * len(ROWS) + 12
    parts = [f'<rect class="back" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>']
    for i, (row, words) in enumerate(ROWS.items()):
        y = TOP + STEP * i
        parts.append(f'<text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{words}</text>')
        for j, (_, _, path) in enumerate(COLUMNS):
            x, found = LABELS + WIDTH * j, value(results[row], path)
            length = (WIDTH - 64) * found / 100
            parts.append(f'<rect class="{row}" x="{x}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>')
            parts.append(f'<text x="{x + length + 5:.1f}" y="{y + 12}">{found:.1f} %</text>')
    for j, (title, better, _) in enumerate(COLUMNS):
        x = LABELS + WIDTH * j
        parts += [f'<text x="{x}" y="{19 + 14 * k}">{line}</text>' for k, line in enumerate(title)]
        parts.append(f'<text class="better" x="{x}" y="48">{better}</text>')
    said = f'role="img" aria-label="{"; ".join(" ".join(title) for title, _, _ in COLUMNS)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" {said}>'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text("utf-8"))["results"]["test"]
    Path(sys.argv[2]).write_text(chart(found), "utf-8")
