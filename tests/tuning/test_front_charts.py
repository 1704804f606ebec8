"""The plot and the page of a front: what they show, and that equal fronts give equal bytes."""

from __future__ import annotations

import copy
import io
import itertools
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from made_up_front import made_up_front
from PIL import Image

from uwm.errors import BadInput
from uwm.report.charts import WIDTH
from uwm.tuning import axes
from uwm.tuning.chart import keys, scatter
from uwm.tuning.page import front_page
from uwm.tuning.plot import draw
from uwm.tuning.writing import write_front

FRONT = made_up_front(60, held_out=("held-out", "unseen"))
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    """What a reader of matplotlib's SVG sees, which it keeps in comments."""
    return [t.strip() for t in re.findall(r"<!--(.*?)-->", svg.decode()) if t.strip()]


# ---------------------------------------------------------------- axes


@pytest.mark.parametrize("loss", [-3, 0, 0.5, 2, 80])
def test_a_loss_comes_back_from_its_place(loss):
    assert axes.unstretched(axes.stretched(loss)) == pytest.approx(loss)


@pytest.mark.parametrize(("least", "most"), [(0, 1), (-0.4, 33), (0, 100), (-5, 5), (0.2, 0.9), (3, 4)])
def test_ticks_are_round_and_far_enough_from_each_other(least, most):
    ticks = axes.loss_ticks(least, most)
    assert len(ticks) >= 2 or (least, most) == (3, 4)
    assert all(least <= tick <= most for tick in ticks)
    assert all(tick == 0 or float(f"{tick:.0e}") == tick for tick in ticks), "one digit"
    gaps = [axes.stretched(b) - axes.stretched(a) for a, b in itertools.pairwise(ticks)]
    assert all(gap >= axes.GAP * (axes.stretched(most) - axes.stretched(least)) for gap in gaps)
    assert 0 in ticks or least > 0


def test_the_window_leaves_out_what_loses_more_than_any_point():
    front = copy.deepcopy(FRONT)
    front["tried"][0] |= {"loss": 99.0, "objective": 1.0, "front": False}
    (least, most), (low, high) = axes.window(front)
    assert most < 99
    assert low > 1
    assert axes.beyond(front, most).startswith("; not shown: ")
    assert axes.beyond(front, 100) == ""
    for name in ("held-out", "unseen"):
        assert all(least <= loss <= most and low <= objective <= high for loss, objective in axes.held_out(front, name))


# ---------------------------------------------------------------- the plot


@pytest.fixture(scope="module")
def drawn():
    return draw(FRONT)


def test_equal_fronts_give_equal_plots(drawn):
    assert draw(copy.deepcopy(FRONT)) == drawn
    other = copy.deepcopy(FRONT)
    other["points"][0]["objective"] += 1
    assert draw(other) != drawn


def test_the_plot_names_everything(drawn):
    read = texts(drawn["svg"])
    for name in ("repel", "redirect", "uwm", "unedited", "the front, cross-validation", "the same points, unseen"):
        assert name in read
    assert f"knee (point {FRONT['knee']})" in read
    assert "safety (%)" in read
    assert any(text.startswith("loss of knowledge (%") for text in read)
    assert Image.open(io.BytesIO(drawn["png"])).size[0] == 1440


def test_names_are_not_read_as_formulas():
    front = made_up_front(20, held_out=("a$^$b",))
    assert "the same points, a$^$b" in texts(draw(front)["svg"])


def test_a_front_of_one_point_is_drawn():
    front = made_up_front(1, held_out=())
    assert "knee (point 1)" in texts(draw(front)["svg"])
    ET.fromstring(ET.tostring(scatter(front)))


def test_without_matplotlib_the_extra_is_named_and_all_else_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInput, match=r"uwm\[plot\]"):
        write_front(tmp_path, FRONT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "tune.csv", "tune.json", "tune.md"]


# ---------------------------------------------------------------- the chart of the page


