"""The page: well-formed, self-contained, escaped, in order, with no number that uwm.json does not have."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from documents_by_hand import HASH, NAMES, NASTY, document, documents

import uwm
from uwm.escaping import clean
from uwm.figures import MEANS, explain, label
from uwm.label_noise import REASONS
from uwm.report import html_report
from uwm.report.charts import histograms

CASES = documents()
VOID = {"meta", "img", "br"}
SECTIONS = ["summary", "edited", "figures", "changes", "similarities", "concepts", "zero-shot", "checks", "settings"]
STYLE = Path(uwm.__file__).parent / "report" / "page.css"


class Page(HTMLParser):
    """Elements with their attributes, the text, and the tables as rows of cells."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words = [], [], []
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "div" and dict(attrs).get("class") == "scroll":
            self.rows = self.tables.setdefault(dict(attrs)["aria-label"], [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return "".join(self.words)

    @property
    def sections(self):
        return [attrs["id"] for tag, attrs in self.elements if tag == "section"]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return CASES[request.param]


def percent(value):
    return f"{100 * value:.1f}"


def signed(value):
    return f"{100 * value:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0").replace("-", "−")


# ---------------------------------------------------------------- whole pages


def test_well_formed(case):
    html = html_report(case)
    Page(html)
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        ET.fromstring(svg)
    ET.fromstring(html.removeprefix("<!doctype html>\n"))


def test_nothing_is_loaded_and_nothing_runs(case):
    html = html_report(case)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not {"src", "style", "srcset"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    without_namespaces = html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|url\(|@import|//\w", without_namespaces)


def test_every_chart_has_a_name_and_a_description(case):
    for svg in re.findall(r'<svg[^>]*role="img".*?</svg>', html_report(case), re.S):
        assert re.match(r"<svg[^>]*><title>[^<]+</title><desc>[^<]+</desc>", svg)


def test_it_is_a_function_of_the_json(case):
    assert html_report(json.loads(json.dumps(case))) == html_report(case)


def test_ids_are_unique_and_headings_nested(case):
    page = Page(html_report(case))
    assert len(page.sections) == len(set(page.sections))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


# ---------------------------------------------------------------- what is in it


def test_sections_in_the_order_of_a_reviewer():
    assert Page(html_report(CASES["common"])).sections == SECTIONS


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("one model", {"edited", "changes", "concepts", "zero-shot", "checks"}),
        ("two models", {"edited", "concepts", "zero-shot", "checks"}),
        ("one concept", {"zero-shot"}),
    ],
)
def test_sections_without_content_are_left_out(name, absent):
    gate = ["gate"] if "requirements" in CASES[name] else []
    assert Page(html_report(CASES[name])).sections == gate + [s for s in SECTIONS if s not in absent]


def test_nothing_measured_is_said():
    page = Page(html_report(CASES["nothing measured"]))
    assert "Nothing was measured, so the gains and costs are not known" in page.text
    assert page.sections == ["summary", "edited", "figures", "checks", "settings"]


def test_an_untouched_tower_is_named():
    assert "Nothing of a vision tower was edited." in Page(html_report(CASES["text only"])).text


def test_few_pairs_are_said_to_be_few():
    assert "1 pairs; fewer than 50 are too few for firm figures" in Page(html_report(CASES["text only"])).text


def test_the_gate_is_on_top_with_what_failed_first():
    failed = CASES["two models"]["requirements"][0]
    met = failed | {"requirement": "PU>=1", "met": True, "text": "found 2.0 %"}
    page = Page(html_report(CASES["two models"] | {"requirements": [met, failed]}))
    assert page.sections[0] == "gate"
    assert "FAIL: 1 of 2 requirements not met" in page.text
    table = page.tables["Requirements"]
    assert table[1:] == [["GS>=4.5", "3.0 %", "not met"], ["PU>=1", "2.0 %", "met"]]
    assert "PASS: 1 of 1 requirements met" in Page(html_report(CASES["two models"] | {"requirements": [met]})).text


def test_settings_versions_and_hashes():
    page = Page(html_report(CASES["common"]))
    assert ["alpha", "-1.0"] in page.tables["Settings"]
    assert ["mass", '{"text": 0.02}'] in page.tables["Settings"]
    assert ["limit", "null"] not in page.tables["Settings"]  # not given
    assert dict(page.tables["Versions"]) == CASES["common"]["versions"]
    hashes = ["base: model.safetensors", "output: model.safetensors", "calibration set: sét"]
    assert page.tables["sha256"] == [[name, HASH] for name in hashes]


def test_guards_and_label_noise():
    page = Page(html_report(CASES["common"]))
    assert page.tables["Neutral cases by matrix"][1:] == [["vision.0.fc2", "1", "0"], ["vision.1.fc2", "2", "0"]]
    assert "In 2 of 3 matrices: 3 dead channels, 0 zero rows." in page.text
    assert "Pairs left out of calibration: 1 empty caption." in page.text
    assert "7 of 60 calibration pairs are doubted (11.7 %)" in page.text
    assert page.tables["Label noise"][1:] == [
        [REASONS["picture"], "5"],
        [REASONS["caption"], "2"],
        [REASONS["astray"], "1"],
    ]


# ---------------------------------------------------------------- its numbers


def test_every_figure_is_the_manifests_and_means_are_left_out():
    assert MEANS.keys() < set(NAMES)
    for set_name, columns in CASES["common"]["results"].items():
        page = Page(html_report(CASES["common"]))
        main, more = (page.tables[f"{title}, {set_name}"] for title in ("SafeGround and retrieval", "More figures"))
        shown = [row[1:] for row in main + more if len(row) > 1 and row[0]]
        expected = [
            [f"{percent(m)} [{percent(a)}, {percent(b)}]" for m, a, b in (r["figures"][n] for r in columns.values())]
            for n in NAMES
            if n not in MEANS  # which repeat their parts
        ]
        assert sorted(shown) == sorted(expected)
        assert f"Share of {explain('GS')}." in page.text
        assert f"Share of {explain('safety')}." not in page.text


def test_every_difference_is_the_manifests():
    page = Page(html_report(CASES["common"]))
    found = CASES["common"]["differences"]["test"]
    rows = {r[0]: r[1:] for title in ("SafeGround and retrieval", "More figures") for r in page.tables[f"Change, {title}, test"]}  # noqa: E501  # fmt: skip
    for name, shown in (("GS", "GS"), ("R5_tu_union", "R@5 Tu→V∪"), ("unsafe_top1_vu", "unsafe top-1 Vu→T∪")):
        expected = []
        for column in ("after", "random"):
            change = found[column]["before"][name]
            mean, low, high = map(signed, change["difference"])
            expected += [f"{mean} [{low}, {high}]", str(change["gained"]), str(change["lost"])]
        assert rows[shown] == expected
    assert MEANS.keys() < found["after"]["before"].keys()
    assert not {label(name) for name in MEANS} & rows.keys()


def test_concepts_knowledge_layers_and_similarities_are_the_manifests():
    case = CASES["common"]
    page, columns = Page(html_report(case)), case["results"]["test"]
    concepts = {row[0]: row[1:] for row in page.tables["By concept on test"]}
    mean, low, high = columns["random"]["by_concept"]["death"]["GS"]
    assert concepts["death"][0] == str(columns["before"]["concept_pairs"]["death"])
    assert concepts["death"][-1] == f"{percent(mean)} [{percent(low)}, {percent(high)}]"
    knowledge = page.tables["Zero-shot accuracy, test"]
    assert knowledge[3] == ["top-5", *(percent(r["zero_shot"]["seen"]["top5"]) for r in columns.values())]
    means = [percent(sum(d["top1"] for d in r["zero_shot"].values()) / 2) for r in columns.values()]
    assert knowledge[-3] == ["top-1", *means]
    layers = {row[0]: row[1:] for row in page.tables["Changes by tensor"]}
    assert layers["vision.1.fc2"] == ["negated", "111", "4096", "2.710 %", HASH]
    counts = page.tables["Counts of similarities on test"]
    for side, column in (("safe", 1), ("unsafe", 2)):
        assert sum(int(row[column]) for row in counts[1:]) == sum(columns["before"]["similarities"]["ts"][side])


def numbers_of(value, name=""):
    """Every form in which the page may show a number of the manifest."""
    if isinstance(value, dict):
        return {form for key, inner in value.items() for form in numbers_of(inner, str(key)) | numbers_of(str(key))}
    if isinstance(value, list | tuple):
        return {form for inner in value for form in numbers_of(inner, name)}
    if isinstance(value, str):
        return set(re.findall(r"\d+(?:\.\d+)?", value))
    forms = {f"{abs(value)}", percent(abs(value)), signed(value).lstrip("+−")} if value is not None else set()
    return forms


@pytest.mark.parametrize("name", ["common", "huge", "two models"])
def test_no_number_in_a_table_is_not_in_the_manifest(name):
    case = CASES[name]
    known = numbers_of(case) | numbers_of(list(NAMES)) | {f"{n / 50 - 1:.2f}".lstrip("-") for n in range(101)}
    for layer in case.get("layers", {}).values():
        known.add(f"{100 * layer['entries'] / layer['of']:.3f}")
    for columns in case["results"].values():  # the mean over data sets is the only sum that the page makes itself
        for result in columns.values():
            for key in ("top1", "top5", "mean_per_class"):
                values = [figures[key] for figures in result["zero_shot"].values()]
                known.add(percent(sum(values) / max(1, len(values))))
    for rows in Page(html_report(case)).tables.values():
        for row in rows:
            unknown = set(re.findall(r"\d+(?:\.\d+)?", " ".join(row[1:]))) - known
            assert not unknown, row


# ---------------------------------------------------------------- other people's names


def test_names_are_shown_and_never_markup():
    case = CASES["nasty"]
    page = Page(html_report(case))
    for name in NASTY:
        assert clean(name) in page.text
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in Page(html_report(CASES["common"])).elements}
    assert "\x00" not in page.text
    assert "\u202e" not in page.text


