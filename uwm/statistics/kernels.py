"""Kernels of our own for one kind of device: each is tried on the spot before it is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)
Kernel = TypeVar("Kernel")


def tried(load: Callable[[], Kernel], agrees: Callable[[Kernel, str], bool], device: str) -> Kernel | None:
    """The kernel, or None where it cannot be used or gives another result than the plain form; the log says why.

    Args:
        load: Imports it.
        agrees: Runs it on a device, and the plain form, and compares them.
        device: Where.
    """
    try:
        kernel = load()
        if agrees(kernel, device):
            return kernel
    except Exception as error:  # no Triton, no compiler for it, an old device: all of them its own errors
        logger.info("Triton cannot be used, so scoring takes longer (%s)", str(error).partition("\n")[0])
        return None
    logger.warning("a Triton kernel gives wrong results on this machine; it is not used, so scoring takes longer")
    return None