def marks(front, kind):
    """(form, place, title) of every mark of a kind."""
    found = []
    for element in ET.fromstring(ET.tostring(scatter(front))).iter():
        if kind in element.get("class", "").split():
            title = element.find(f"{SVG}title")
            place = element.get("cx") or element.get("x") or re.match(r"M([\d.]+)", element.get("d"))[1]
            found.append((element.tag.removeprefix(SVG), float(place), None if title is None else title.text))
    return found


def test_every_dot_tells_method_settings_and_figures():
    most = axes.window(FRONT)[0][1]
    hidden = [t for t in FRONT["tried"] if not t["front"] and t["loss"] <= most]
    dots = marks(FRONT, "dot")
    assert len(dots) == len(hidden)
    first = hidden[0]
    words = f"trial {first['trial']}: {first['method']} share={first['settings']['share']:.3g} strength="
    assert dots[0][2].startswith(words)
    assert f"safety {first['objective']:.1f} %, loss" in dots[0][2]
    points = marks(FRONT, "point")
    assert [int(re.match(r"point (\d+): ", title)[1]) for _, _, title in points] == [*range(1, len(points) + 1)]
    assert sum("on held-out" in title for _, _, title in marks(FRONT, "held")) == len(FRONT["points"])
    assert [title for _, _, title in marks(FRONT, "star")] == ["unedited: safety 29.5 %"]


def test_dots_lie_in_the_order_of_loss():
    places = [x + (4 if form == "rect" else 0) for form, x, _ in marks(FRONT, "point")]
    assert places == pytest.approx(sorted(places), abs=5)
    assert all(0 < x < WIDTH for x in places)


def test_methods_differ_in_form_and_colour():
    front = copy.deepcopy(FRONT)
    front["trials"]["by_method"] = {f"m{n}": {"trials": 1, "seconds": 1.0} for n in range(9)}
    front["tried"], front["points"] = [], front["points"][:1]
    front["points"][0]["method"] = "m0"
    signs = [ET.tostring(part) for swatch, _ in keys(front) for part in swatch if "point" in part.get("class", "")]
    assert len(signs) == len(set(signs)) == 9


# ---------------------------------------------------------------- the page


def test_the_page_loads_nothing_and_has_no_script():
    page = front_page(FRONT)
    assert page == front_page(copy.deepcopy(FRONT))
    assert "<script" not in page
    assert not re.search(r'src="|href="[^#]', page)
    assert not re.search(r"url\(|@import", page)


def test_the_page_has_every_part():
    page = front_page(FRONT)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["The front", "How to apply a point", "The points", "Trials", "Settings, versions, hashes"]
    assert '<p id="made">Made on 2026-11-26 16:20 UTC with uwm 1.2.0, torch 2.9.0.</p>' in page
    assert "held-out (240 pairs)" in page
    assert f"FOLDER --point {FRONT['knee']} -o OUT" in page
    assert "points/01.safetensors" in page
    assert "abab" in page
    assert page.count('role="region"') == page.count('tabindex="0"')


def test_the_page_escapes_what_is_other_peoples():
    front = copy.deepcopy(FRONT)
    front["model"]["name"] = front["notes"][0] = "<script>x</script>"
    front["trials"]["by_method"]["<b>"] = {"trials": 0, "seconds": 0.0}
    for trial in (*front["tried"], *front["points"]):
        trial["method"], trial["settings"] = "<b>", {"<i>": f"<u>{trial['trial']}"}
    page = front_page(front)
    assert not re.search(r"<(script|i|u)>", page)
    assert "&lt;script&gt;" in page


# ---------------------------------------------------------------- the folder


def test_the_folder_is_written_and_its_patches_and_journal_stay(tmp_path):
    from uwm.tuning.points import read_front

    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "01.safetensors").write_bytes(b"patch")
    (tmp_path / "study.journal").write_bytes(b"journal")
    write_front(tmp_path, FRONT)
    names = ["front.png", "front.svg", "points", "report.html", "study.journal", "tune.csv", "tune.json", "tune.md"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert (tmp_path / "points" / "01.safetensors").read_bytes() == b"patch"
    assert (tmp_path / "study.journal").read_bytes() == b"journal"
    assert read_front(tmp_path) == FRONT
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    write_front(tmp_path, read_front(tmp_path))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
