"""How much of a batch fits in memory: where it does not, half of it is tried."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the host, had no memory left; not all devices have a class of their own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def can_run_out(device: torch.device) -> bool:
    """Whether half a batch may fit where a whole one does not: the CPU runs few samples together anyway."""
    return device.type != "cpu"


@dataclass
class Room:
    """How many samples of a tower run together.

    Attributes:
        most: At most so many, as far as is known; None: any number.
        proven: So many have run.
    """

    most: int | None = None
    proven: int = 0

    def halve(self, error: RuntimeError, samples: int, tower: str) -> None:
        """Take half as many from now on. Raises the error where it is another one, or one sample is too many."""
        if samples < 2 or not is_out_of_memory(error):
            raise error
        self.most = -(-samples // 2)
        logger.warning(
            "%s tower: out of memory with %d at a time; going on with %d, which changes no result",
            tower, samples, self.most,
        )  # fmt: skip
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
