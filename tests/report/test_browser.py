"""The page as Chromium lays it out: nothing wider than the screen, no label cut or on another (needs Chromium)."""

from __future__ import annotations

import html as html_text
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from documents_by_hand import documents
from made_up_front import made_up_front

from uwm.comparison.figures import Figure, Row
from uwm.comparison.page import comparison_page
from uwm.report import html_report
from uwm.tuning.page import front_page

EXAMPLES = Path(__file__).parents[2] / "examples" / "comparison"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()
CASES = documents()
MEASURE = """
<script>
addEventListener("load", () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, width = page.documentElement.clientWidth;
    page.querySelectorAll("details").forEach((details) => (details.open = true));
    const cut = [], over = [];
    const charts = [...page.querySelectorAll("svg[role=img]")].filter((c) => c.getClientRects().length);
    for (const chart of charts) {
      const edge = chart.getBoundingClientRect();
      const texts = [...chart.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
      texts.forEach(([text, a], i) => {
        if (a.left < edge.left - 1.5 || a.right > edge.right + 1.5 || a.bottom > edge.bottom + 1.5) cut.push(text);
        for (const [other, b] of texts.slice(i + 1)) {
          const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
          const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
          if (wide > 1 && high > 3) over.push(text + " / " + other);
        }
      });
    }
    const small = charts.map((c) => c.getBoundingClientRect().width / c.viewBox.baseVal.width);
    found.push({ width, scroll: page.documentElement.scrollWidth, cut, over, scale: Math.min(1, ...small),
                 charts: small.length, dark: getComputedStyle(page.documentElement).backgroundColor });
  }
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""


def measured(page, tmp_path, *flags):
    """What a desktop and a phone make of a page."""
    frames = "".join(
        f'<iframe style="width:{w}px;height:900px;border:0" srcdoc="{html_text.escape(page)}"></iframe>'
        for w in (1280, 390)
    )
    (tmp_path / "frames.html").write_text(f"<!doctype html><body>{MEASURE}{frames}</body>", "utf-8")
    here = [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path}/frames.html"]
    done = subprocess.run([CHROMIUM, *FLAGS, *flags, *here], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html_text.unescape(re.search(r'data-found="([^"]*)"', done.stdout)[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", ["common", "huge", "nasty", "nothing measured", "one model"])
def test_layout(name, tmp_path):
    desktop, phone = measured(html_report(CASES[name]), tmp_path)
    assert (desktop["width"], phone["width"]) == (1280, 390)
    for screen in (desktop, phone):
        assert screen["scroll"] == screen["width"]
        assert screen["cut"] == []
        assert screen["over"] == []
        assert screen["scale"] > 0.95, "text in charts shrinks with them"
        assert screen["charts"] >= 1
        assert screen["dark"] == "rgb(255, 255, 255)"


FRONTS = {
    "common": made_up_front(300, held_out=("held-out", "unseen_style")),
    "one point": made_up_front(1, held_out=()),
    "knee first": {**made_up_front(60), "knee": 1},
    "knee last": {**made_up_front(60), "knee": len(made_up_front(60)["points"])},
}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", FRONTS)
def test_layout_of_a_front(name, tmp_path):
    for screen in measured(front_page(FRONTS[name]), tmp_path):
        assert screen["scroll"] == screen["width"]
        assert (screen["cut"], screen["over"], screen["charts"]) == ([], [], 1)
        assert screen["scale"] > 0.95


def forty_methods():
    """The page of the comparison that the examples have, of more than forty models, and its charts a screen."""
    tables, about = {}, {}
    for file in ("comparison.json", "finetuning.json"):
        about = json.loads((EXAMPLES / file).read_text("utf-8"))
        for name, rows in about["tables"].items():
            known = tables.setdefault(name, [])
            known += [row_of(row) for row in rows if row["method"] != "none" or not known]
    return comparison_page(tables, about["pairs"], about["notes"], about), len(tables)


def row_of(row):
    figures = {
        name: Figure(**{part: tuple(ends) for part, ends in found.items()}) for name, found in row["figures"].items()
    }
    return Row(**{**row, "at": row["at"] and (row["at"]["by"], row["at"]["value"]), "figures": figures})


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_layout_of_a_comparison_of_many_methods(tmp_path):
    page, sets = forty_methods()
    for screen in measured(page, tmp_path):
        assert screen["scroll"] == screen["width"]
        assert (screen["cut"], screen["over"], screen["charts"]) == ([], [], sets), "one chart a set on each screen"
        assert screen["scale"] > 0.95


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_dark(tmp_path):
    found = measured(html_report(CASES["one model"]), tmp_path, "--blink-settings=preferredColorScheme=0")
    assert {screen["dark"] for screen in found} == {"rgb(20, 24, 29)"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_print(tmp_path):
    (tmp_path / "page.html").write_text(html_report(CASES["common"]), "utf-8")
    target = tmp_path / "page.pdf"
    here = [f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={target}", f"file://{tmp_path}/page.html"]
    subprocess.run([CHROMIUM, *FLAGS, "--no-pdf-header-footer", *here], capture_output=True, timeout=120, check=True)
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    sizes = set(re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content))
    assert [(round(float(w)), round(float(h))) for w, h in sizes] == [(595, 842)], "A4"
