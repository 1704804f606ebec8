"""The front as inline SVG: every dot has a title, which a browser shows where the pointer rests on it."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from ..report.charts import FORMS, WIDTH, Position, Scale, chart, shape, star, words
from ..report.parts import Legend, legend
from ..report.svg import tag
from . import axes
from .front import CHECKED, Front, Point, Tried
from .points import figures, settings_words
from .table import UNEDITED

HEIGHT, TOP, BOTTOM = 340, 26.0, 302.0
LEFT, RIGHT = 34.0, WIDTH - 10.0
ROOM = 10.0  # px beside the outermost dots
NAME_ROOM = 74.0  # px on the left of the knee, for its name


class _Frame:
    """Where a loss and an objective lie, and the axes."""

    def __init__(self, front: Front) -> None:
        (least, self.most), (low, high) = axes.window(front)
        self.left, self.right = axes.stretched(least), axes.stretched(self.most)
        knee = axes.stretched(front["points"][front["knee"] - 1]["loss"])
        share = NAME_ROOM / (RIGHT - LEFT)
        self.left = min(self.left, (knee - share * self.right) / (1 - share))
        self.objectives = Scale.over(low, high)

    def __call__(self, loss: float, objective: float) -> Position:
        share = (axes.stretched(loss) - self.left) / (self.right - self.left)
        x = LEFT + ROOM + share * (RIGHT - LEFT - 2 * ROOM)
        return x, self.objectives(objective, BOTTOM, TOP)

    def lines(self, front: Front) -> Iterator[Element]:
        """Grid, ticks and the names of the axes."""
        for tick in self.objectives.ticks:
            _, y = self(0, tick)
            yield tag("line", x1=LEFT, y1=y, x2=RIGHT, y2=y, class_="grid")
            yield words(LEFT - 5, y + 4, f"{tick:g}".replace("-", "−"), "tick", "end")
        for tick in axes.loss_ticks(axes.unstretched(self.left), self.most):
            x, _ = self(tick, 0)
            yield tag("line", x1=x, y1=TOP, x2=x, y2=BOTTOM, class_="zero" if tick == 0 else "grid")
            yield words(x, BOTTOM + 15, f"{tick:g}".replace("-", "−"), "tick", "middle")
        yield words(0, 12, f"{front['objective']['label']} (%)", "tick")
        yield words(RIGHT, BOTTOM + 31, f"loss of knowledge ({front['loss']['unit']})", "tick", "end")


def scatter(front: Front) -> Element:
    """All trials faint, the front as a line, its points on held-out pairs as open marks, the unedited model as a star.

    Trials that lose more than any point are not shown; `axes.beyond` counts them.
    """
    frame, methods = _Frame(front), axes.methods_of(front)
    path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in (frame(*place) for place in axes.of_points(front)))
    title = f"{front['objective']['label']} against loss of knowledge"
    told = f"{len(front['tried'])} trials, {len(front['points'])} points of the front; numbers in the tables."
    body = [*frame.lines(front), *_trials(front, frame, methods), tag("path", d=path, class_="front")]
    return chart(title, told, HEIGHT, *body, *_unedited(front, frame), *_held_out(front, frame),
                 *_points(front, frame, methods), *_knee(front, frame))  # fmt: skip


def _trials(front: Front, frame: _Frame, methods: list[str]) -> Iterator[Element]:
    for trial in front["tried"]:
        if trial["loss"] <= frame.most and not trial["front"]:
            name = f"trial {trial['trial']}: {_told(front, trial['method'], trial)}"
            yield _dot(methods.index(trial["method"]), frame(trial["loss"], trial["objective"]), 2, "dot", name)


def _points(front: Front, frame: _Frame, methods: list[str]) -> Iterator[Element]:
    for point, place in zip(front["points"], axes.of_points(front), strict=True):
        name = f"point {point['number']}: {_told(front, point['method'], point)}; {CHECKED}"
        yield _dot(methods.index(point["method"]), frame(*place), 3.2, "point", name)


def _held_out(front: Front, frame: _Frame) -> Iterator[Element]:
    for number, name in enumerate(front["baseline"]["held_out"]):
        for point, place in zip(front["points"], axes.held_out(front, name), strict=True):
            if place is not None:
                text = f"point {point['number']} on {name}: {figures(front, place[1], place[0])}"
                yield shape(number + 1, frame(*place), 3, "held", text)


def _unedited(front: Front, frame: _Frame) -> Iterator[Element]:
    for place in axes.unedited(front):
        yield star(*frame(*place), f"{UNEDITED}: {figures(front, place[1], None)}")


def _knee(front: Front, frame: _Frame) -> Iterator[Element]:
    """A ring, and the name on the side that no trial reaches."""
    point = front["points"][front["knee"] - 1]
    x, y = frame(point["loss"], point["objective"])
    yield tag("circle", cx=x, cy=y, r=6, class_="ring")
    beside = 14 if front["objective"]["lower_is_better"] else -6
    yield words(x - 8, y + beside, f"knee: {point['number']}", "head", "end")


def _told(front: Front, method: str, of: Point | Tried) -> str:
    """``repel share=0.03 strength=1.5: safety 31.2 %, loss 1.4 %``."""
    settings = settings_words(front, method, of["settings"])
    return f"{method} {settings}: {figures(front, of['objective'], of['loss'])}"


def _dot(method: int, place: Position, size: float, kind: str, name: str | None = None) -> Element:
    """A mark in the form and colour of a method."""
    return shape((method + method // FORMS) % FORMS, place, size, f"{kind} s{(method + 1) % FORMS}", name)


def keys(front: Front) -> Legend:
    """The legend: methods, the front, held-out sets, the unedited model."""
    methods, sets = axes.methods_of(front), [*front["baseline"]["held_out"]]
    signs = [_dot(number, (7, 7), 4, "point") for number in range(len(methods))]
    signs.append(tag("path", d="M0 7h14", class_="front"))
    signs += [shape(number + 1, (7, 7), 4, "held") for number in range(len(sets))]
    signs.append(star(7, 7))
    names = [*methods, f"the front, {CHECKED}", *(f"the same points, {name}" for name in sets), UNEDITED]
    return legend(names, signs.__getitem__)
