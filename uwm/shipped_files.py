"""Where the shipped models and set lie: in the checkout's calibration/ folder, or where they were installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .errors import BadInput

_HERE = Path(__file__).resolve().parent
_SHIPPED = _HERE / "shipped" if (_HERE / "shipped").is_dir() else _HERE.parent / "calibration"

DEMO_MODEL = _SHIPPED / "demo-clip"
# These two are in a checkout only: with them the wheel would be twice as large.
DEMO_CAPTIONER = _SHIPPED / "demo-captioner"  # a LLaVA that reads the demo model's vision tower
DEMO_GENERATOR = _SHIPPED / "demo-generator"  # a Stable Diffusion pipeline that reads its text tower


def _set_folder() -> Path:
    """The set: a distribution of its own, uwm-emoji, with which the wheel would be twice as large."""
    spec = find_spec("uwm_emoji") if not (_SHIPPED / "emoji").is_dir() else None
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((Path(place) / "emoji" for place in places), _SHIPPED / "emoji")


DEMO_SET = _set_folder()


def check_demo_set() -> None:
    """Refuse a demo without its set. Raises BadInput."""
    if not DEMO_SET.is_dir():
        raise BadInput("the demo's set of emoji is not installed: in a checkout of uwm, pip install ./calibration")


def only_in_checkout(path: Path) -> bool:
    """Whether a path that does not exist is that of a model which comes with a checkout and not with the package."""
    asked = path.name in (DEMO_CAPTIONER.name, DEMO_GENERATOR.name)
    return asked and path.parent.name in ("", "calibration", "shipped")
