"""A group of processes, and how they hand each other values."""

from __future__ import annotations

import io
import pickle
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InvalidResult, ResourceFault

if TYPE_CHECKING:
    import torch

ALIGNED = 16  # bytes; tensors of any type can be viewed at such a place of a buffer
LONGEST_PAUSE = 2e-3  # seconds between two looks at whether a transfer is done


class ProcessLost(ResourceFault):
    """Another process of the group has ended."""


class Group(Protocol):
    """What the processes of a job need of each other."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    def exchange(self, value: Any, label: str) -> list[Any]:
        """The value of every process, by rank; every process calls it with the same label. Raises UwmError."""


_GROUP: ContextVar[Group | None] = ContextVar("group", default=None)


def current() -> Group | None:
    """The group that this process works in; None for a process by itself."""
    return _GROUP.get()


@contextmanager
def joined(group: Group | None) -> Iterator[None]:
    """Work in a group while the body runs; None: by itself."""
    token = _GROUP.set(group)
    try:
        yield
    finally:
        _GROUP.reset(token)


class TorchGroup:
    """The processes of torch.distributed's default group.

    Args:
        rank, count: Of this process, and of all.
        nccl: Tensors on CUDA devices travel by NCCL; otherwise all tensors travel by Gloo.

    Attributes:
        waiting: Whether this process waits for the others.
    """

    def __init__(self, rank: int, count: int, nccl: bool) -> None:
        self.rank, self.count, self._nccl = rank, count, nccl
        self.waiting = False

    def exchange(self, value: Any, label: str) -> list[Any]:
        """As `Group.exchange`.

        Raises:
            ProcessLost: Another process has ended. InvalidResult: The processes are not at the same place.
        """
        import torch

        head, host, device = packed(value, self._nccl)
        sizes = torch.tensor([len(head), len(host), len(device), zlib.crc32(label.encode())])
        headers = torch.stack(self._gather(sizes)).tolist()
        if len({header[3] for header in headers}) > 1:
            raise InvalidResult(f"the processes of this run went apart at {label!r}; please report this")
        heads = self._cut(head, [header[0] for header in headers])
        hosts = self._cut(host, [header[1] for header in headers])
        devices = self._cut(device, [header[2] for header in headers])
        parts = zip(heads, hosts, devices, strict=True)
        return [value if rank == self.rank else unpacked(*part) for rank, part in enumerate(parts)]

    def _cut(self, buffer: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
        """Every process's buffer, of these lengths."""
        if not any(lengths):
            return [buffer for _ in lengths]
        padded = buffer.new_zeros(max(lengths))
        padded[: len(buffer)] = buffer
        return [found[:length] for found, length in zip(self._gather(padded), lengths, strict=True)]

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every process's tensor, all of one shape. It polls, so that signals are seen to while it waits."""
        import torch
        import torch.distributed as dist

        found, pause = [torch.empty_like(tensor) for _ in range(self.count)], 1e-5
        self.waiting = True
        try:
            work = dist.all_gather(found, tensor, async_op=True)
            assert work is not None
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            work.wait()
        except RuntimeError as error:
            raise ProcessLost(f"another process of this run has ended ({str(error).splitlines()[0]})") from None
        finally:
            self.waiting = False
        return found


# ---------------------------------------------------------------- values as bytes


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and keeps them."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        import torch

        if not isinstance(value, torch.Tensor):
            return None
        self.tensors.append(value.detach())
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    """Puts tensors back. What it reads comes from a process of the same run."""

    def __init__(self, stream: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(stream)
        self._tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        return self._tensors[number]


def packed(value: Any, apart: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A value of plain objects and tensors as three buffers, uint8 [bytes]: what it is, host and device tensors.

    Args:
        value: Anything that can be pickled.
        apart: Tensors on a CUDA device go into a buffer there; otherwise into that of the host.
    """
    import torch

    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(value)
    kinds = [(t.dtype, tuple(t.shape), t.is_cuda) for t in pickler.tensors]
    head = pickle.dumps((stream.getvalue(), kinds, apart))
    there = torch.device("cuda", torch.cuda.current_device()) if apart else torch.device("cpu")
    sides: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for tensor in pickler.tensors:
        on_device = apart and tensor.is_cuda
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        padding = flat.new_zeros(-len(flat) % ALIGNED)
        sides[on_device].append(torch.cat([flat, padding]).to(there if on_device else "cpu"))
    empty = torch.empty(0, dtype=torch.uint8)
    host, device = torch.cat([empty, *sides[0]]), torch.cat([empty.to(there), *sides[1]])
    return torch.frombuffer(bytearray(head), dtype=torch.uint8), host, device


def unpacked(head: torch.Tensor, host: torch.Tensor, device: torch.Tensor) -> Any:
    """The value that `packed` was given; tensors of a CUDA device are on that of this process."""
    import torch

    skeleton, kinds, apart = pickle.loads(head.numpy().tobytes())
    tensors, places = [], [0, 0]
    for dtype, shape, cuda in kinds:
        side = int(cuda and apart)
        size = torch.Size(shape).numel() * dtype.itemsize
        cut = (host, device)[side][places[side] : places[side] + size].clone()  # else all that came is kept alive
        places[side] += size + -size % ALIGNED
        tensors.append(cut.view(dtype).view(shape).to("cuda" if cuda else "cpu"))
    return _Unpickler(io.BytesIO(skeleton), tensors).load()