def test_lone_surrogates_of_undecodable_file_names_can_be_written():
    html_report(document(name="caf\udce9", sets=("\udcff",), concepts=("\udcff",), data_sets=("\udcff",))).encode()


# ---------------------------------------------------------------- contrast (WCAG 2, AA)


def palettes():
    """Colours by name: light, dark, print."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text("utf-8"), re.S)
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]


def luminance(colour):
    parts = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def channels(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(over, under, opacity):
    values = zip(channels(over), channels(under), strict=True)
    return "#" + "".join(f"{round(255 * (opacity * a + (1 - opacity) * b)):02x}" for a, b in values)


@pytest.mark.parametrize("colours", palettes(), ids=["light", "dark", "print"])
def test_contrast(colours):
    surface = colours["surface"]
    for text in ("ink", "muted", "gain", "loss", "s1"):
        assert contrast(colours[text], surface) >= 4.5, text
    for line in ("s0", "s1", "s2", "s3", "safe", "unsafe", "muted"):
        assert contrast(colours[line], surface) >= 3, line
    assert contrast(colours["ink"], mixed(colours["s1"], surface, 0.5)) >= 4.5
    for series in ("s1", "s2", "s3"):
        assert contrast(colours["ink"], mixed(colours[series], surface, 0.5)) >= 3, "a whisker on its bar"


def test_light_and_print_are_one_palette():
    light, _, paper = palettes()
    assert light == paper


# ---------------------------------------------------------------- its charts


def chart(html, title):
    svg = next(svg for svg in re.findall(r"<svg.*?</svg>", html, re.S) if f"<title>{title}</title>" in svg)
    return ET.fromstring(svg)


def marks(root, series):
    """Where the marks of a series stand, from 0 to 1 along the axis, top to bottom."""
    ends = [float(e.get("x")) for e in root.iter() if e.get("class") == "tick" and e.text in ("0", "100")]
    found = [float(e.get("cx")) for e in root.iter() if e.get("class") == f"mark s{series}"]
    return [(x - ends[0]) / (ends[1] - ends[0]) for x in found]


@pytest.mark.parametrize(("series", "column"), [(0, "before"), (1, "after")])
@pytest.mark.parametrize("title", ["SafeGround and retrieval", "More figures"])
def test_charts_of_figures_show_the_manifests(title, series, column):
    html = html_report(CASES["common"])
    labels = [row[0] for row in Page(html).tables[f"{title}, test-style"] if len(row) > 1 and row[0]]
    figures = {
        label(name): values for name, values in CASES["common"]["results"]["test-style"][column]["figures"].items()
    }
    expected = [figures[shown][0] for shown in labels]
    assert marks(chart(html, f"{title}, test-style"), series) == pytest.approx(expected, abs=1e-3)


def test_the_heat_map_shows_the_layers():
    html = html_report(CASES["common"])
    cells = [g[0].text for g in chart(html, "Edited share of each matrix, vision tower").iter() if g.tag.endswith("}g")]
    assert cells == ["vision.0.fc2: 1.81 %", "vision.1.fc2: 2.71 %"]


def test_histograms_show_the_similarities_of_before_and_after():
    html, columns = html_report(CASES["common"]), CASES["common"]["results"]["test"]
    counts = [c for column in ("before", "after") for q in columns[column]["similarities"].values() for c in q.values()]
    used = [n for n in range(100) if any(c[n] for c in counts)]
    extent = (min(used), max(used) + 1, max(map(max, counts)))
    panels = [
        (f"{column}: {percent(columns[column]['figures']['P_vu'][0])} %", columns[column]["similarities"]["vu"])
        for column in ("before", "after")
    ]
    expected = histograms("Unsafe image as the query (vu)", "test; numbers in the table below.", panels, extent)
    assert ET.tostring(expected, "unicode") in html


@pytest.mark.parametrize("name", ["weapons", "death"])
def test_bars_by_concept_show_the_manifests(name):
    root = chart(html_report(CASES["common"]), "P_vu by concept, test")
    texts = [e.text for e in root.iter() if e.tag.endswith("}text")]
    columns = CASES["common"]["results"]["test"]
    start = texts.index(name)
    shown = texts[start + 1 : start + 5]
    assert shown == ["30 pairs", *(percent(r["by_concept"][name]["P_vu"][0]) for r in columns.values())]


def test_three_figures_are_large_at_the_top_and_every_section_is_linked():
    page = html_report(documents()["common"])
    tiles = page.split('<div class="tiles">')[1].split("</div>")[0]
    assert [tiles.count(f"<b>{name}</b>") for name in ("Safety", "Remaining risk", "Cost")] == [1, 1, 1]
    sections = re.findall(r'<section id="([^"]+)">', page)
    assert re.findall(r'<a href="#([^"]+)">', page) == sections != []


def test_settings_that_were_not_given_have_no_row():
    page = html_report(
        {**documents()["common"], "settings": {"seed": 0, "arch": None, "zero_shot": [], "strict": False}}
    )
    table = page.split('id="settings"')[1]
    assert all(name in table for name in (">seed<", ">strict<"))
    assert not any(name in table for name in (">arch<", ">zero_shot<"))
