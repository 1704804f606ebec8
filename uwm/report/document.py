"""What the page is made of, as plain data: the content of ``uwm.json``, or its like for `uwm eval`."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from ..evaluate import EvalResult, differences
from ..version import __version__


def versions() -> dict[str, str]:
    """Of what decides the figures."""
    import torch

    return {"uwm": __version__, "torch": torch.__version__, "python": platform.python_version()}


def paired_differences(columns: Mapping[str, EvalResult], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Every column against the first, and the second, which is judged, also against those after it.

    Args:
        columns: Column -> result, all of the same pairs.
        seed: For the bootstrap.

    Returns:
        Column -> against which column -> `uwm.evaluate.differences`.
    """
    first, *rest = columns
    against = {name: [first, *(rest[1:] if name == rest[0] else [])] for name in rest}
    return {
        name: {other: differences(columns[name], columns[other], seed) for other in others}
        for name, others in against.items()
    }
