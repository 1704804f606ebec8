"""Several processes that share one job, by torch.distributed; a process by itself pays nothing and imports nothing.

Work is split by whole batches, and results come back in the order of one process, so the number of processes changes no
bit of a result. `together` of `uwm.processes.ending` makes the group; all other code asks the functions below.
"""

from __future__ import annotations

from .group import Group, ProcessLost, joined
from .sharing import count_of_processes, from_first, in_order, in_rounds, is_first, is_own, own_part, several, workspace

__all__ = [
    "Group",
    "ProcessLost",
    "count_of_processes",
    "from_first",
    "in_order",
    "in_rounds",
    "is_first",
    "is_own",
    "joined",
    "own_part",
    "several",
    "workspace",
]
