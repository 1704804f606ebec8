"""Where the shipped models and set lie: inside the installed package, or in the checkout's calibration/ folder."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_SHIPPED = _HERE / "shipped" if (_HERE / "shipped").is_dir() else _HERE.parent / "calibration"

DEMO_MODEL = _SHIPPED / "demo-clip"
# These two are in a checkout only: with them the wheel would be twice as large.
DEMO_CAPTIONER = _SHIPPED / "demo-captioner"  # a LLaVA that reads the demo model's vision tower
DEMO_GENERATOR = _SHIPPED / "demo-generator"  # a Stable Diffusion pipeline that reads its text tower
DEMO_SET = _SHIPPED / "emoji"


def only_in_checkout(path: Path) -> bool:
    """Whether a path that does not exist is that of a model which comes with a checkout and not with the package."""
    asked = path.name in (DEMO_CAPTIONER.name, DEMO_GENERATOR.name)
    return asked and path.parent.name in ("", "calibration", "shipped")
