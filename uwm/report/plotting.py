"""What the plots of comparisons and of fronts share: style, size, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import BadInput

EXTRA = "matplotlib is not installed, and the plot needs it; `pip install 'uwm[plot]'`"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8f6b00")  # after Okabe and Ito
GREYS = ("#555555", "#999999")  # of controls
MARKERS = "osD^vP<X>"  # enough to distinguish methods of one colour
WIDTH = 7.2  # inches: a page's width
STYLE: dict[str, Any] = {"font.size": 8, "axes.linewidth": 0.6, "svg.hashsalt": "uwm", "axes.spines.top": False}
STYLE |= {"text.parse_math": False}  # names may hold a $
STYLE |= {"axes.spines.right": False, "legend.fontsize": 8, "axes.labelsize": 8}
STYLE |= {f"{axis}tick.major.{name}": value for axis in "xy" for name, value in (("size", 2), ("width", 0.6))}


def check_plotting() -> None:
    """Refuse to start without matplotlib. Raises BadInput."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BadInput(EXTRA) from None


@contextmanager
def empty_figure(height: float) -> Iterator[Any]:
    """A figure of a page's width in our style, whatever style the process has; `height` in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def show_grid(panel: Any) -> None:
    """Faint lines behind everything."""
    panel.grid(color="#e4e6ea", linewidth=0.5)
    panel.set_axisbelow(True)


def written(figure: Any) -> dict[str, bytes]:
    """A figure as ``svg`` and ``png``, without the date; inside of its `empty_figure`."""
    return {suffix: _written(figure, suffix) for suffix in ("svg", "png")}


def _written(figure: Any, suffix: str) -> bytes:
    out = io.BytesIO()
    undated = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[suffix]
    figure.savefig(out, format=suffix, dpi=200, metadata=undated)
    return out.getvalue()
