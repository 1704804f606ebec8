"""The frame of pages: templates escape, refuse what they were not given, and are all that counts as markup."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import uwm
from uwm.report.pages import Drawing, Part, Table, whole_page
from uwm.report.svg import tag

PACKAGE = Path(uwm.__file__).parent
TEMPLATES = sorted(PACKAGE.rglob("*.html"))


def page_of(title="t", **values):
    part = Part("apply", "How", Table(**{"name": "n", "head": ("", ""), "body": []} | values))
    return whole_page(title, "tuning/page.html", [part], {})


def test_what_a_template_prints_is_escaped_and_one_line():
    page = page_of("<b>\x1b]0;\u202e</b>\n", name='"><script>', body=[("<i>", "a\r\n&")], head=("<u>", ""))
    assert "<h1><bdi>&lt;b&gt;�]0;�&lt;/b&gt;�</bdi></h1>" in page
    assert 'aria-label="&#34;&gt;&lt;script&gt;"' in page
    assert '<th scope="col">&lt;u&gt;</th>' in page
    assert '<th scope="row">&lt;i&gt;</th><td>a��&amp;</td>' in page


def test_a_chart_is_markup_and_its_texts_are_not():
    chart = tag("svg", tag("title", "<script>"), x="<")
    values = {"legend": [], "lines": [], "drawing": Drawing(chart, "<u>")}
    page = whole_page("t", "tuning/page.html", [Part("front", "The front", values)], {})
    assert '<svg x="&lt;"><title>&lt;script&gt;</title></svg>' in page
    assert "<figcaption>&lt;u&gt;</figcaption>" in page


def test_a_value_that_was_not_given_is_refused():
    with pytest.raises(UndefinedError, match="'about' is undefined|no attribute 'about'"):
        whole_page("t", "tuning/page.html", [Part("trials", "Trials", {})], {})


def test_a_section_without_a_template_is_refused():
    with pytest.raises(UndefinedError, match="nowhere"):
        whole_page("t", "tuning/page.html", [Part("nowhere", "Nowhere", {})], {})


def test_markup_is_made_in_one_place_and_no_template_lets_anything_through():
    made = [path.name for path in PACKAGE.rglob("*.py") if re.search(r"\bMarkup\(", path.read_text("utf-8"))]
    assert made == ["pages.py"]
    for template in TEMPLATES:
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", template.read_text("utf-8")), template.name


def test_every_template_and_style_is_installed():
    settings = configparser.ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg", "utf-8")
    listed = {name: patterns.split(", ") for name, patterns in settings["options.package_data"].items()}
    for path in [*TEMPLATES, *PACKAGE.rglob("*.css")]:
        package = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        assert any(fnmatch(path.name, pattern) for pattern in listed[package]), path
    assert len(TEMPLATES) >= 6


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"versions": {"uwm": "1", "torch": "<2>"}, "run": {"date": "2026-11-26 16:20 UTC"}},
         ['<p id="made">Made on 2026-11-26 16:20 UTC with uwm 1, torch &lt;2&gt;.</p>']),
        ({"versions": {"uwm": "1"}, "run": {}}, ['<p id="made">Made with uwm 1.</p>']),
        ({}, []),
    ],
)  # fmt: skip
def test_one_line_says_when_and_with_what(document, line):
    page = whole_page("t", "tuning/page.html", [], document)
    assert [one for one in page.splitlines() if "made" in one and "{" not in one] == line


def test_no_command_waits_for_the_template_library():
    code = "import sys, uwm, uwm.cli, uwm.report.page, uwm.tuning.page; print('jinja2' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
